-- name: publish_many
-- Each list comes as one text, which is joined and split faster than an array is written and read. No text can contain its
-- separator: a channel and an event type have no line break, and JSON has no control character except white space. Headers
-- are NULL if no event has any; an event without headers is an empty text.
SELECT id, created_at
  FROM sse_pg.publish_many(
      string_to_array(%(channels)s, E'\n'),
      string_to_array(%(event_types)s, E'\n'),
      string_to_array(%(payloads)s, E'\x01'),
      headers => string_to_array(%(headers)s, E'\x01', ''))

-- name: publish_keyed
-- publish_many for events with keys. It waits at most `lock_timeout` for another transaction that holds a key. The keys
-- depend on the setting, so that the setting is in force before they are looked at. It ends with the transaction.
SELECT p.id, p.created_at
  FROM set_config('lock_timeout', %(lock_timeout)s, true) AS s(lock_timeout)
 CROSS JOIN LATERAL sse_pg.publish_many(
      string_to_array(%(channels)s, E'\n'),
      string_to_array(%(event_types)s, E'\n'),
      string_to_array(%(payloads)s, E'\x01'),
      CASE WHEN s.lock_timeout <> '' THEN %(keys)b::text[] END,
      string_to_array(%(headers)s, E'\x01', '')) p

-- name: finish
SELECT sse_pg.finish(%s)
