-- name: session_settings
-- The settings that the bus's statements and functions rely on, so that the settings of the database, of the role and of
-- libpq's environment make no difference. With `local` they apply to the rest of the transaction only. Names that this
-- release of PostgreSQL does not know are left out. With row_security = off, a policy that would hide events raises an
-- error. The timeouts, set if `limits` is true, end statements that the server no longer waits for. PostgreSQL ends the
-- session of a server that has vanished, and with it the locks that show that the server is up, after some ten seconds; the
-- default is that of the operating system, often two hours. Behind a pooler, the peer is the pooler, whose matter that is.
SELECT pg_catalog.set_config(s.name, s.value, %(local)s)
  FROM (VALUES ('client_encoding', 'UTF8'),
               ('standard_conforming_strings', 'on'),
               ('DateStyle', 'ISO'),
               ('IntervalStyle', 'postgres'),
               ('TimeZone', 'UTC'),
               ('bytea_output', 'hex'),
               ('extra_float_digits', '1'),
               ('array_nulls', 'on'),
               ('transform_null_equals', 'off'),
               ('search_path', 'pg_catalog, pg_temp'),
               ('row_security', 'off'),
               ('default_transaction_isolation', 'read committed'),
               ('statement_timeout', '28s'),
               ('lock_timeout', '0'),
               ('idle_in_transaction_session_timeout', '60s'),
               ('idle_session_timeout', '0'),
               ('transaction_timeout', '0'),
               ('tcp_keepalives_idle', '5'),
               ('tcp_keepalives_interval', '2'),
               ('tcp_keepalives_count', '3'),
               ('tcp_user_timeout', '10s')) AS s(name, value)
 WHERE pg_catalog.current_setting(s.name, true) IS NOT NULL
   AND (%(limits)s OR pg_catalog.strpos(s.name, '_timeout') OPERATOR(pg_catalog.=) 0)
   AND NOT (%(local)s AND pg_catalog.starts_with(s.name, 'tcp_'))

-- name: expect_log
SELECT sse_pg.expect_log(%s)

-- name: backend
SELECT pg_catalog.pg_backend_pid()
