SELECT id, name, pid, version, started_at, active_connections FROM sse_pg.live_servers()
