SELECT partitions, events, bytes, keys, purged_to, state FROM sse_pg.purge(%(keep_events)s, %(keep)s, %(keep_keys)s)
