SELECT settled_to, starts_at FROM sse_pg.epochs ORDER BY starts_at
