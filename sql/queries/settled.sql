-- Note what this tail knows of the log, unless another knows more.
UPDATE sse_pg.log SET settled_to = %(high)s, open_first = %(first)s, open_last = %(last)s WHERE settled_to < %(high)s
