-- name: plan_once
-- Sets how pages are planned for the rest of the transaction. Prepared statements keep their plan: with dozens of
-- partitions, planning a page takes five times as long as reading it. A plan that is kept must be right for channels with
-- many events and with few, for a log that was empty when the plan was made, and without statistics. There is one such
-- plan: index scans in the order of (channel, id), one per partition. The other plans are forbidden: without this, the
-- planner was seen to read and sort a whole log for fifty events. JIT is off because, before PostgreSQL 18, a step that is
-- forbidden but necessary (the sort of the page itself) has such a high cost that PostgreSQL would compile the query.
SELECT set_config('plan_cache_mode', 'force_generic_plan', true),
       set_config('enable_sort', 'off', true),
       set_config('enable_incremental_sort', 'off', true),
       set_config('enable_seqscan', 'off', true),
       set_config('enable_bitmapscan', 'off', true),
       set_config('jit', 'off', true)

-- name: page
-- A page of stored events of these channels, within these ranges of ids, ascending. There is always at least one row, with
-- purged_to, so that purged_to and the events come from one snapshot.
--
-- Rows are compared as pairs, and ordered by both columns, so that only the index on (channel, id) has the order. With
-- `channel =` the primary key's index would have it too. The planner would use that index for channels that look frequent,
-- and read the whole log for a channel with few events. least and most bound the ranges: because they are parameters of the
-- statement, PostgreSQL can leave out partitions before it begins.
SELECT log.purged_to, e.id, e.channel, e.event_type, e.payload::text, e.created_at, e.headers::text
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
SELECT log.purged_to, e.id, e.channel, e.event_type, e.payload::text, e.created_at, e.headers::text
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
-- How far the read of a page of one event type may go: the lowest id that has `events` events before it in one of the
-- channels and ranges. NULL if each of them has fewer. If the table has been vacuumed, this reads only the index.
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
-- Facts about the log, without scanning it: the oldest id comes from the ends of the partitions' indexes.
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
