SELECT pg_advisory_unlock_shared(1936941618, 2)
