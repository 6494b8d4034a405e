SELECT last, least_bound, window_first, window_last FROM sse_pg.publishers()
