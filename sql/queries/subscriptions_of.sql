SELECT channel, created_at FROM sse_pg.subscriptions WHERE user_id = %s ORDER BY channel
