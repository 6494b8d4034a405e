-- publish_many.sql for events with keys. A key that another transaction holds is not waited for longer than `wait`; the
-- keys depend on the setting so that it is there before they are looked at. It ends with the statement's transaction.
SELECT p.id, p.created_at
  FROM set_config('lock_timeout', %(wait)s, true) AS s(wait)
 CROSS JOIN LATERAL sse_pg.publish_many(
      string_to_array(%(channels)s, E'\n'),
      string_to_array(%(event_types)s, E'\n'),
      string_to_array(%(payloads)s, E'\x01'),
      CASE WHEN s.wait <> '' THEN %(keys)b::text[] END) p
