-- name: page
SELECT purged_to, expired_to, id, channel, event_type, payload, created_at, headers
  FROM sse_pg.read_page(
      %(channels)s, %(first)s, %(last)s, %(least)s, %(most)s, %(event_type)s, %(limit)s, %(octets)s)

-- name: page_desc
SELECT purged_to, expired_to, id, channel, event_type, payload, created_at, headers
  FROM sse_pg.read_page_desc(
      %(channels)s, %(first)s, %(last)s, %(least)s, %(most)s, %(event_type)s, %(limit)s, %(octets)s)

-- name: last_events
SELECT channel, id, event_type FROM sse_pg.last_events(%s)

-- name: plan_once
-- Sets for the rest of the transaction how these statements are planned: as read_page() is, for the same reasons.
SELECT set_config('plan_cache_mode', 'force_generic_plan', true),
       set_config('enable_sort', 'off', true),
       set_config('enable_incremental_sort', 'off', true),
       set_config('enable_seqscan', 'off', true),
       set_config('enable_bitmapscan', 'off', true),
       set_config('jit', 'off', true)

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

-- name: newest
-- The ids of the newest events of each channel within these ranges, at most so many of each. There is at least one row, so
-- that it can say up to which id events of the channels were deleted because of their own retention.
SELECT coalesce((SELECT max(x.up_to) FROM sse_pg.expired_channels x WHERE x.channel = ANY (%(all)s::text[])), 0), n.*
  FROM (SELECT) one
  LEFT JOIN LATERAL (
      SELECT c.channel, t.id
        FROM unnest(%(channels)s::text[], %(most_of)s::integer[]) AS c(channel, most)
       CROSS JOIN LATERAL (
           SELECT e.id
             FROM unnest(%(first)s::bigint[], %(last)s::bigint[]) AS r(first, last)
            CROSS JOIN LATERAL (
                SELECT e.id FROM sse_pg.events e
                 WHERE (e.channel, e.id) >= (c.channel, r.first) AND (e.channel, e.id) <= (c.channel, r.last)
                   AND e.id BETWEEN %(least)s AND %(most)s
                 ORDER BY e.channel DESC, e.id DESC LIMIT c.most) e
            ORDER BY e.id DESC LIMIT c.most) t) n ON true
 ORDER BY n.id DESC

-- name: deletions
-- What was deleted row by row in transactions that had not ended at the time of an earlier call, and the oldest transaction
-- that has not ended now. A transaction's rows become visible when it ends, in whichever order.
SELECT pg_snapshot_xmin(pg_current_snapshot())::text, d.channel, d.first_id, d.last_id, d.expired
  FROM (SELECT) one
  LEFT JOIN sse_pg.deletions d ON d.transaction >= %s::text::xid8

-- name: gone
-- Which of these events are no longer in the log although it is not purged up to there.
SELECT log.purged_to, g.id
  FROM sse_pg.log
  LEFT JOIN LATERAL (
      SELECT i.id FROM unnest(%(ids)s::bigint[]) AS i(id)
       WHERE i.id > log.purged_to AND NOT EXISTS (SELECT FROM sse_pg.events e WHERE e.id = i.id)) g ON true

-- name: visible_position
SELECT high, gap_first, gap_last FROM sse_pg.visible_position()

-- name: last_id
SELECT sse_pg.last_id()

-- name: ping
-- Reads nothing, and fails if this role may not read the tables that requests read.
SELECT FROM sse_pg.events, sse_pg.log, sse_pg.epochs, sse_pg.subscriptions, sse_pg.servers, sse_pg.expired_channels
 WHERE false

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
