UPDATE sse_pg.servers SET active_connections = %s, position = %s, updated_at = now() WHERE id = %s
