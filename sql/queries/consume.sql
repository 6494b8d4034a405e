-- name: consumer_session
-- The connection of a consumer: it waits for long, and works in transactions of its user. A peer that vanishes is noticed
-- after half a minute, so that it does not keep its events from the other takers of its name.
SELECT set_config('idle_session_timeout', '0', false),
       set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
       set_config('tcp_keepalives_count', '3', false)

-- name: consumer_listen
LISTEN sse_pg

-- name: consumer_has_work
-- The last id shows whether the log is busy.
SELECT sse_pg.has_work(%s, %s), sse_pg.last_id()

-- name: consume_begin
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE

-- name: consume_lock_timeout
-- How long to wait for another taker of the name. What was set is kept in the transaction (CASE: first), for the next one.
SELECT set_config('lock_timeout', CASE WHEN set_config('sse_pg.own_lock_timeout', current_setting('lock_timeout'), true)
                                            IS NOT NULL THEN %s END, true)

-- name: consume_own_lock_timeout
-- The statements of the batch wait for locks as long as the session would.
SELECT set_config('lock_timeout', current_setting('sse_pg.own_lock_timeout'), true)

-- name: consume
SELECT id, channel, event_type, payload, headers, created_at, cursor
  FROM sse_pg.consume(%(consumer)s, %(channels)s, %(most)s)
