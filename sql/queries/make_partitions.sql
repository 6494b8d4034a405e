SELECT sse_pg.make_partitions(%(ahead)s, %(size)s)
