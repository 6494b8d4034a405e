-- How much of the log there is, and whether somebody makes and drops partitions. `kept` counts ids without the jumps
-- where epochs begin. `oldest` is the age in seconds of the newest event of the oldest partition that is full.
WITH facts AS MATERIALIZED (
    SELECT sse_pg.last_id() AS last, l.purged_to FROM sse_pg.log l),
parts AS MATERIALIZED (
    SELECT count(*) AS count, min(p.last_id) AS first_end, coalesce(max(p.last_id), 0) AS top FROM sse_pg.partitions() p)
SELECT f.last, p.count AS partitions, greatest(p.top - f.last, 0) AS room,
       greatest(f.last - f.purged_to - (SELECT coalesce(sum(e.starts_at - greatest(e.settled_to, f.purged_to)), 0)
                                          FROM sse_pg.epochs e WHERE e.starts_at > f.purged_to), 0)::bigint AS kept,
       EXISTS (SELECT FROM sse_pg.events e WHERE e.id > greatest(p.top, f.purged_to)) AS in_default,
       (SELECT extract(epoch FROM clock_timestamp() - n.created_at)::float8
          FROM (SELECT e.created_at FROM sse_pg.events e
                 WHERE e.id <= p.first_end AND p.first_end < f.last ORDER BY e.id DESC LIMIT 1) n) AS oldest,
       'SELECT sse_pg.make_partitions()' AS mend_partitions
  FROM facts f CROSS JOIN parts p
