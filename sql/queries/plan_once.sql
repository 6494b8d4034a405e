-- For the rest of the transaction, how pages are planned. Prepared statements keep the plan they have: with dozens of
-- partitions, to plan a page takes five times as long as to read it. A plan that is kept must be right for channels with
-- many events and with few, for a log that was empty when it was made, and without statistics. There is one such plan,
-- index scans in the order of (channel, id), one a partition; the others are forbidden: without this the planner was seen to
-- read and sort a whole log for fifty events. Before PostgreSQL 18 what is forbidden and needed nevertheless (the sort of the
-- page itself) counts as very dear, for which it would compile the query.
SELECT set_config('plan_cache_mode', 'force_generic_plan', true),
       set_config('enable_sort', 'off', true),
       set_config('enable_incremental_sort', 'off', true),
       set_config('enable_seqscan', 'off', true),
       set_config('enable_bitmapscan', 'off', true),
       set_config('jit', 'off', true)
