-- Rows of servers that died; a fresh row whose lock is still to come is left alone.
DELETE FROM sse_pg.servers s
 WHERE s.updated_at < now() - interval '1 minute'
   AND NOT EXISTS (SELECT FROM sse_pg.live_servers() l WHERE l.id = s.id)
