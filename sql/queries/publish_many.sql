SELECT id, created_at FROM sse_pg.publish_many(%(channels)s, %(event_types)s, %(payloads)s, %(keys)s)
