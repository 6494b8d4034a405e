-- name: plan_once
-- For the rest of the transaction, how pages are planned. Prepared statements keep the plan they have: with dozens of
-- partitions, to plan a page takes five times as long as to read it. A plan that is kept must be right for channels with
-- many events and with few, for a log that was empty when it was made, and without statistics. There is one such plan,
-- index scans in the order of (channel, id), one a partition; the others are forbidden: without this the planner was seen to
-- read and sort a whole log for fifty events. Before PostgreSQL 18 what is forbidden and needed nevertheless (the sort of the
-- page itself) counts as very expensive, for which it would compile the query.
SELECT set_config('plan_cache_mode', 'force_generic_plan', true),
       set_config('enable_sort', 'off', true),
       set_config('enable_incremental_sort', 'off', true),
       set_config('enable_seqscan', 'off', true),
       set_config('enable_bitmapscan', 'off', true),
       set_config('jit', 'off', true)

-- name: page
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

-- name: page_desc
-- The same from the newest down.
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
            ORDER BY e.channel DESC, e.id DESC LIMIT %(limit)s) e
       ORDER BY e.id DESC LIMIT %(limit)s) e ON true
 ORDER BY e.id DESC

-- name: page_reach
-- How far a page of one event type may look: the least id before which, for one of the channels and ranges, `events` lie.
-- NULL where there are fewer in each. From the index alone, as far as the table was vacuumed.
SELECT min(e.id)
  FROM unnest(%(channels)s::text[]) AS c(channel)
 CROSS JOIN unnest(%(first)s::bigint[], %(last)s::bigint[]) AS r(first, last)
 CROSS JOIN LATERAL (
     SELECT e.id FROM sse_pg.events e
      WHERE (e.channel, e.id) >= (c.channel, r.first) AND (e.channel, e.id) <= (c.channel, r.last)
        AND e.id BETWEEN %(least)s AND %(most)s
      ORDER BY e.channel, e.id OFFSET %(events)s LIMIT 1) e

-- name: page_reach_desc
-- The same from the newest down.
SELECT max(e.id)
  FROM unnest(%(channels)s::text[]) AS c(channel)
 CROSS JOIN unnest(%(first)s::bigint[], %(last)s::bigint[]) AS r(first, last)
 CROSS JOIN LATERAL (
     SELECT e.id FROM sse_pg.events e
      WHERE (e.channel, e.id) >= (c.channel, r.first) AND (e.channel, e.id) <= (c.channel, r.last)
        AND e.id BETWEEN %(least)s AND %(most)s
      ORDER BY e.channel DESC, e.id DESC OFFSET %(events)s LIMIT 1) e

-- name: visible_position
SELECT high, gap_first, gap_last FROM sse_pg.visible_position()

-- name: last_id
SELECT sse_pg.last_id()

-- name: ping
-- Reads nothing, and fails if this role may not read the tables that requests read.
SELECT FROM sse_pg.events, sse_pg.log, sse_pg.epochs, sse_pg.subscriptions, sse_pg.servers WHERE false

-- name: stats
-- The log at a glance, without a scan of it: the oldest id comes from the ends of the partitions' indexes.
SELECT current_setting('server_version') AS version,
       sse_pg.last_id() AS newest,
       (SELECT min(e.id) FROM sse_pg.events e) AS oldest,
       l.purged_to,
       l.settled_to,
       (SELECT count(*) FROM sse_pg.partitions()) AS partitions,
       (SELECT count(DISTINCT k.virtualtransaction) FROM pg_locks k
         WHERE k.locktype = 'advisory' AND k.objsubid = 2 AND k.granted
           AND k.classid IN (sse_pg.lock_class('first_low'), sse_pg.lock_class('window_low'))
           AND k.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())) AS publishers
  FROM sse_pg.log l
