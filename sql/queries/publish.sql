-- name: publish_many
-- Each list comes as one text: joined and split faster than an array is written and read. None of the texts can hold its
-- separator: a channel and an event type have no line break, and JSON has no control character but white space.
SELECT id, created_at
  FROM sse_pg.publish_many(
      string_to_array(%(channels)s, E'\n'),
      string_to_array(%(event_types)s, E'\n'),
      string_to_array(%(payloads)s, E'\x01'))

-- name: publish_keyed
-- publish_many for events with keys. A key that another transaction holds is not waited for longer than `wait`; the
-- keys depend on the setting so that it is there before they are looked at. It ends with the statement's transaction.
SELECT p.id, p.created_at
  FROM set_config('lock_timeout', %(wait)s, true) AS s(wait)
 CROSS JOIN LATERAL sse_pg.publish_many(
      string_to_array(%(channels)s, E'\n'),
      string_to_array(%(event_types)s, E'\n'),
      string_to_array(%(payloads)s, E'\x01'),
      CASE WHEN s.wait <> '' THEN %(keys)b::text[] END) p

-- name: check_payloads
-- Fails where a text is not JSON that the table takes. The limit is that of the constraint events_payload.
SELECT 1 / (coalesce(max(octet_length(p::jsonb::text)), 0) <= 1048576)::integer FROM unnest(%s::text[]) p
