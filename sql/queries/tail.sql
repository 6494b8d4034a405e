-- name: tail_session
-- The LISTEN connection of a server, in the order of its life; docs/guarantee.md argues why nothing is lost.
--
-- First its settings. A lock that it does not get soon means that something is wrong. Idling does not end the session. The
-- session repeats the same few reads, so it keeps their plans: with many partitions, planning takes longer than reading.
SELECT set_config('lock_timeout', '10s', false), set_config('statement_timeout', '30s', false),
       set_config('idle_session_timeout', '0', false), set_config('plan_cache_mode', 'force_generic_plan', false),
       hashtext(%s::text COLLATE "C"), current_setting('server_encoding')

-- name: hash_probe
SELECT hashtext(%s::text COLLATE "C"), current_setting('server_encoding')

-- name: listen
-- LISTEN comes before the first read, so a commit between the two is notified or read.
LISTEN sse_pg; LISTEN sse_pg_control

-- name: sleep_begin
-- Show that this tail is asleep: publishers ring. A tail that falls asleep shows it before it stops showing "awake". It does
-- not wait: a publisher holds the lock for the moment in which it asks, but somebody else may hold it for ever.
SELECT pg_try_advisory_lock_shared(sse_pg.lock_class('tail'), 1)

-- name: check_epoch
-- Begin an epoch if this is not the log that was read last.
SELECT sse_pg.check_epoch()

-- name: epochs
SELECT settled_to, open_first, open_last, starts_at FROM sse_pg.epochs ORDER BY starts_at

-- name: still_there
-- Which of these events are in the log, each with its time. The time is NULL if the event may have been purged.
SELECT i.id, e.created_at
  FROM unnest(%s::bigint[]) AS i(id)
  LEFT JOIN LATERAL (SELECT c.created_at FROM sse_pg.events c WHERE c.id = i.id LIMIT 1) e ON true
 WHERE e.created_at IS NOT NULL OR i.id <= (SELECT l.purged_to FROM sse_pg.log l)

-- name: confirm_epochs
SELECT sse_pg.confirm_epochs(%(high)s, %(first)s, %(last)s)

-- name: deleting
-- Whether somebody deletes what keep() no longer keeps. A deletion that begins later knows this server; see purge_channels().
SELECT EXISTS (
    SELECT FROM pg_locks l
     WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
       AND l.classid = sse_pg.lock_class('maintenance') AND l.objid = 1
       AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))

-- name: expired_channels
-- The channels of which events above an id were deleted because of their own retention.
SELECT channel, up_to FROM sse_pg.expired_channels WHERE up_to > %s

-- name: publishers
-- The last id drawn and the publishers in flight. The tail asks before each read that decides which missing ids are dead.
SELECT last, least_bound, window_first, window_last FROM sse_pg.publishers()

-- name: missing_ids
-- The ids in these ranges that are not visible, as ranges: the ids between those that are.
SELECT g.first, g.last
  FROM (SELECT lag(e.id, 1, s.first - 1) OVER (PARTITION BY s.first ORDER BY e.id) + 1 AS first, e.id - 1 AS last
          FROM unnest(%(first)s::bigint[], %(last)s::bigint[]) AS s(first, last)
         CROSS JOIN LATERAL (
             SELECT i.id FROM sse_pg.events i WHERE i.id BETWEEN s.first AND s.last
              UNION ALL SELECT s.last + 1) e) g
 WHERE g.first <= g.last

-- name: tail_read_above
SELECT id, channel, event_type, payload, created_at, headers
  FROM sse_pg.read_above(%(seen)s, %(limit)s, %(octets)s, %(followed)s)

-- name: tail_read
SELECT id, channel, event_type, payload, created_at, headers
  FROM sse_pg.read_open(%(first)s, %(last)s, %(seen)s, %(limit)s, %(octets)s, %(asks)s, %(followed)s)

-- name: tail_next_id
-- The event that PostgreSQL could not send as text: the first unseen event above the last one that could be read.
SELECT e.id FROM sse_pg.events e
 WHERE e.id > %(after)s
   AND (e.id > %(seen)s OR EXISTS (
       SELECT FROM unnest(%(first)s::bigint[], %(last)s::bigint[]) AS g(first, last)
        WHERE e.id BETWEEN g.first AND g.last))
 ORDER BY e.id LIMIT 1

-- name: elect
-- Whether this session is the one that notes what is settled: the first that asks, until it ends.
SELECT pg_try_advisory_lock(sse_pg.lock_class('tail'), 3)

