SELECT pg_advisory_xact_lock(1936941620, 1)
