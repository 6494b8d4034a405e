-- name: overview_tables
-- Published tables, those with a problem first.
SELECT p.source::text, p.channel, p.operations, p.owner, left(p.problem, %(most_characters)s)
  FROM sse_pg.published_tables p
 ORDER BY p.problem IS NULL, p.source::text
 LIMIT %(most)s

-- name: overview_consumers
-- Named consumers, the longest lag first. A consumer may have thousands of channels; the first of them are enough here.
SELECT s.name, s.channels[1:%(most_channels)s], cardinality(s.channels), s.lag, s.oldest_at, s.updated_at
  FROM sse_pg.consumer_states(%(most)s, %(most_events)s) s
 ORDER BY s.lag DESC, s.name

-- name: overview_kept
-- Channels with a retention of their own, those first that should have been cleared of events long ago.
SELECT r.pattern, extract(epoch FROM r.period)::float8 / 3600, r.expired_to,
       coalesce(extract(epoch FROM r.late), 0)::float8
  FROM sse_pg.retention r
 ORDER BY r.late DESC NULLS LAST, r.pattern
 LIMIT %(most)s
