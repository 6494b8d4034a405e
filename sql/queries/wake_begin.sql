SELECT pg_advisory_lock_shared(1936941618, 2)
