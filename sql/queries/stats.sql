-- The log at a glance, without a scan of it: the oldest id comes from the ends of the partitions' indexes.
SELECT current_setting('server_version') AS version,
       sse_pg.last_id() AS newest,
       (SELECT min(e.id) FROM sse_pg.events e) AS oldest,
       l.purged_to,
       l.settled_to,
       (SELECT count(*) FROM sse_pg.partitions()) AS partitions,
       (SELECT count(DISTINCT k.virtualtransaction) FROM pg_locks k
         WHERE k.locktype = 'advisory' AND k.classid IN (1936941617, 1936941623) AND k.objsubid = 2 AND k.granted
           AND k.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())) AS publishers
  FROM sse_pg.log l
