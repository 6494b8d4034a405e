-- name: testing_empty
-- Takes out everything that a test has left, as the owner of the schema. What is not there is not touched: deleting from
-- an empty table would notify the servers.
WITH events AS (DELETE FROM sse_pg.events RETURNING 1),
     keys AS (DELETE FROM sse_pg.idempotency_keys),
     consumers AS (DELETE FROM sse_pg.consumer_cursors),
     kept AS (DELETE FROM sse_pg.kept_channels),
     subscriptions AS (DELETE FROM sse_pg.subscriptions WHERE EXISTS (SELECT FROM sse_pg.subscriptions))
SELECT count(*) FROM events

-- name: testing_position
SELECT sse_pg.position()

-- name: testing_publish
SELECT sse_pg.publish(%s, %s, %s::jsonb)

-- name: testing_published
-- The payload as text: Django and others give a jsonb back in their own way.
SELECT id, channel, event_type, payload::text, headers::text FROM sse_pg.events WHERE channel = %s ORDER BY id
