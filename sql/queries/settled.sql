UPDATE sse_pg.log SET settled_to = %(floor)s WHERE settled_to < %(floor)s
