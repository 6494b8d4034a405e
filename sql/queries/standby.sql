-- name: marked_read
-- The read of a tail that goes by the mark.
SELECT id, channel, event_type, payload, created_at, headers
  FROM sse_pg.read_marked(%(first)s, %(last)s, %(seen)s, %(limit)s, %(octets)s, %(since)s::text::xid8, %(followed)s)

-- name: mark
-- What is certain in every snapshot from now on: the mark, and the events that are visible although the mark does not know
-- of them yet, in its open ranges and above it. There are few, unless nobody has written the mark for some time.
SELECT l.settled_to, l.open_first, l.open_last,
       ARRAY(SELECT e.id FROM unnest(l.open_first || (l.settled_to + 1), l.open_last || 9223372036854775807) o(first, last)
              CROSS JOIN LATERAL (
                  SELECT i.id FROM sse_pg.events i WHERE i.id BETWEEN o.first AND o.last ORDER BY i.id LIMIT %(most)s) e
              LIMIT %(most)s)
  FROM sse_pg.log l

-- name: expect_copy
-- Which log a connection to a standby leads to. The parameter is that of expect_log.
SELECT sse_pg.copy_identity() WHERE %s::text IS NULL OR true

-- name: noted_identity
-- Which log a server on the primary has noted this one to be. It changes when a standby is promoted.
SELECT l.identity FROM sse_pg.log l

-- name: control_listen
-- A server that reads from a standby LISTENs on the primary to what concerns access, and to nothing else.
LISTEN sse_pg_control

-- name: standby_is_read
-- Shared, so it waits only for a server that tries it this moment (look_around).
SELECT pg_advisory_lock_shared(sse_pg.lock_class('tail'), 4)

-- name: copying_subscription
SELECT sse_pg.copying_subscription()

-- name: primary_look
-- The last id drawn, and up to where the WAL is written: everything that is visible now is below that.
SELECT sse_pg.last_id(), pg_current_wal_insert_lsn() - '0/0'::pg_lsn

-- name: read_elsewhere
-- The highest id that another server, which is up, has handed on.
SELECT coalesce(max(s.position), 0) FROM sse_pg.live_servers() s WHERE s.id IS DISTINCT FROM %s

-- name: write_mark
SELECT sse_pg.write_mark()
