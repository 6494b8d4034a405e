SELECT sse_pg.unsubscribe(%s, %s)
