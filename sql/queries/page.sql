-- A page of stored events: of these channels, within these ranges of ids, ascending. Always a row, with purged_to, so
-- that what was purged and what is there come from one snapshot.
--
-- Rows are compared as pairs, and ordered by both columns, so that the index on (channel, id) alone has the order. With
-- `channel =` that of the primary key has it, too; the planner then takes it where channels look common, and reads the
-- whole log for one that has few events. least and most bound the ranges: as parameters of the statement they say before it
-- begins which partitions to leave out.
SELECT log.purged_to, e.id, e.channel, e.event_type, e.payload::text, e.created_at
  FROM sse_pg.log
  LEFT JOIN LATERAL (
      SELECT e.*
        FROM unnest(%(channels)s::text[]) AS c(channel)
       CROSS JOIN unnest(%(first)s::bigint[], %(last)s::bigint[]) AS r(first, last)
       CROSS JOIN LATERAL (
           SELECT * FROM sse_pg.events e
            WHERE (e.channel, e.id) >= (c.channel, r.first) AND (e.channel, e.id) <= (c.channel, r.last)
              AND e.id BETWEEN %(least)s AND %(most)s
              AND (%(event_type)s::text IS NULL OR e.event_type = %(event_type)s)
            ORDER BY e.channel, e.id LIMIT %(limit)s) e
       ORDER BY e.id LIMIT %(limit)s) e ON true
 ORDER BY e.id
