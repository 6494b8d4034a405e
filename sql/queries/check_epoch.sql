SELECT sse_pg.check_epoch()
