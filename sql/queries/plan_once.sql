-- For the rest of the transaction, prepared statements keep the plan they have. With dozens of partitions, to plan a page
-- takes five times as long as to read it.
SELECT set_config('plan_cache_mode', 'force_generic_plan', true)
