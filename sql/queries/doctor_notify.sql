SELECT pg_notify('sse_pg_doctor', %s)
