-- The triggers that the bus lives from and that do not fire, each with the statement that makes it fire again. The
-- definitions are those of sql/schema.sql.
WITH needed(on_table, name, definition) AS (VALUES
    ('events', 'announce', 'BEFORE INSERT ON sse_pg.events FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.announce()'),
    ('events', 'close_window', 'AFTER INSERT ON sse_pg.events FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.close_window()'),
    ('subscriptions', 'added', 'AFTER INSERT ON sse_pg.subscriptions REFERENCING NEW TABLE AS changed '
        'FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed()'),
    ('subscriptions', 'removed', 'AFTER DELETE ON sse_pg.subscriptions REFERENCING OLD TABLE AS changed '
        'FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed()'),
    ('subscriptions', 'moved_to', 'AFTER UPDATE ON sse_pg.subscriptions REFERENCING NEW TABLE AS changed '
        'FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed()'),
    ('subscriptions', 'moved_from', 'AFTER UPDATE ON sse_pg.subscriptions REFERENCING OLD TABLE AS changed '
        'FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed()'),
    ('subscriptions', 'emptied', 'AFTER TRUNCATE ON sse_pg.subscriptions '
        'FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed()'))
SELECT w.name || ' on sse_pg.' || w.on_table AS which,
       CASE WHEN t.oid IS NULL THEN 'is missing' WHEN t.tgenabled = 'D' THEN 'is disabled'
            ELSE 'fires on replicas only' END AS how,
       CASE WHEN t.oid IS NULL THEN format('CREATE TRIGGER %I %s', w.name, w.definition)
            ELSE format('ALTER TABLE sse_pg.%I ENABLE TRIGGER %I', w.on_table, w.name) END AS mend
  FROM needed w
  JOIN pg_namespace n ON n.nspname = 'sse_pg'
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.on_table
  LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = w.name AND NOT t.tgisinternal
 WHERE t.oid IS NULL OR t.tgenabled NOT IN ('O', 'A')
 ORDER BY 1
