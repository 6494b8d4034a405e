-- Settings of the LISTEN connection: a lock is taken at once or something is wrong; nothing ends it for idling.
SELECT set_config('lock_timeout', '10s', false), set_config('statement_timeout', '30s', false),
       set_config('idle_session_timeout', '0', false)
