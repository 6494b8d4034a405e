-- Settings of the LISTEN connection: a lock is taken at once or something is wrong; nothing ends it for idling. It makes
-- the same few reads over and over, and with many partitions to plan one takes longer than to run it.
SELECT set_config('lock_timeout', '10s', false), set_config('statement_timeout', '30s', false),
       set_config('idle_session_timeout', '0', false), set_config('plan_cache_mode', 'force_generic_plan', false)
