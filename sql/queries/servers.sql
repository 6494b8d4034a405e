-- name: server_insert
INSERT INTO sse_pg.servers (name, pid, version, migration) VALUES (%s, %s, %s, %s) RETURNING id

-- name: server_insert_polling
-- A server that polls has no lock. It counts for ten seconds after each update of its row.
INSERT INTO sse_pg.servers (name, pid, version, migration, alive_until)
VALUES (%s, %s, %s, %s, clock_timestamp() + interval '10 seconds') RETURNING id

-- name: server_lock
-- No other session has a reason to hold this lock, so a server does not wait for it.
SELECT pg_try_advisory_lock_shared(sse_pg.lock_class('server'), %s)

-- name: server_update
UPDATE sse_pg.servers SET active_connections = %s, position = %s, read_to = %s, updated_at = now(),
       alive_until = CASE WHEN alive_until IS NOT NULL THEN clock_timestamp() + interval '10 seconds' END
 WHERE id = %s RETURNING id

-- name: server_delete
DELETE FROM sse_pg.servers WHERE id = %s

-- name: servers_sweep
-- Deletes the rows of servers that died. A new row stays, because its server may not have taken its lock yet.
DELETE FROM sse_pg.servers s
 WHERE s.updated_at < now() - interval '1 minute'
   AND NOT EXISTS (SELECT FROM sse_pg.live_servers() l WHERE l.id = s.id)

-- name: servers_live
SELECT id, name, pid, version, started_at, active_connections FROM sse_pg.live_servers()

-- name: servers_state
-- The servers that are up, and what their LISTEN connections show to publishers: "asleep", "awake", or for a moment both.
-- A server that polls shows neither.
WITH locks AS MATERIALIZED (
    SELECT k.pid, k.classid, k.objid::bigint AS key FROM pg_locks k
     WHERE k.locktype = 'advisory' AND k.objsubid = 2 AND k.granted
       AND k.classid IN (sse_pg.lock_class('tail'), sse_pg.lock_class('server'))
       AND k.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
SELECT s.id, s.name, s.pid, s.version, s.started_at, s.active_connections, s.position,
       EXISTS (SELECT FROM locks b WHERE b.pid = up.pid AND b.classid = sse_pg.lock_class('tail') AND b.key = 1) AS asleep,
       EXISTS (SELECT FROM locks b WHERE b.pid = up.pid AND b.classid = sse_pg.lock_class('tail') AND b.key = 2) AS awake,
       s.alive_until IS NOT NULL AS polls
  FROM sse_pg.live_servers() s
  LEFT JOIN locks up ON up.classid = sse_pg.lock_class('server') AND up.key = s.id
 ORDER BY s.id
