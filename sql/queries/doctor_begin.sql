-- A look must not wait long, and holds for its own transaction only: a pooler may give the connection to others.
SELECT set_config('statement_timeout', '10s', true), set_config('lock_timeout', '2s', true)
