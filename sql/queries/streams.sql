-- name: streams_ask
SELECT sse_pg.ask_for_streams(%s, %s)

-- name: streams_asked
-- The questions that a server has to answer.
SELECT q.id, q.user_id, q.most
  FROM sse_pg.stream_questions q
 WHERE q.asked_at > clock_timestamp() - interval '1 minute'
   AND NOT EXISTS (SELECT FROM sse_pg.stream_answers a WHERE a.question = q.id AND a.server = %s)
 ORDER BY q.id

-- name: streams_answer
INSERT INTO sse_pg.stream_answers (question, server, streams, listed) VALUES (%s, %s, %s, %s)

-- name: streams_silent
-- Whether a server has not answered a question yet.
SELECT EXISTS (
    SELECT FROM sse_pg.live_servers() s
     WHERE NOT EXISTS (SELECT FROM sse_pg.stream_answers a WHERE a.question = %s AND a.server = s.id))

-- name: streams_answers
-- The servers that are up, and what each has answered; NULL if nothing.
SELECT s.id, s.name, s.pid, s.active_connections, a.streams, a.listed
  FROM sse_pg.live_servers() s
  LEFT JOIN sse_pg.stream_answers a ON a.question = %s AND a.server = s.id
 ORDER BY s.id
