-- The constraint that bounds a payload in the table.
SELECT pg_get_constraintdef(k.oid)
  FROM pg_constraint k
  JOIN pg_class c ON c.oid = k.conrelid AND c.relname = 'events'
  JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'sse_pg'
 WHERE k.conname = 'events_payload'
