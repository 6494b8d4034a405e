SELECT sse_pg.subscribe(%s, %s)
