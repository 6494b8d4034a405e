INSERT INTO sse_pg.servers (name, pid, version) VALUES (%s, %s, %s) RETURNING id