-- name: settled
-- Note what this tail knows about the log, unless another tail has noted more. This is the mark: whoever sees it also sees
-- everything that it vouches for. It need not be flushed: a mark that a crash takes back says less, never anything wrong. It
-- waits for nobody: if somebody holds the row, no row is updated.
WITH not_flushed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)),
     free AS (SELECT k.only_row FROM sse_pg.log k CROSS JOIN not_flushed FOR NO KEY UPDATE OF k SKIP LOCKED)
UPDATE sse_pg.log l SET settled_to = %(high)s, open_first = %(first)s, open_last = %(last)s
  FROM free WHERE l.only_row = free.only_row AND l.settled_to <= %(high)s

-- name: look_around
-- What a tail asks about once in a second: how full the notification queue is, whether it is the elected one by now, whether
-- a server reads from a standby and therefore holds a lock, how many bytes the table of facts has, and which subscription
-- copies events into the log. The table of facts has one row; the rest are old versions that somebody's snapshot still
-- needs. The lock that is tried is given back at once.
SELECT pg_notification_queue_usage(), %s OR pg_try_advisory_lock(sse_pg.lock_class('tail'), 3),
       NOT pg_try_advisory_xact_lock(sse_pg.lock_class('tail'), 4), pg_relation_size('sse_pg.log'),
       sse_pg.copying_subscription()

-- name: wake_begin
-- Show that this tail is awake: it polls, and publishers need not ring unless another tail is asleep. A tail that wakes up
-- shows it before it stops showing "asleep", so that a publisher in between sees both and rings. Without the lock publishers
-- ring more often than they need to.
SELECT pg_try_advisory_lock_shared(sse_pg.lock_class('tail'), 2)

-- name: sleep_end
SELECT pg_advisory_unlock_shared(sse_pg.lock_class('tail'), 1)

-- name: wake_end
-- After sleep_begin. A publisher that asked before may not ring, so the tail continues to poll until all of those
-- have finished.
SELECT pg_advisory_unlock_shared(sse_pg.lock_class('tail'), 2)

-- name: lock_holders
-- The other sessions that hold this lock exclusively.
SELECT DISTINCT l.pid, coalesce(a.usename::text, '') FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
   AND l.classid = sse_pg.lock_class(%(class)s) AND l.objid::bigint = %(key)s
   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
   AND l.pid <> pg_backend_pid() AND l.mode = 'ExclusiveLock'

-- name: notification_queue
-- How full the notification queue is. Asking also frees the part that no listener needs any more. Once the queue is full,
-- nothing else frees it, because then every NOTIFY fails.
SELECT pg_notification_queue_usage()

-- name: look
-- What a tail asks for while no stream is open. If no id was drawn since everything was read, there is nothing to read.
SELECT sse_pg.last_id(), pg_notification_queue_usage()

-- name: pooled_begin
-- The settings of a transaction of a server that polls, as tail_session has them, and the check that this is its log.
SELECT sse_pg.expect_log(%(log)s), set_config('lock_timeout', '10s', true), set_config('statement_timeout', '30s', true),
       set_config('row_security', 'off', true), set_config('search_path', 'pg_catalog, pg_temp', true),
       set_config('plan_cache_mode', 'force_generic_plan', true)

-- name: pooled_hear
SELECT n.snapshot::text, extract(epoch FROM clock_timestamp())::float8, n.messages
  FROM sse_pg.notifications_since(%(since)s::text::pg_snapshot, %(most)s) n

-- name: pooled_look
-- What a server that polls asks for while nothing comes.
SELECT sse_pg.last_id(), n.snapshot::text, extract(epoch FROM clock_timestamp())::float8, n.messages
  FROM sse_pg.notifications_since(%(since)s::text::pg_snapshot, %(most)s) n

-- name: pooled_read
-- A read of the log, and then what was sent to the servers, in a last row. Append runs its parts one after the other, and
-- each of the functions takes its own snapshot. So the last row has what was revoked before any of the events was published.
SELECT id, channel, event_type, payload, created_at, headers
  FROM sse_pg.read_open(%(first)s, %(last)s, %(seen)s, %(limit)s, %(octets)s, %(asks)s, %(followed)s)
 UNION ALL
SELECT NULL, NULL, NULL,
       json_build_array(n.snapshot::text, extract(epoch FROM clock_timestamp()), n.messages)::text, NULL, NULL
  FROM sse_pg.notifications_since(%(since)s::text::pg_snapshot, %(most)s) n

-- name: pooled_elect
-- Whether this server notes what is settled: the first of those that poll, unless a server that listens does it. Also which
-- subscription copies events into the log.
SELECT NOT EXISTS (
           SELECT FROM pg_locks l
            WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
              AND l.classid = sse_pg.lock_class('tail') AND l.objid = 3
              AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
   AND coalesce((SELECT min(s.id) = %s FROM sse_pg.live_servers() s WHERE s.alive_until IS NOT NULL), false),
       sse_pg.copying_subscription()
