LISTEN sse_pg; LISTEN sse_pg_control
