-- name: purge
SELECT partitions, events, bytes, keys, purged_to, state FROM sse_pg.purge(%(keep_events)s, %(keep)s, %(keep_keys)s)

-- name: make_partitions
SELECT sse_pg.make_partitions(%(ahead)s, %(size)s)

-- name: partition_room
-- The last id drawn, and how many ids above it have a partition.
SELECT l.last, greatest(coalesce(max(p.last_id), 0) - l.last, 0)
  FROM (SELECT sse_pg.last_id() AS last) l LEFT JOIN sse_pg.partitions() p ON true
 GROUP BY l.last
