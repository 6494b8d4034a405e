-- What the tail has not read: the open ids below, and what lies above the last id seen. One snapshot for both, so that the
-- events of one transaction stay in order; ascending, so that a read that is cut off is a prefix.
SELECT id, channel, event_type, payload, created_at FROM (
    SELECT e.id, e.channel, e.event_type, e.payload::text AS payload, e.created_at
      FROM unnest(%(first)s::bigint[], %(last)s::bigint[]) AS g(first, last)
     CROSS JOIN LATERAL (
         SELECT * FROM sse_pg.events e
          WHERE e.id BETWEEN g.first AND g.last ORDER BY e.id LIMIT %(limit)s) e
    UNION ALL
    (SELECT e.id, e.channel, e.event_type, e.payload::text, e.created_at
       FROM sse_pg.events e
      WHERE e.id > %(seen)s ORDER BY e.id LIMIT %(limit)s)
) read ORDER BY id LIMIT %(limit)s
