-- Three group roles, each with the fewest rights that its task needs: psql -f sql/roles.sql, as the owner of the schema
-- sse_pg. The roles are optional. If you use them, run this file again after each `sse-pg migrate`: it revokes the rights
-- that the roles had in the schema, and grants them again. Roles belong to the cluster and rights to the database, so run
-- it in each database. Creating a role needs CREATEROLE; if the three exist, being the owner is enough. Grant them to the
-- roles that log in: GRANT sse_pg_publisher TO shop;
--
--   sse_pg_publisher   may call publish(), publish_many(), finish() and position(), and publish the changes of its own tables
--   sse_pg_subscriber  may read every event, be a consumer, change subscriptions and call position()
--   sse_pg_server      has the rights that `sse-pg serve` and `sse-pg purge` need; it owns nothing

-- All of it is one statement: it succeeds, or it stops at the first error, changes nothing and says what to do.
DO $roles$
DECLARE
    owner   pg_catalog.regrole := (SELECT n.nspowner FROM pg_catalog.pg_namespace n WHERE n.nspname = 'sse_pg');
    missing text[] := ARRAY(
        SELECT w.name FROM pg_catalog.unnest(ARRAY['sse_pg_publisher', 'sse_pg_subscriber', 'sse_pg_server']) w(name)
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = w.name));
    wanted  text;
BEGIN
    IF owner IS NULL THEN
        RAISE EXCEPTION 'the schema sse_pg does not exist in the database %', pg_catalog.current_database()
            USING HINT = 'Run sse-pg migrate first.';
    ELSIF NOT pg_catalog.pg_has_role(owner, 'USAGE') THEN
        RAISE EXCEPTION 'only the owner of the schema sse_pg can grant rights in it'
            USING ERRCODE = 'insufficient_privilege', HINT = pg_catalog.format('Run this file as %s.', owner);
    END IF;
    FOREACH wanted IN ARRAY missing LOOP
        BEGIN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', wanted);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL;       -- another session has just made it, for another database
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'the role % may not create roles', current_user
                    USING ERRCODE = 'insufficient_privilege', HINT = 'An administrator has to run this, then run this file again: '
                        || 'CREATE ROLE ' || pg_catalog.array_to_string(missing, ' NOLOGIN; CREATE ROLE ') || ' NOLOGIN;';
        END;
    END LOOP;

    REVOKE ALL ON ALL TABLES IN SCHEMA sse_pg FROM sse_pg_publisher, sse_pg_subscriber, sse_pg_server;
    REVOKE ALL ON ALL SEQUENCES IN SCHEMA sse_pg FROM sse_pg_publisher, sse_pg_subscriber, sse_pg_server;
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA sse_pg FROM sse_pg_publisher, sse_pg_subscriber, sse_pg_server;
    REVOKE ALL ON SCHEMA sse_pg FROM sse_pg_publisher, sse_pg_subscriber, sse_pg_server;

    GRANT USAGE ON SCHEMA sse_pg TO sse_pg_publisher, sse_pg_subscriber, sse_pg_server;

    -- publish() runs with its owner's rights. A publisher needs no right to INSERT, and so cannot forge an id or a time. For
    -- raw INSERT and COPY add: GRANT INSERT (channel, event_type, payload, headers) ON sse_pg.events TO sse_pg_publisher;
    GRANT EXECUTE ON FUNCTION
        sse_pg.publish(text, text, jsonb, text, jsonb),
        sse_pg.publish(text, jsonb),
        sse_pg.publish(sse_pg.channel_of_json, json),
        sse_pg.publish(sse_pg.channel_of_json, text, json, text, jsonb),
        sse_pg.publish_many(text[], text[], text[], text[], text[]),
        sse_pg.finish(text),
        sse_pg.position()
    TO sse_pg_publisher;
    -- The events of a table's changes are rows that its owner inserts. So the owner of a published table needs that INSERT, too.
    GRANT EXECUTE ON FUNCTION
        sse_pg.publish_changes(regclass, text, text[], text, text[]),
        sse_pg.stop_publishing(regclass)
    TO sse_pg_publisher;
    GRANT SELECT ON sse_pg.published_tables TO sse_pg_publisher;

    -- A reader in SQL uses LISTEN sse_pg and calls read() or consume(), which run with their owner's rights.
    GRANT SELECT ON
        sse_pg.events, sse_pg.epochs, sse_pg.subscriptions, sse_pg.consumers, sse_pg.expired_channels, sse_pg.retention
    TO sse_pg_subscriber;
    GRANT SELECT (only_row, purged_to, settled_to, open_first, open_last, identity) ON sse_pg.log TO sse_pg_subscriber;
    GRANT EXECUTE ON FUNCTION
        sse_pg.position(),
        sse_pg.visible_position(),
        sse_pg.publishers(),
        sse_pg.last_id(),
        sse_pg.id_at(timestamptz),
        sse_pg.subscribe(text, text),
        sse_pg.unsubscribe(text, text),
        sse_pg.read(text, text[], integer),
        sse_pg.consume(text, text[], integer),
        sse_pg.has_work(text, text[]),
        sse_pg.drop_consumer(text),
        sse_pg.consumer_states(integer, integer)
    TO sse_pg_subscriber;

    -- The server reads the log. It makes its changes through functions, except for its own row in sse_pg.servers and its
    -- notes in sse_pg.log of what has been read. It can drop partitions only by purge().
    GRANT SELECT ON
        sse_pg.migrations, sse_pg.events, sse_pg.log, sse_pg.epochs, sse_pg.subscriptions, sse_pg.servers,
        sse_pg.published_tables,
        sse_pg.expired_channels, sse_pg.deletions, sse_pg.retention,
        sse_pg.stream_questions, sse_pg.stream_answers
    TO sse_pg_server;
    GRANT INSERT ON sse_pg.stream_answers TO sse_pg_server;
    GRANT UPDATE (settled_to, open_first, open_last) ON sse_pg.log TO sse_pg_server;
    GRANT INSERT (name, pid, version, migration, alive_until),
          UPDATE (active_connections, position, read_to, updated_at, alive_until), DELETE
        ON sse_pg.servers TO sse_pg_server;
    GRANT EXECUTE ON FUNCTION
        sse_pg.publish(text, text, jsonb, text, jsonb),
        sse_pg.publish(text, jsonb),
        sse_pg.publish(sse_pg.channel_of_json, json),
        sse_pg.publish(sse_pg.channel_of_json, text, json, text, jsonb),
        sse_pg.publish_many(text[], text[], text[], text[], text[]),
        sse_pg.finish(text),
        sse_pg.position(),
        sse_pg.visible_position(),
        sse_pg.publishers(),
        sse_pg.last_id(),
        sse_pg.read_above(bigint, bigint, bigint, bytea),
        sse_pg.read_open(bigint[], bigint[], bigint, bigint, bigint, boolean, bytea),
        sse_pg.read_marked(bigint[], bigint[], bigint, bigint, bigint, xid8, bytea),
        sse_pg.messages_from(xid8, integer),
        sse_pg.write_mark(),
        sse_pg.copy_identity(),
        sse_pg.copying_subscription(),
        sse_pg.read_page(text[], bigint[], bigint[], bigint, bigint, text, bigint, bigint),
        sse_pg.last_events(text[]),
        sse_pg.read_page_desc(text[], bigint[], bigint[], bigint, bigint, text, bigint, bigint),
        sse_pg.notifications_since(pg_snapshot, integer),
        sse_pg.check_epoch(),
        sse_pg.confirm_epochs(bigint, bigint[], bigint[]),
        sse_pg.expect_log(text),
        sse_pg.subscribe(text, text),
        sse_pg.unsubscribe(text, text),
        sse_pg.authorize(text, text, text),
        sse_pg.disconnect(text),
        sse_pg.ask_for_streams(text, integer),
        sse_pg.open_streams(bigint, interval),
        sse_pg.live_servers(),
        sse_pg.consumer_states(integer, integer),
        sse_pg.partitions(),
        sse_pg.make_partitions(integer, bigint),
        sse_pg.purge(bigint, interval, interval)
    TO sse_pg_server;
