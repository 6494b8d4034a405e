SELECT high, gap_first, gap_last FROM sse_pg.visible_position()
