SELECT last, least_bound FROM sse_pg.publishers()
