SELECT user_id, array_agg(channel) FROM sse_pg.subscriptions WHERE user_id = ANY(%s) GROUP BY user_id
