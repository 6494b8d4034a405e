-- From the catalogs: a role without USAGE can ask, too.
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = 'sse_pg' AND c.relname = 'migrations'),
       coalesce((SELECT has_schema_privilege(n.oid, 'USAGE') FROM pg_namespace n WHERE n.nspname = 'sse_pg'), false)
