-- Each list comes as one text: joined and split faster than an array is written and read. None of the texts can hold its
-- separator: a channel and an event type have no line break, and JSON has no control character but white space.
SELECT id, created_at
  FROM sse_pg.publish_many(
      string_to_array(%(channels)s, E'\n'),
      string_to_array(%(event_types)s, E'\n'),
      string_to_array(%(payloads)s, E'\x01'))