END $roles$;

-- List the rights that the roles have now.
SELECT r.rolname AS role, g.may, g.what
  FROM pg_catalog.pg_roles r
 CROSS JOIN LATERAL (
     SELECT 'EXECUTE' AS may, p.oid::pg_catalog.regprocedure::text AS what
       FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a
      WHERE p.pronamespace = 'sse_pg'::pg_catalog.regnamespace AND a.grantee = r.oid
     UNION ALL
     SELECT pg_catalog.string_agg(a.privilege_type, ', ' ORDER BY a.privilege_type), c.oid::pg_catalog.regclass::text
       FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a
      WHERE c.relnamespace = 'sse_pg'::pg_catalog.regnamespace AND a.grantee = r.oid
      GROUP BY c.oid
     UNION ALL
     SELECT a.privilege_type, c.oid::pg_catalog.regclass || ' ('
            || pg_catalog.string_agg(t.attname, ', ' ORDER BY t.attnum) || ')'
       FROM pg_catalog.pg_class c
       JOIN pg_catalog.pg_attribute t ON t.attrelid = c.oid
      CROSS JOIN LATERAL pg_catalog.aclexplode(t.attacl) a
      WHERE c.relnamespace = 'sse_pg'::pg_catalog.regnamespace AND a.grantee = r.oid
      GROUP BY c.oid, a.privilege_type) g
 WHERE r.rolname IN ('sse_pg_publisher', 'sse_pg_subscriber', 'sse_pg_server')
 ORDER BY 1, 2, 3;
