-- name: subscribe
SELECT sse_pg.subscribe(%s, %s)

-- name: unsubscribe
SELECT sse_pg.unsubscribe(%s, %s)

-- name: subscriptions_of
SELECT channel, created_at FROM sse_pg.subscriptions WHERE user_id = %s ORDER BY channel

-- name: subscriptions_of_many
SELECT user_id, array_agg(channel) FROM sse_pg.subscriptions WHERE user_id = ANY(%s) GROUP BY user_id

-- name: disconnect
SELECT sse_pg.disconnect(%s)

-- name: control_key
-- The key of the digests in notifications on sse_pg_control.
SELECT control_key FROM sse_pg.log
