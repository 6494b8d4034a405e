-- name: purge
SELECT partitions, events, bytes, keys, purged_to, state, deleted, behind
  FROM sse_pg.purge(%(keep_events)s, %(keep)s, %(keep_keys)s)

-- name: consumers
-- How many named consumers there are, the longest lag, and how near the retention is to what they lack: the largest
-- number of ids, and the age in seconds of the oldest event. The metrics are made of it; names are not among them.
SELECT count(*), coalesce(max(s.lag), 0), coalesce(max(s.ids_behind), 0),
       coalesce(extract(epoch FROM clock_timestamp() - min(s.oldest_at)), 0)::float8
  FROM sse_pg.consumer_states() s

-- name: log_size
-- What the log takes on disk, its indexes included, and when its oldest event was published: as Unix time, and how many
-- seconds ago by the clock of the database. Both are NULL if there is none.
SELECT (SELECT coalesce(sum(pg_total_relation_size(t.relid)), 0)::bigint FROM pg_partition_tree('sse_pg.events') t
         WHERE t.isleaf),
       extract(epoch FROM o.created_at)::float8, extract(epoch FROM clock_timestamp() - o.created_at)::float8
  FROM (SELECT) one
  LEFT JOIN LATERAL (SELECT e.created_at FROM sse_pg.events e ORDER BY e.id LIMIT 1) o ON true

-- name: kept_late
-- Whether channels have their own retention, and for how many seconds an event of one should have been deleted, at most.
SELECT count(*) > 0, coalesce(extract(epoch FROM max(r.late)), 0)::float8 FROM sse_pg.retention r

-- name: erase
SELECT sse_pg.erase(%(channel)s, %(before)s, %(containing)s)

-- name: erase_count
-- How many events erase() would find.
SELECT count(*) FROM sse_pg.events e
 WHERE e.channel = %(channel)s AND (%(before)s::timestamptz = 'infinity' OR e.created_at < %(before)s)
   AND (%(containing)s::jsonb IS NULL OR e.payload @> %(containing)s)

-- name: erase_session
-- Counting, erasing and VACUUM may read most of the log.
SELECT set_config('statement_timeout', '0', true)

-- name: erase_vacuums
-- A VACUUM for each partition in the ranges of the last hour's deletions of a channel. Without TRUNCATE it takes no lock that
-- excludes publishers or readers. The indexes have the names of the channels, so they are cleaned however few rows are dead.
SELECT DISTINCT format('VACUUM (TRUNCATE false, INDEX_CLEANUP on) %%s', p.part)
  FROM sse_pg.deletions d
 CROSS JOIN (SELECT n.part, n.first_id, n.last_id FROM sse_pg.partitions() n
              UNION ALL
             SELECT 'sse_pg.events_default', coalesce(max(n.last_id), -1) + 1, 9223372036854775807
               FROM sse_pg.partitions() n) p
 WHERE d.channel = sse_pg.digest(%(channel)s) AND d.deleted_at > now() - interval '1 hour'
   AND p.first_id <= d.last_id AND p.last_id >= d.first_id
 ORDER BY 1

-- name: make_partitions
SELECT sse_pg.make_partitions(%(ahead)s, %(size)s)

-- name: partition_room
-- The last id drawn, and how many ids above it have a partition.
SELECT l.last, greatest(coalesce(max(p.last_id), 0) - l.last, 0)
  FROM (SELECT sse_pg.last_id() AS last) l LEFT JOIN sse_pg.partitions() p ON true
 GROUP BY l.last
