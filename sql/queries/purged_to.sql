SELECT purged_to FROM sse_pg.log
