UPDATE sse_pg.servers SET active_connections = %s, updated_at = now() WHERE id = %s
