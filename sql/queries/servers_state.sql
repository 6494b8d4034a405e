-- The servers that are up, and what their LISTEN connections show to publishers: "asleep", "awake", or for a moment both.
WITH locks AS MATERIALIZED (
    SELECT k.pid, k.classid, k.objid::bigint AS key FROM pg_locks k
     WHERE k.locktype = 'advisory' AND k.classid IN (1936941618, 1936941619) AND k.objsubid = 2 AND k.granted
       AND k.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
SELECT s.id, s.name, s.pid, s.version, s.started_at, s.active_connections, s.position,
       EXISTS (SELECT FROM locks b WHERE b.pid = up.pid AND b.classid = 1936941618 AND b.key = 1) AS asleep,
       EXISTS (SELECT FROM locks b WHERE b.pid = up.pid AND b.classid = 1936941618 AND b.key = 2) AS awake
  FROM sse_pg.live_servers() s
  JOIN locks up ON up.classid = 1936941619 AND up.key = s.id
 ORDER BY s.id
