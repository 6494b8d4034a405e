-- name: purge
SELECT partitions, events, bytes, keys, purged_to, state, deleted, behind
  FROM sse_pg.purge(%(keep_events)s, %(keep)s, %(keep_keys)s)

-- name: consumers
-- How many named consumers there are, the longest lag, and how near the retention is to what they lack: the largest
-- number of ids, and the age in seconds of the oldest event. The metrics are made of it; names are not among them.
SELECT count(*), coalesce(max(s.lag), 0), coalesce(max(s.ids_behind), 0),
       coalesce(extract(epoch FROM clock_timestamp() - min(s.oldest_at)), 0)::float8
  FROM sse_pg.consumer_states() s

-- name: kept_late
-- Whether channels have their own retention, and for how many seconds an event of one should have been deleted, at most.
SELECT count(*) > 0, coalesce(extract(epoch FROM max(r.late)), 0)::float8 FROM sse_pg.retention r

-- name: make_partitions
SELECT sse_pg.make_partitions(%(ahead)s, %(size)s)

-- name: partition_room
-- The last id drawn, and how many ids above it have a partition.
SELECT l.last, greatest(coalesce(max(p.last_id), 0) - l.last, 0)
  FROM (SELECT sse_pg.last_id() AS last) l LEFT JOIN sse_pg.partitions() p ON true
 GROUP BY l.last
