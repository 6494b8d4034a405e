-- name: consumer_session
-- The connection of a consumer: it waits for long, and works in transactions of its user. A peer that vanishes is noticed
-- after half a minute, so that it does not keep its events from the other takers of its name. Returns the lock_timeout.
SELECT current_setting('lock_timeout'), set_config('idle_session_timeout', '0', false),
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
-- How long to wait for another taker of the name. The transaction's own statements get the setting of the session back.
SELECT set_config('lock_timeout', %s, true)

-- name: consume
SELECT id, channel, event_type, payload, headers, created_at, cursor
  FROM sse_pg.consume(%(consumer)s, %(channels)s, %(most)s)
