-- How the ids are drawn, and whether the sequence is behind the table.
SELECT s.seqcache AS cache, s.seqincrement AS increment, s.seqcycle AS cycle, a.attidentity::text AS identity,
       sse_pg.last_id() AS last, coalesce((SELECT max(e.id) FROM sse_pg.events e), 0) AS highest,
       'ALTER SEQUENCE sse_pg.events_id_seq CACHE 1 INCREMENT 1 NO CYCLE' AS mend_sequence,
       'ALTER TABLE sse_pg.events ALTER COLUMN id SET GENERATED ALWAYS' AS mend_identity,
       'SELECT setval(''sse_pg.events_id_seq'', max(id)) FROM sse_pg.events' AS mend_last
  FROM pg_sequence s
  JOIN pg_class q ON q.oid = s.seqrelid AND q.relname = 'events_id_seq'
  JOIN pg_namespace n ON n.oid = q.relnamespace AND n.nspname = 'sse_pg'
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'events'
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'id'
