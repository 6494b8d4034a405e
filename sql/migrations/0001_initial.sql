-- The first schema.

CREATE SCHEMA IF NOT EXISTS sse_pg;

-- The classes of the bus's advisory locks: the first of the two keys. The planner replaces a call with the number. An
-- unknown name raises an error. Returning NULL instead would mean that no lock is taken.
CREATE FUNCTION sse_pg.lock_class(name text) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE name
        WHEN 'tail'        THEN 1936941618     -- what the tails show publishers: 1 = one is asleep, 2 = one is awake
                                               -- 3 = the one that notes what is settled
                                               -- 4 = a server reads from a standby
        WHEN 'server'      THEN 1936941619     -- a server that is up; the second key is servers.id
        WHEN 'maintenance' THEN 1936941620     -- held while partitions are made or dropped, by one session at a time
        -- A publisher in flight; the second key is the low half of a bound of its ids. See announce().
        WHEN 'first_low'   THEN 1936941623     -- the lower bound, when the statement is its transaction's first write
        WHEN 'first_high'  THEN 1936941624     -- the matching upper bound; the statement is over
        WHEN 'window_low'  THEN 1936941617     -- the lower bound of a later statement
        WHEN 'window_high' THEN 1936941621     -- the matching upper bound
        WHEN 'window_open' THEN 1936941622     -- the newest lower bound will get no upper bound
        ELSE ('no lock class ' || name)::integer END;

-- The migrations that `sse-pg migrate` has applied.
CREATE TABLE sse_pg.migrations (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- The newest migration in this schema; each migration replaces the function. The table above has no rows after a truncation
-- or in a copy without data, and `sse-pg migrate` then fills it again up to this number.
CREATE FUNCTION sse_pg.schema_version() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 1;

-- ------------------------------------------------------------------ events

-- The rules for a row are functions, because PostgreSQL prepares the expression of a CHECK again for each statement, but
-- the expressions of a plpgsql function once per session. A CHECK runs with the search_path of the session that inserts:
-- pg_restore's is empty, and a user-defined operator must not replace one of these. So every name is written with its
-- schema. A SET clause would protect the names too, but costs as much as the check itself. E'' means the same for every
-- value of standard_conforming_strings.

-- A function of a CHECK returns true or raises an error that says the rule, in the words of sse_pg/core/names.py. The error
-- of a CHECK that is false would only say the name of the constraint.

-- White space, control characters, comma and star are not allowed in a channel's name, because they have a meaning in
-- URLs, in rules and on the wire.
CREATE FUNCTION sse_pg.check_channel(name text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF (pg_catalog.char_length(name) OPERATOR(pg_catalog.>=) 1
        AND pg_catalog.char_length(name) OPERATOR(pg_catalog.<=) 255
        AND name OPERATOR(pg_catalog.!~)
            E'[\\u0001-\\u0020\\u007f-\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000,*]') IS NOT FALSE THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'check_violation', COLUMN = 'channel',
        MESSAGE = CASE WHEN pg_catalog.char_length(name) OPERATOR(pg_catalog.>=) 1
                            AND pg_catalog.char_length(name) OPERATOR(pg_catalog.<=) 255
                       THEN 'a channel has no white space, control characters, commas or *'
                       ELSE 'a channel has 1 to 255 characters' END,
        DETAIL = pg_catalog.format('The channel is %L.', pg_catalog.left(name, 300));
END $$;

-- Whether a row of the type sse-pg.end may be written. finish() may write it, and whoever copies a log may: pg_restore,
-- logical replication, and the owner who moves rows. A copy fires no announce(), so its transaction holds none of the locks
-- by which a publisher is known. finish() leaves a sign that only the owner's rights can make, and that is worth nothing in
-- another transaction. (Rejected: a row trigger with a condition, which would cost every event; a plain setting, which
-- anybody could set before publish(), because that runs with the owner's rights too.)
--
-- It is IMMUTABLE only in name, so that every role that inserts may call it. The argument is always the same: without one,
-- the planner would keep the result.
CREATE FUNCTION sse_pg.may_write_end(name text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('session_replication_role') = 'replica' THEN       -- an apply worker of logical replication
        RETURN true;
    ELSIF NOT pg_has_role((SELECT c.relowner FROM pg_class c WHERE c.oid = 'sse_pg.events'::regclass), 'USAGE') THEN
        RETURN false;
    END IF;
    RETURN coalesce(current_setting('sse_pg.finishing', true), '') = sse_pg.sign_of_finish()
        OR NOT EXISTS (
            SELECT FROM pg_locks l
             WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.pid = pg_backend_pid() AND l.granted
               AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
               AND l.classid IN (sse_pg.lock_class('first_low'), sse_pg.lock_class('window_low'),
                                 sse_pg.lock_class('window_open')));
END $$;

-- With a line break in it, an event type could add fields to the stream.
CREATE FUNCTION sse_pg.check_event_type(name text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF (pg_catalog.char_length(name) OPERATOR(pg_catalog.>=) 1
        AND pg_catalog.char_length(name) OPERATOR(pg_catalog.<=) 255
        AND pg_catalog.strpos(name, E'\n') OPERATOR(pg_catalog.=) 0
        AND pg_catalog.strpos(name, E'\r') OPERATOR(pg_catalog.=) 0
        AND NOT pg_catalog.starts_with(name, 'sse-pg.')) IS NOT FALSE THEN
        RETURN true;
    ELSIF name OPERATOR(pg_catalog.=) 'sse-pg.end' AND sse_pg.may_write_end(name) THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'check_violation', COLUMN = 'event_type',
        MESSAGE = CASE WHEN name OPERATOR(pg_catalog.=) 'sse-pg.end'
                       THEN 'only sse_pg.finish(channel) can publish an event of the type sse-pg.end'
                       WHEN pg_catalog.starts_with(name, 'sse-pg.')
                       THEN 'event types that start with sse-pg. are the bus''s own'
                       WHEN pg_catalog.char_length(name) OPERATOR(pg_catalog.>=) 1
                            AND pg_catalog.char_length(name) OPERATOR(pg_catalog.<=) 255
                       THEN 'an event type has no CR, LF or NUL'
                       ELSE 'an event type has 1 to 255 characters' END,
        DETAIL = pg_catalog.format('The event type is %L.', pg_catalog.left(name, 300));
END $$;

-- Of subscriptions and idempotency keys.
CREATE FUNCTION sse_pg.check_user(name text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF (pg_catalog.char_length(name) OPERATOR(pg_catalog.>=) 1
        AND pg_catalog.char_length(name) OPERATOR(pg_catalog.<=) 255
        AND name OPERATOR(pg_catalog.!~) E'[\\u0001-\\u001f\\u007f]') IS NOT FALSE THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'check_violation', COLUMN = 'user_id',
        MESSAGE = CASE WHEN pg_catalog.char_length(name) OPERATOR(pg_catalog.>=) 1
                            AND pg_catalog.char_length(name) OPERATOR(pg_catalog.<=) 255
                       THEN 'a user id has no control characters'
                       ELSE 'a user id has 1 to 255 characters' END,
        DETAIL = pg_catalog.format('The user id is %L.', pg_catalog.left(name, 300));
END $$;

CREATE FUNCTION sse_pg.check_key(name text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF (pg_catalog.char_length(name) OPERATOR(pg_catalog.>=) 1
        AND pg_catalog.char_length(name) OPERATOR(pg_catalog.<=) 255) IS NOT FALSE THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'check_violation', COLUMN = 'key',
        MESSAGE = 'an idempotency key has 1 to 255 characters',
        DETAIL = pg_catalog.format('The key is %L.', pg_catalog.left(name, 300));
END $$;

-- Both rules for an event. A call costs more than the rules themselves, so they are here a second time, as one expression;
-- a test compares them.
CREATE FUNCTION sse_pg.check_names(channel text, event_type text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF pg_catalog.char_length(channel) OPERATOR(pg_catalog.>=) 1
       AND pg_catalog.char_length(channel) OPERATOR(pg_catalog.<=) 255
       AND channel OPERATOR(pg_catalog.!~)
           E'[\\u0001-\\u0020\\u007f-\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000,*]'
       AND pg_catalog.char_length(event_type) OPERATOR(pg_catalog.>=) 1
       AND pg_catalog.char_length(event_type) OPERATOR(pg_catalog.<=) 255
       AND pg_catalog.strpos(event_type, E'\n') OPERATOR(pg_catalog.=) 0
       AND pg_catalog.strpos(event_type, E'\r') OPERATOR(pg_catalog.=) 0
       AND NOT pg_catalog.starts_with(event_type, 'sse-pg.') THEN
        RETURN true;
    END IF;
    RETURN sse_pg.check_channel(channel) AND sse_pg.check_event_type(event_type);
END $$;

-- Fails if a number is so large or so small that it has more than 400 digits when it is written out. Comparing a number
-- does not write it out: 5,000 times 1e131071, which is 40 kB of JSON, take 6 seconds and 2.5 GB to print.
CREATE FUNCTION sse_pg.refuse_long_numbers(payload jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF payload @? 'strict $.** ? (@ >= 1e400 || @ <= -1e400 || (@ < 1e-400 && @ > -1e-400 && @ != 0))' THEN
        RAISE EXCEPTION 'a number in the event has more than 400 digits'
            USING ERRCODE = 'check_violation', HINT = 'Send it as a string.';
    END IF;
END $$;

-- The size is counted in bytes of the text that goes over the wire, payload and headers together. Headers are a JSON object
-- or NULL. A number may have at most 400 digits: the 8 bytes of 1e131071 become 131,072 bytes when they are printed, again
-- for each reader, and few programs can read such a number.
-- A number that grows so much contains a row of zeros, so only a text with such a row is checked number by number:
-- searching for digits would take three times as long as printing. A number that was sent with all its digits does not
-- grow; it is as long as a string would be.
--
-- One function for both columns: a second CHECK would cost each statement more than the test for NULL costs here.
CREATE FUNCTION sse_pg.payload_fits(payload jsonb, headers jsonb, most integer) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    printed pg_catalog.text;
BEGIN
    -- The usual case in one expression, because each takes about as long to prepare as to run. A number of more than 400
    -- digits does not fit into it.
    IF headers IS NULL AND pg_catalog.pg_column_size(payload) OPERATOR(pg_catalog.<=) 400
       AND pg_catalog.octet_length(payload::pg_catalog.text) OPERATOR(pg_catalog.<=) 400
       AND most OPERATOR(pg_catalog.>=) 400 THEN
        RETURN true;
    END IF;
    IF headers IS NOT NULL THEN
        IF pg_catalog.jsonb_typeof(headers) OPERATOR(pg_catalog.<>) 'object' THEN
            RAISE EXCEPTION 'the headers of an event must be a JSON object'
                USING ERRCODE = 'check_violation', CONSTRAINT = 'events_headers', SCHEMA = 'sse_pg', TABLE = 'events';
        END IF;
        RETURN sse_pg.payload_fits(headers, NULL, most) AND sse_pg.payload_fits(
            payload, NULL, most OPERATOR(pg_catalog.-) pg_catalog.octet_length(headers::pg_catalog.text));
    END IF;
    -- A smaller payload is quickly printed, whatever is in it. Looking at each number takes several times as long as that.
    IF pg_catalog.pg_column_size(payload) OPERATOR(pg_catalog.>) 16384 THEN
        PERFORM sse_pg.refuse_long_numbers(payload);
    END IF;
    printed := payload::pg_catalog.text;
    IF pg_catalog.octet_length(printed) OPERATOR(pg_catalog.>) 400 AND pg_catalog.strpos(printed,
        '0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        ) OPERATOR(pg_catalog.>) 0 THEN
        IF pg_catalog.octet_length(printed) OPERATOR(pg_catalog.<=) most AND EXISTS (
            SELECT FROM pg_catalog.jsonb_path_query(payload, 'strict $.** ? (@.type() == "number")') AS n(number)
             WHERE pg_catalog.length(pg_catalog.translate(n.number::pg_catalog.text, '-.', ''))
                   OPERATOR(pg_catalog.>) 400) THEN
            RAISE EXCEPTION 'a number in the event has more than 400 digits'
                USING ERRCODE = 'check_violation', HINT = 'Send it as a string.';
        END IF;
    END IF;
    IF pg_catalog.octet_length(printed) OPERATOR(pg_catalog.<=) most THEN
        RETURN true;
    ELSIF printed IS NULL THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the payload of an event has at most % bytes, and this one has %', most, pg_catalog.octet_length(printed)
        USING ERRCODE = 'check_violation', CONSTRAINT = 'events_payload', SCHEMA = 'sse_pg', TABLE = 'events',
        HINT = 'The headers count too. The constraint events_payload has the limit.';
END $$;

-- Ids come from a sequence that must not cache values: announce() reads its last value as a lower bound of
-- every id that is still to be drawn. The table is partitioned by id, so that a purge drops tables and deletes no rows.
CREATE TABLE sse_pg.events (
    id         bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    channel    text COLLATE "C" NOT NULL,     -- as in every index here: no system upgrade changes the order of "C"
    event_type text NOT NULL DEFAULT 'message',
    payload    jsonb NOT NULL,
    headers    jsonb,                         -- about the event: traceparent, publisher, or what the publisher adds
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT events_names CHECK (sse_pg.check_names(channel, event_type)),
    CONSTRAINT events_payload CHECK (sse_pg.payload_fits(payload, headers, 1048576))
) PARTITION BY RANGE (id);

CREATE INDEX events_channel_id ON sse_pg.events (channel, id);

-- A bound for the ids in the default partition. It is declared IMMUTABLE although it reads a setting. While the setting is
-- empty, it bounds nothing. Maintenance looks up in the index which ids are there, sets the bound and attaches a partition.
-- PostgreSQL then evaluates the function and accepts the CHECK below as proof, so it does not scan the table while it holds
-- a lock that stops publishing.
CREATE FUNCTION sse_pg.id_limit(which text, otherwise bigint) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN coalesce(nullif(current_setting('sse_pg.' || which, true), '')::bigint, otherwise);
END $$;

-- Holds the ids for which there is no other partition yet. Publishing works even if nobody makes partitions ahead.
CREATE TABLE sse_pg.events_default PARTITION OF sse_pg.events (
    CONSTRAINT events_default_ids CHECK (
        id BETWEEN sse_pg.id_limit('first_in_default', -9223372036854775808)
               AND sse_pg.id_limit('last_in_default', 9223372036854775807))
) DEFAULT;

-- One row of facts about the log.
CREATE TABLE sse_pg.log (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    purged_to  bigint NOT NULL DEFAULT 0,     -- every id up to this one may be gone
    -- No id up to this one can still become visible, but for those in the open ranges.
    settled_to bigint NOT NULL DEFAULT 0,
    open_first bigint[] NOT NULL DEFAULT '{}',
    open_last  bigint[] NOT NULL DEFAULT '{}',
    identity   text NOT NULL DEFAULT '',     -- log_identity() when a server last checked it
    -- The key of digest(). Only the owner and the servers read it.
    control_key text NOT NULL DEFAULT replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '')
);
INSERT INTO sse_pg.log DEFAULT VALUES;

-- ------------------------------------------------------------------ publishers in flight, and the bell

-- Any session can take advisory locks, so a publisher never waits for one that should be free. These two functions are
-- for the case that another session holds a lock of announce() exclusively. Both answers to it are correct: a lower bound
-- may be lower than necessary, and a window may stay open.
CREATE FUNCTION sse_pg.announce_below(class integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    bound bigint := coalesce(pg_sequence_last_value('sse_pg.events_id_seq'::regclass), 0);
BEGIN
    FOR i IN 1 .. 100 LOOP
        IF pg_try_advisory_xact_lock_shared(class, (bound << 32 >> 32)::integer) THEN
            RETURN bound;
        END IF;
        bound := bound - 1 - (random() * i * i * i)::bigint;
    END LOOP;
    RAISE EXCEPTION 'other sessions hold the advisory locks of sse_pg' USING ERRCODE = 'SP503',
        HINT = 'sse-pg doctor shows who holds them.';
END $$;

CREATE FUNCTION sse_pg.announce_open() RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    FOR i IN 1 .. 100 LOOP
        IF pg_try_advisory_xact_lock_shared(sse_pg.lock_class('window_open'), CASE i WHEN 1 THEN 0
                                            ELSE (random() * 2000000000)::integer END) THEN
            RETURN true;
        END IF;
    END LOOP;
    RAISE EXCEPTION 'other sessions hold the advisory locks of sse_pg' USING ERRCODE = 'SP503',
        HINT = 'sse-pg doctor shows who holds them.';
END $$;

-- A trip-wire. PostgreSQL resets an unlogged sequence when it recovers from a crash and when a standby is promoted. A
-- promoted standby may lack the newest ids of the old primary, and would hand them out again. So whoever publishes first
-- after a recovery finds the wire reset and calls recovered(). While it is intact, its value is a hash of the database's name
-- and the oid of sse_pg.events. So a log that was restored from a dump, with its sequences, differs from the one that was
-- dumped, and a copy of the database (CREATE DATABASE ... TEMPLATE) from the original.
CREATE UNLOGGED SEQUENCE sse_pg.recovery_wire MINVALUE -9223372036854775808 CACHE 1;

-- The highest id that a jump of recovered() passed; the ids of the new epoch are higher. check_epoch() notes the epoch.
CREATE SEQUENCE sse_pg.last_jump CACHE 1;

-- Runs before each INSERT or COPY.
--
-- 1. It shows that this transaction publishes. It takes a shared lock, held until the commit is visible, whose key is a
--    lower bound of every id that the statement can draw. The bound is read and the lock taken before any id is drawn.
--    close_window() adds the upper bound when the statement is over; the two bounds are a window. A transaction that
--    publishes again adds windows, up to eight after its first write. After that the last window stays open, because
--    10,000 statements must not take 10,000 locks.
-- 2. The first time in a transaction, before it reads the bound, it looks at the trip-wire.
-- 3. The first time in a transaction, it rings (sends a notification), unless a tail is awake (it polls) and none is
--    asleep. NOTIFY makes commits wait for each other, so it is left out if nobody needs it. After a tail has fallen
--    asleep, it reads the locks of step 1, and continues to poll while one of them is held that may be older than its
--    sleep (docs/guarantee.md). To ask whether a tail is asleep or awake, this function tries to take the exclusive lock,
--    and releases it in the same expression: a cancel between two statements would leave the lock behind. The attempt
--    also fails while another publisher asks, so only two failures in a row count as a tail that is asleep.
--
-- The windows of a transaction are recorded in a transaction-local setting, transaction:windows:bound. A rollback to a
-- savepoint undoes the locks and the setting together. Writing the setting is slow, and most transactions publish once.
-- So a statement that is the first write of its transaction (there is no transaction id yet) does not write it. Its two
-- bounds have lock classes of their own, so that no later or nested statement mistakes them for its own or closes the
-- window. It assigns the transaction id at once: a statement nested in it may run before its first row is inserted, and
-- must not take itself for the first.
--
-- The expressions are few and long, because each takes about as long to prepare as to run. `void IS NULL` is false. NEW is
-- NULL in a trigger of a statement, and RETURN NEW evaluates no expression.
CREATE FUNCTION sse_pg.announce() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held  text[];
    bound bigint;
    done  boolean;
BEGIN
    IF (CASE WHEN pg_current_xact_id_if_assigned() IS NULL
                  AND pg_sequence_last_value('sse_pg.recovery_wire'::regclass)
                      = hashnameextended(current_database(), 'sse_pg.events'::regclass::oid::bigint)
             -- bigint to its low half, signed as int4 is
             THEN pg_try_advisory_xact_lock_shared(sse_pg.lock_class('first_low'),
                      (coalesce(pg_sequence_last_value('sse_pg.events_id_seq'::regclass), 0) << 32 >> 32)::integer)
                  AND pg_current_xact_id() IS NOT NULL
             ELSE false END) THEN
        NULL;                            -- the usual case
    ELSIF pg_current_xact_id_if_assigned() IS NULL THEN
        PERFORM sse_pg.recovered();
        done := sse_pg.announce_below(sse_pg.lock_class('first_low')) IS NULL OR pg_current_xact_id() IS NULL;
    ELSE
        held := string_to_array(current_setting('sse_pg.announced', true), ':');
        IF held[1] IS DISTINCT FROM pg_current_xact_id()::text THEN
            held := NULL;                -- empty, or set by hand
        ELSIF held[2] = 'open' THEN
            RETURN NULL;
        END IF;
        IF held IS NULL AND NOT sse_pg.wire_is_intact() THEN
            PERFORM sse_pg.recovered();
        END IF;
        bound := coalesce(pg_sequence_last_value('sse_pg.events_id_seq'::regclass), 0);
        IF held[2] = '8' OR held[3] = bound::text THEN
            done := sse_pg.announce_open() IS NULL OR set_config('sse_pg.announced', held[1] || ':open', true) IS NULL;
            RETURN NULL;
        END IF;
        IF NOT pg_try_advisory_xact_lock_shared(sse_pg.lock_class('window_low'), (bound << 32 >> 32)::integer) THEN
            IF held IS NOT NULL THEN
                done := sse_pg.announce_open() IS NULL
                    OR set_config('sse_pg.announced', held[1] || ':open', true) IS NULL;
                RETURN NULL;
            END IF;
            bound := sse_pg.announce_below(sse_pg.lock_class('window_low'));
        END IF;
        done := set_config('sse_pg.announced',
            concat_ws(':', pg_current_xact_id(), coalesce(held[2]::integer, 0) + 1, bound), true) IS NULL;
        IF held IS NOT NULL THEN
            RETURN NULL;
        END IF;
    END IF;
    -- If a crash lost a commit that was already visible, its ids would be drawn again. The commit of a publishing
    -- transaction is therefore flushed, whatever the session's setting is.
    done := CASE WHEN current_setting('synchronous_commit') = 'off'
                 THEN set_config('synchronous_commit', 'local', true) IS NULL ELSE false END
         OR CASE WHEN CASE coalesce(current_setting('sse_pg.bell', true), '')
                      WHEN 'off' THEN false            -- for PREPARE TRANSACTION, which allows no NOTIFY
                      WHEN 'always' THEN true
                      ELSE CASE WHEN pg_try_advisory_lock(sse_pg.lock_class('tail'), 1)
                                THEN NOT pg_advisory_unlock(sse_pg.lock_class('tail'), 1)
                                WHEN pg_try_advisory_lock(sse_pg.lock_class('tail'), 1)
                                THEN NOT pg_advisory_unlock(sse_pg.lock_class('tail'), 1)
                                ELSE true END                                           -- somebody is asleep
                        OR CASE WHEN pg_try_advisory_lock(sse_pg.lock_class('tail'), 2)
                                THEN pg_advisory_unlock(sse_pg.lock_class('tail'), 2)
                                     AND coalesce(current_setting('sse_pg.bell', true), '') <> 'servers'
                                ELSE false END END          -- nobody is awake, but a session that is no tail may LISTEN
                 THEN pg_notify('sse_pg', '') IS NULL ELSE false END;
    RETURN NEW;
END $$;

-- For a session that has written the setting before: the statement may be its transaction's first write all the same.
CREATE FUNCTION sse_pg.close_later_window() RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held text := current_setting('sse_pg.announced', true);
BEGIN
    IF NOT starts_with(held, pg_current_xact_id() || ':') THEN
        RETURN pg_try_advisory_xact_lock_shared(sse_pg.lock_class('first_high'), (sse_pg.last_id() << 32 >> 32)::integer);
    ELSIF held NOT LIKE '%:open' THEN
        RETURN pg_try_advisory_xact_lock_shared(sse_pg.lock_class('window_high'), (sse_pg.last_id() << 32 >> 32)::integer);
    END IF;
    RETURN true;
END $$;

-- Runs after each INSERT or COPY: the statement has drawn no id above the sequence's last value. If the setting is not
-- this transaction's, the statement was its first write. If another session's lock is in the way, there is no upper bound,
-- and the window stays open until the transaction is over.
CREATE FUNCTION sse_pg.close_window() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    done boolean;
BEGIN
    done := CASE WHEN coalesce(current_setting('sse_pg.announced', true), '') = ''
        THEN pg_try_advisory_xact_lock_shared(sse_pg.lock_class('first_high'),
            (coalesce(pg_sequence_last_value('sse_pg.events_id_seq'::regclass), 0) << 32 >> 32)::integer)
        ELSE sse_pg.close_later_window() END;
    RETURN NEW;
END $$;

CREATE TRIGGER announce BEFORE INSERT ON sse_pg.events
    FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.announce();
CREATE TRIGGER close_window AFTER INSERT ON sse_pg.events
    FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.close_window();
-- ALWAYS: the triggers also fire if session_replication_role is replica, as in a logical apply worker, in which a
-- user's trigger may publish.
ALTER TABLE sse_pg.events ENABLE ALWAYS TRIGGER announce, ENABLE ALWAYS TRIGGER close_window;

-- The last id drawn, and the windows of the publishers in flight. Every id that they can have drawn so far lies in one.
-- The last id is read before the locks: a publisher that takes its lock later draws higher ids. So if an id up to
-- `last` lies in no window and is missing in a snapshot taken after this call, it is dead: rolled back, or skipped by the
-- sequence. `least_bound` is the lowest lower bound, NULL if there is no publisher in flight.
-- A standby sees neither the locks nor the exact value of the sequence.
CREATE FUNCTION sse_pg.publishers(
    OUT last bigint, OUT least_bound bigint, OUT window_first bigint[], OUT window_last bigint[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'a standby does not know which publishers are in flight' USING
            ERRCODE = 'feature_not_supported', HINT = 'Ask the primary.';
    END IF;
    last := coalesce(pg_sequence_last_value('sse_pg.events_id_seq'::regclass), 0);
    -- One row for each publisher and kind of window, with its bounds ascending. Joining the locks to each other would make
    -- this quadratic: the planner expects few of them. The lower and upper bounds of a publisher match by their place.
    SELECT min(greatest(w.low, 0)), coalesce(array_agg(greatest(w.low, 0) + 1), '{}'),
           coalesce(array_agg(coalesce(w.high, 9223372036854775807)), '{}')
      INTO least_bound, window_first, window_last
      FROM (SELECT array_agg(k.bound ORDER BY k.bound) FILTER (
                       WHERE k.class IN (sse_pg.lock_class('first_low'), sse_pg.lock_class('window_low'))) AS lows,
                   array_agg(k.bound ORDER BY k.bound) FILTER (
                       WHERE k.class IN (sse_pg.lock_class('first_high'), sse_pg.lock_class('window_high'))) AS highs,
                   bool_or(k.class = sse_pg.lock_class('window_open')) AS still_open
              FROM (SELECT l.virtualtransaction COLLATE "C" AS publisher, l.classid::bigint AS class,
                           -- The keys are the low 32 bits. A distance above 2^31: the bound is higher than `last`.
                           last - CASE WHEN d.behind > 2147483648 THEN d.behind - 4294967296 ELSE d.behind END AS bound
                      FROM pg_locks l, LATERAL (SELECT (last - l.objid::bigint) & 4294967295 AS behind) d
                     WHERE l.locktype = 'advisory' AND l.objsubid = 2
                       AND l.classid IN (sse_pg.lock_class('first_low'), sse_pg.lock_class('first_high'),
                                         sse_pg.lock_class('window_low'), sse_pg.lock_class('window_high'),
                                         sse_pg.lock_class('window_open'))
                       AND l.granted
                       AND l.database = (SELECT b.oid FROM pg_database b WHERE b.datname = current_database())) k
             GROUP BY k.publisher, k.class IN (sse_pg.lock_class('first_low'), sse_pg.lock_class('first_high'))) p
     CROSS JOIN LATERAL (
         SELECT u.low, CASE WHEN p.still_open AND u.place = cardinality(p.lows) THEN NULL ELSE u.high END AS high
           FROM unnest(p.lows, p.highs) WITH ORDINALITY AS u(low, high, place) WHERE u.low IS NOT NULL) w;
END $$;

-- The last id that was drawn; 0 if none was.
CREATE FUNCTION sse_pg.last_id() RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT coalesce(pg_sequence_last_value('sse_pg.events_id_seq'::regclass), 0) $$;

-- The last id that was drawn before a moment, so that what is younger is found by id, which has an index: created_at has
-- none, because each index costs every publish. Events get their id and their time in one step, so ids are in the order of
-- the times, but for those of sessions that drew at the same moment, and for copied rows that came with a time of their own.
-- Compare created_at as well if that matters. This is a binary search: about 60 looks at the primary key.
CREATE FUNCTION sse_pg.id_at(moment timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    low  bigint := (SELECT l.purged_to FROM sse_pg.log l);
    high bigint := sse_pg.last_id();
    half bigint;
    next record;
BEGIN
    WHILE low < high LOOP
        half := low + (high - low) / 2;
        SELECT e.id, e.created_at INTO next FROM sse_pg.events e WHERE e.id > half AND e.id <= high ORDER BY e.id LIMIT 1;
        IF next.id IS NULL OR next.created_at >= moment THEN
            high := half;
        ELSE
            low := next.id;
        END IF;
    END LOOP;
    RETURN low;
END $$;

-- ------------------------------------------------------------------ reads of the servers

-- A read of a server ends by octets, not only by rows: one transaction may have published gigabytes. How long a payload is
-- in print is known only when it has been printed, and a statement cannot stop at a sum. So these functions print event by
-- event, and stop after the one with which payloads and headers have `most_octets`. (Rejected: to stop at the sum of
-- pg_column_size(), because a compressed payload can be a hundred times as long in print; to cancel the statement when the
-- server has enough.) If there are events left then, the last row is none: its event_type is 'more', its id NULL.
--
-- Each function has one query for its events, hence one snapshot, and is VOLATILE: a query of a STABLE function would see
-- the snapshot of the statement that calls it, which was taken before the locks on the partitions were. It could then miss
-- events of a partition that was dropped in between, and not see in `log` that they were purged.

-- The events above the last id that a tail has seen. This is the usual case: no lower id is open.
--
-- Before the events comes a row with id 0. Its payload is purged_to, from the same snapshot, so that a purge that overtook
-- this tail is noticed at the read that lacks the events. A column of its own would cost something for every event.
--
-- `followed` says of which channels somebody there wants the payloads; NULL: of all. Its size is a power of two, and the hash
-- of a channel picks a bit. If this bit is not set, payload and headers are NULL, and they are not even fetched if they are
-- stored out of line. (Rejected: an array of names, which is searched from its start for each event.)
CREATE FUNCTION sse_pg.read_above(seen bigint, most_events bigint, most_octets bigint, followed bytea)
RETURNS TABLE (id bigint, channel text, event_type text, payload text, created_at timestamptz, headers text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    body   jsonb;
    head   jsonb;
    octets bigint := 0;
    mask   integer := octet_length(followed) * 8 - 1;
BEGIN
    FOR id, channel, event_type, body, created_at, head IN
        SELECT r.id, r.channel, r.event_type, r.payload, r.created_at, r.headers FROM (
            SELECT 0::bigint AS id, NULL AS channel, NULL AS event_type, to_jsonb(l.purged_to) AS payload,
                   NULL::timestamptz AS created_at, NULL::jsonb AS headers
              FROM sse_pg.log l
            UNION ALL
            (SELECT e.id, e.channel, e.event_type,
                    CASE get_bit(followed, hashtext(e.channel) & mask) WHEN 0 THEN NULL ELSE e.payload END, e.created_at,
                    CASE WHEN e.headers IS NOT NULL AND get_bit(followed, hashtext(e.channel) & mask) = 0 THEN NULL
                         ELSE e.headers END
               FROM sse_pg.events e
              WHERE e.id > seen ORDER BY e.id LIMIT most_events)
        ) r ORDER BY r.id
    LOOP
        IF octets >= most_octets THEN
            id := NULL;
            event_type := 'more';
            payload := NULL;
            RETURN NEXT;
            RETURN;
        END IF;
        payload := body;
        headers := head;
        RETURN NEXT;
        octets := octets + coalesce(octet_length(payload), 0) + coalesce(octet_length(headers), 0);
    END LOOP;
END $$;

-- The same read while there are open ids: the events with these ids, and those above the last id seen. Both come from one
-- snapshot, so that the events of one transaction stay in order. They ascend, so that a read that ended early is a prefix.
--
-- With `asks`, the first row says which publishers are in flight, as a JSON array in the payload. The windows are read
-- before the snapshot of the events, as docs/guarantee.md demands, and this saves a round trip.
CREATE FUNCTION sse_pg.read_open(
    first_ids bigint[], last_ids bigint[], seen bigint, most_events bigint, most_octets bigint, asks boolean,
    followed bytea)
RETURNS TABLE (id bigint, channel text, event_type text, payload text, created_at timestamptz, headers text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    body   jsonb;
    head   jsonb;
    octets bigint := 0;
    mask   integer := octet_length(followed) * 8 - 1;
BEGIN
    IF asks THEN
        SELECT json_build_array(p.last, p.least_bound, p.window_first, p.window_last) INTO payload
          FROM sse_pg.publishers() p;
        RETURN NEXT;
    END IF;
    FOR id, channel, event_type, body, created_at, head IN
        SELECT r.id, r.channel, r.event_type, r.payload, r.created_at, r.headers FROM (
            SELECT 0::bigint AS id, NULL AS channel, NULL AS event_type, to_jsonb(l.purged_to) AS payload,
                   NULL::timestamptz AS created_at, NULL::jsonb AS headers
              FROM sse_pg.log l
            UNION ALL
            SELECT e.id, e.channel, e.event_type,
                   CASE get_bit(followed, hashtext(e.channel) & mask) WHEN 0 THEN NULL ELSE e.payload END, e.created_at,
                   CASE WHEN e.headers IS NOT NULL AND get_bit(followed, hashtext(e.channel) & mask) = 0 THEN NULL
                        ELSE e.headers END
              FROM unnest(first_ids, last_ids) AS g(first, last)
             CROSS JOIN LATERAL (
                 SELECT * FROM sse_pg.events e
                  WHERE e.id BETWEEN g.first AND g.last ORDER BY e.id LIMIT most_events) e
            UNION ALL
            (SELECT e.id, e.channel, e.event_type,
                    CASE get_bit(followed, hashtext(e.channel) & mask) WHEN 0 THEN NULL ELSE e.payload END, e.created_at,
                    CASE WHEN e.headers IS NOT NULL AND get_bit(followed, hashtext(e.channel) & mask) = 0 THEN NULL
                         ELSE e.headers END
               FROM sse_pg.events e
              WHERE e.id > seen ORDER BY e.id LIMIT most_events)
        ) r ORDER BY r.id LIMIT most_events + 1
    LOOP
        IF octets >= most_octets THEN
            id := NULL;
            event_type := 'more';
            payload := NULL;
            RETURN NEXT;
            RETURN;
        END IF;
        payload := body;
        headers := head;
        RETURN NEXT;
        octets := octets + coalesce(octet_length(payload), 0) + coalesce(octet_length(headers), 0);
    END LOOP;
END $$;

-- The read of a server that does not ask which publishers are in flight, because it reads from a standby. It goes by the
-- mark instead: what the one elected server has noted in `log`. The first row, with id 0, has as its payload the mark and
-- all else that must come from the snapshot of the events: up to which id the log was purged, how many epochs there are, what
-- was sent to the servers in transactions from `since` on, and which channels keep() has emptied beyond what was read.
-- `replayed` is read before: everything that was written up to there is in the snapshot.
--
-- Whoever sees the mark sees everything that it vouches for, because that was committed before. So an id up to `settled_to`
-- that lies in no open range, and is not among the events, is dead. This holds on the primary too.
CREATE FUNCTION sse_pg.read_marked(
    first_ids bigint[], last_ids bigint[], seen bigint, most_events bigint, most_octets bigint, since xid8,
    followed bytea)
RETURNS TABLE (id bigint, channel text, event_type text, payload text, created_at timestamptz, headers text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    body     jsonb;
    head     jsonb;
    octets   bigint := 0;
    mask     integer := octet_length(followed) * 8 - 1;
    replayed numeric := CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                             ELSE pg_current_wal_insert_lsn() END - '0/0'::pg_lsn;
BEGIN
    FOR id, channel, event_type, body, created_at, head IN
        SELECT r.id, r.channel, r.event_type, r.payload, r.created_at, r.headers FROM (
            SELECT 0::bigint AS id, NULL AS channel, NULL AS event_type,
                   jsonb_build_array(
                       l.purged_to, l.settled_to, to_jsonb(l.open_first), to_jsonb(l.open_last),
                       (SELECT count(*) FROM sse_pg.epochs), replayed,
                       pg_snapshot_xmin(pg_current_snapshot())::text::numeric, sse_pg.messages_from(since, 1000),
                       (SELECT jsonb_object_agg(x.channel, x.up_to) FROM sse_pg.expired_channels x
                         WHERE x.up_to > least(seen, first_ids[1] - 1))) AS payload,
                   NULL::timestamptz AS created_at, NULL::jsonb AS headers
              FROM sse_pg.log l
            UNION ALL
            SELECT e.id, e.channel, e.event_type,
                   CASE get_bit(followed, hashtext(e.channel) & mask) WHEN 0 THEN NULL ELSE e.payload END, e.created_at,
                   CASE WHEN e.headers IS NOT NULL AND get_bit(followed, hashtext(e.channel) & mask) = 0 THEN NULL
                        ELSE e.headers END
              FROM unnest(first_ids, last_ids) AS g(first, last)
             CROSS JOIN LATERAL (
                 SELECT * FROM sse_pg.events e
                  WHERE e.id BETWEEN g.first AND g.last ORDER BY e.id LIMIT most_events) e
            UNION ALL
            (SELECT e.id, e.channel, e.event_type,
                    CASE get_bit(followed, hashtext(e.channel) & mask) WHEN 0 THEN NULL ELSE e.payload END, e.created_at,
                    CASE WHEN e.headers IS NOT NULL AND get_bit(followed, hashtext(e.channel) & mask) = 0 THEN NULL
                         ELSE e.headers END
               FROM sse_pg.events e
              WHERE e.id > seen ORDER BY e.id LIMIT most_events)
        ) r ORDER BY r.id LIMIT most_events + 1
    LOOP
        IF octets >= most_octets THEN
            id := NULL;
            event_type := 'more';
            payload := NULL;
            RETURN NEXT;
            RETURN;
        END IF;
        payload := body;
        headers := head;
        RETURN NEXT;
        octets := octets + coalesce(octet_length(payload), 0) + coalesce(octet_length(headers), 0);
    END LOOP;
END $$;

-- A page of stored events of these channels, within these ranges of ids, ascending. There is always at least one row, with
-- purged_to, so that purged_to and the events come from one snapshot.
--
-- Rows are compared as pairs, and ordered by both columns, so that only the index on (channel, id) has the order. With
-- `channel =` the primary key's index would have it too. The planner would use that index for channels that look frequent,
-- and read the whole log for a channel with few events. lowest and highest bound the ranges: because they are parameters,
-- PostgreSQL can leave out partitions before it begins.
--
-- The plan is kept, because with dozens of partitions planning a page takes five times as long as reading it. So it must be
-- right for channels with many events and with few, for a log that was empty when the plan was made, and without
-- statistics. There is one such plan: index scans in the order of (channel, id), one per partition. The other plans are
-- forbidden: without this, the planner was seen to read and sort a whole log for fifty events. JIT is off because, before
-- PostgreSQL 18, a step that is forbidden but necessary (the sort of the page itself) has such a high cost that PostgreSQL
-- would compile the query.
CREATE FUNCTION sse_pg.read_page(
    channels text[], first_ids bigint[], last_ids bigint[], lowest bigint, highest bigint, only_type text,
    most_events bigint, most_octets bigint)
RETURNS TABLE (purged_to bigint, expired_to bigint, id bigint, channel text, event_type text, payload text,
               created_at timestamptz, headers text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_sort = off SET enable_incremental_sort = off
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    body   jsonb;
    head   jsonb;
    octets bigint := 0;
BEGIN
    FOR purged_to, expired_to, id, channel, event_type, body, created_at, head IN
        SELECT l.purged_to,
               coalesce((SELECT max(x.up_to) FROM sse_pg.expired_channels x WHERE x.channel = ANY (channels)), 0), e.id, e.channel, e.event_type, e.payload, e.created_at, e.headers
          FROM sse_pg.log l
          LEFT JOIN LATERAL (
              SELECT e.*
                FROM unnest(channels) AS c(channel)
               CROSS JOIN unnest(first_ids, last_ids) AS r(first, last)
               CROSS JOIN LATERAL (
                   SELECT * FROM sse_pg.events e
                    WHERE (e.channel, e.id) >= (c.channel, r.first) AND (e.channel, e.id) <= (c.channel, r.last)
                      AND e.id BETWEEN lowest AND highest
                      AND (only_type IS NULL OR e.event_type = only_type)
                    ORDER BY e.channel, e.id LIMIT most_events) e
               ORDER BY e.id LIMIT most_events) e ON true
         ORDER BY e.id
    LOOP
        IF octets >= most_octets THEN
            id := NULL;
            event_type := 'more';
            payload := NULL;
            RETURN NEXT;
            RETURN;
        END IF;
        payload := body;
        headers := head;
        RETURN NEXT;
        octets := octets + octet_length(payload) + coalesce(octet_length(headers), 0);
    END LOOP;
END $$;

-- The same from the newest down.
CREATE FUNCTION sse_pg.read_page_desc(
    channels text[], first_ids bigint[], last_ids bigint[], lowest bigint, highest bigint, only_type text,
    most_events bigint, most_octets bigint)
RETURNS TABLE (purged_to bigint, expired_to bigint, id bigint, channel text, event_type text, payload text,
               created_at timestamptz, headers text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_sort = off SET enable_incremental_sort = off
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    body   jsonb;
    head   jsonb;
    octets bigint := 0;
BEGIN
    FOR purged_to, expired_to, id, channel, event_type, body, created_at, head IN
        SELECT l.purged_to,
               coalesce((SELECT max(x.up_to) FROM sse_pg.expired_channels x WHERE x.channel = ANY (channels)), 0), e.id, e.channel, e.event_type, e.payload, e.created_at, e.headers
          FROM sse_pg.log l
          LEFT JOIN LATERAL (
              SELECT e.*
                FROM unnest(channels) AS c(channel)
               CROSS JOIN unnest(first_ids, last_ids) AS r(first, last)
               CROSS JOIN LATERAL (
                   SELECT * FROM sse_pg.events e
                    WHERE (e.channel, e.id) >= (c.channel, r.first) AND (e.channel, e.id) <= (c.channel, r.last)
                      AND e.id BETWEEN lowest AND highest
                      AND (only_type IS NULL OR e.event_type = only_type)
                    ORDER BY e.channel DESC, e.id DESC LIMIT most_events) e
               ORDER BY e.id DESC LIMIT most_events) e ON true
         ORDER BY e.id DESC
    LOOP
        IF octets >= most_octets THEN
            id := NULL;
            event_type := 'more';
            payload := NULL;
            RETURN NEXT;
            RETURN;
        END IF;
        payload := body;
        headers := head;
        RETURN NEXT;
        octets := octets + octet_length(payload) + coalesce(octet_length(headers), 0);
    END LOOP;
END $$;

-- ------------------------------------------------------------------ publish

-- The event that was published with each key. The digest distinguishes a repeated publish from a reused key.
CREATE TABLE sse_pg.idempotency_keys (
    key        text COLLATE "C" PRIMARY KEY CONSTRAINT idempotency_keys_key CHECK (sse_pg.check_key(key)),
    digest     bytea NOT NULL,
    event_id   bigint,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idempotency_keys_created_at ON sse_pg.idempotency_keys (created_at);

-- Publishes one event in the caller's transaction. Returns its id, or NULL if a trigger of yours discards the event. A
-- repeated idempotency key returns the same id as before; if the event differs, it raises SQLSTATE SP409. The headers are
-- not compared: a publish that is repeated has a `traceparent` of its own.
CREATE FUNCTION sse_pg.publish(
    channel text, event_type text, payload jsonb, idempotency_key text DEFAULT NULL, headers jsonb DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    published bigint;
    known     sse_pg.idempotency_keys;
    the_digest bytea;
BEGIN
    IF idempotency_key IS NULL THEN
        INSERT INTO sse_pg.events (channel, event_type, payload, headers)
        VALUES (publish.channel, coalesce(publish.event_type, 'message'), publish.payload, publish.headers)
        RETURNING id INTO published;
        RETURN published;
    END IF;
    PERFORM sse_pg.refuse_long_numbers(payload);      -- the digest prints the payload
    the_digest := sha256(convert_to(
        jsonb_build_array(channel, coalesce(event_type, 'message'), payload)::text, 'UTF8'));
    -- The key is inserted first: a second publisher with the same key waits here for the first one's commit.
    INSERT INTO sse_pg.idempotency_keys (key, digest) VALUES (idempotency_key, the_digest)
    ON CONFLICT (key) DO NOTHING;
    IF NOT FOUND THEN
        SELECT * INTO STRICT known FROM sse_pg.idempotency_keys k WHERE k.key = idempotency_key;
        IF known.digest NOT IN (the_digest, '') THEN       -- '': the event was erased
            RAISE EXCEPTION 'the idempotency key % was used for another event', quote_literal(idempotency_key)
                USING ERRCODE = 'SP409', DETAIL = idempotency_key, HINT = 'Use a different key for each event.';
        END IF;
        RETURN known.event_id;
    END IF;
    INSERT INTO sse_pg.events (channel, event_type, payload, headers)
    VALUES (publish.channel, coalesce(publish.event_type, 'message'), publish.payload, publish.headers)
    RETURNING id INTO published;
    UPDATE sse_pg.idempotency_keys k SET event_id = published WHERE k.key = idempotency_key;
    RETURN published;
END $$;

-- The same for an event of the type message, and for payloads of the type json, such as row_to_json() returns. A literal
-- without a type fits json and jsonb alike, and PostgreSQL then looks at the other arguments: text is the preferred type
-- for their literals, and this domain is not. So the functions for jsonb are taken whenever both would do.
CREATE DOMAIN sse_pg.channel_of_json AS text;

CREATE FUNCTION sse_pg.publish(channel text, payload jsonb) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT sse_pg.publish(channel, NULL::text, payload) $$;

CREATE FUNCTION sse_pg.publish(channel sse_pg.channel_of_json, payload json) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT sse_pg.publish(channel::text, NULL::text, payload::jsonb) $$;

CREATE FUNCTION sse_pg.publish(
    channel sse_pg.channel_of_json, event_type text, payload json, idempotency_key text DEFAULT NULL,
    headers jsonb DEFAULT NULL)
RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT sse_pg.publish(channel::text, event_type, payload::jsonb, idempotency_key, headers) $$;

-- Publishes many events in one statement. Returns a row for each, in order. The arrays have the same length; the keys and
-- the headers may be NULL as a whole or by element. If a trigger discards one of the events, it raises SP422 and publishes
-- none.
CREATE FUNCTION sse_pg.publish_many(
    channels text[], event_types text[], payloads text[], idempotency_keys text[] DEFAULT NULL,
    headers text[] DEFAULT NULL)
RETURNS TABLE (id bigint, created_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    i     integer;
    ids   bigint[];
    times timestamptz[];
BEGIN
    IF idempotency_keys IS NULL THEN
        -- Rows are inserted, and ids drawn, in the order of the arrays.
        RETURN QUERY
        INSERT INTO sse_pg.events (channel, event_type, payload, headers)
        SELECT e.channel, e.event_type, e.payload::jsonb, e.headers::jsonb
          FROM unnest(channels, event_types, payloads, publish_many.headers)
               WITH ORDINALITY AS e(channel, event_type, payload, headers, place)
         ORDER BY e.place
        RETURNING id, created_at;
        -- A user's trigger may have discarded rows. Then the rows returned no longer match the arrays by position.
        GET DIAGNOSTICS i = ROW_COUNT;
        IF i <> cardinality(channels) THEN
            RAISE EXCEPTION 'a trigger on sse_pg.events discarded % of % events',
                cardinality(channels) - i, cardinality(channels) USING ERRCODE = 'SP422';
        END IF;
        RETURN;
    END IF;
    -- If each has a key, and all of the keys are new, two statements do it. The keys are inserted after the events, which have
    -- ids then; if one was there, or is held by a transaction that commits while this one waits, all of it is undone and done
    -- again one by one. The table has checked the numbers before the digest prints them.
    IF array_position(idempotency_keys, NULL) IS NULL AND cardinality(idempotency_keys) = cardinality(channels)
       AND cardinality(channels) > 1 THEN
        BEGIN
            WITH inserted AS (
                INSERT INTO sse_pg.events (channel, event_type, payload, headers)
                SELECT e.channel, coalesce(e.event_type, 'message'), e.payload::jsonb, e.headers::jsonb
                  FROM unnest(channels, event_types, payloads, publish_many.headers)
                       WITH ORDINALITY AS e(channel, event_type, payload, headers, place)
                 ORDER BY e.place
                RETURNING id, created_at)
            SELECT array_agg(n.id ORDER BY n.id), array_agg(n.created_at ORDER BY n.id) INTO ids, times FROM inserted n;
            IF cardinality(ids) IS DISTINCT FROM cardinality(channels) THEN
                RAISE EXCEPTION 'a trigger on sse_pg.events discarded the event' USING ERRCODE = 'SP422';
            END IF;
            INSERT INTO sse_pg.idempotency_keys (key, digest, event_id)
            SELECT e.key, sha256(convert_to(
                       jsonb_build_array(e.channel, coalesce(e.event_type, 'message'), e.payload::jsonb)::text, 'UTF8')), e.id
              FROM unnest(idempotency_keys, channels, event_types, payloads, ids) AS e(key, channel, event_type, payload, id)
            ON CONFLICT (key) DO NOTHING;
            GET DIAGNOSTICS i = ROW_COUNT;
            IF i = cardinality(channels) THEN
                RETURN QUERY SELECT n.id, n.created_at FROM unnest(ids, times) AS n(id, created_at);
                RETURN;
            END IF;
            RAISE EXCEPTION 'a key was there' USING ERRCODE = 'SP001';
        EXCEPTION WHEN SQLSTATE 'SP001' THEN
            NULL;
        END;
    END IF;
    FOR i IN 1 .. coalesce(array_length(channels, 1), 0) LOOP
        publish_many.id := sse_pg.publish(
            channels[i], event_types[i], payloads[i]::jsonb, idempotency_keys[i], headers[i]::jsonb);
        IF publish_many.id IS NULL THEN
            RAISE EXCEPTION 'a trigger on sse_pg.events discarded the event' USING ERRCODE = 'SP422';
        END IF;
        -- The event of a repeated key may have been purged since; then its time is no longer known.
        publish_many.created_at := (SELECT e.created_at FROM sse_pg.events e WHERE e.id = publish_many.id);
        RETURN NEXT;
    END LOOP;
END $$;

-- ------------------------------------------------------------------ position

-- In SQL, a cursor is the set of ids that its reader was offered. 0 belongs to every cursor.

-- Fails if the text is not a printed cursor. The form is described in sse_pg/core/cursor.py.
CREATE FUNCTION sse_pg.cursor_ids(printed text) RETURNS int8multirange
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part  text;
    high  numeric;
    above numeric;
    first numeric;
    last  numeric;
    gaps  int8range[] := '{}';
BEGIN
    IF length(printed) <= 128
       AND printed ~ '^[0-9]{1,19}(~[0-9]{1,19}(-[0-9]{1,19})?(,[0-9]{1,19}(-[0-9]{1,19})?)*)?$' THEN
        high := split_part(printed, '~', 1)::numeric;
        high := CASE WHEN high <= 9223372036854775807 THEN least(high, 9223372036854775806) END;
        above := high;
        FOREACH part IN ARRAY string_to_array(split_part(printed, '~', 2), ',') LOOP
            last := above - split_part(part, '-', 1)::numeric;
            first := last + 1 - coalesce(nullif(split_part(part, '-', 2), ''), '1')::numeric;
            IF last >= above OR first > last OR first < 1 THEN
                high := NULL;
                EXIT;
            END IF;
            gaps := gaps || int8range(first::bigint, last::bigint, '[]');
            above := first - 1;
        END LOOP;
    END IF;
    IF high IS NULL THEN
        RAISE EXCEPTION 'not a cursor: %', coalesce(quote_literal(left(printed, 40)), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = '''0'' is the cursor before the oldest event.';
    END IF;
    RETURN int8multirange(int8range(0, high::bigint, '[]')) - int8multirange(VARIADIC gaps);
END $$;

-- The text of a cursor, as sse_pg/core/cursor.py prints it: high, then the gaps from the top down, each as the count of ids
-- since the gap above and, if it is longer than one id, its length. It has at most 128 bytes: if the gaps do not fit, high
-- is lowered below the first gap that does not fit, and a reader may see events again.
CREATE FUNCTION sse_pg.cursor_text(offered int8multirange) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    spans   int8range[];
    top     integer;
    missing bigint;
    printed text;
BEGIN
    IF offered = int8multirange(range_merge(offered)) THEN
        RETURN (upper(offered) - 1)::text;
    END IF;
    spans := ARRAY(SELECT unnest(offered));
    top := least(cardinality(spans), 65);       -- more gaps never fit
    LOOP
        printed := (upper(spans[top]) - 1)::text;
        FOR i IN REVERSE top .. 2 LOOP
            missing := lower(spans[i]) - upper(spans[i - 1]);
            printed := printed || CASE WHEN i = top THEN '~' ELSE ',' END || (upper(spans[i]) - lower(spans[i]))
                || CASE WHEN missing > 1 THEN '-' || missing ELSE '' END;
        END LOOP;
        EXIT WHEN length(printed) <= 128;
        top := top - 1;
    END LOOP;
    RETURN printed;
END $$;

-- Every id up to `high` is visible or dead, except for the ranges of the gaps, ascending: events may still appear in them.
--
-- READ COMMITTED: the windows are read before the snapshot of the second statement, so the ranges are exact.
-- REPEATABLE READ: the transaction has one snapshot, and a publisher may have finished between the snapshot and reading
-- the locks. So the ranges begin at what a tail had noted in `log` before the snapshot. Dead ids may be among them; the
-- reader then looks for ids that do not exist, but misses no event. On a standby nobody can read the locks of the primary,
-- so there it is the same in every isolation level.
CREATE FUNCTION sse_pg.visible_position(OUT high bigint, OUT gap_first bigint[], OUT gap_last bigint[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    firsts bigint[];
    lasts  bigint[];
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') OR pg_is_in_recovery() THEN
        SELECT greatest(l.settled_to, (SELECT max(e.id) FROM sse_pg.events e)),
               l.open_first || (l.settled_to + 1), l.open_last || 9223372036854775807
          INTO high, firsts, lasts FROM sse_pg.log l;
    ELSE
        SELECT p.last, p.window_first, p.window_last INTO high, firsts, lasts FROM sse_pg.publishers() p;
    END IF;
    -- The windows as disjoint ranges up to high. Within each, the gaps are the ids between those that are visible.
    WITH spans AS (
        SELECT unnest(range_agg(int8range(w.first, least(w.last, high) + 1))) AS span
          FROM unnest(firsts, lasts) AS w(first, last) WHERE w.first <= least(w.last, high)),
    gaps AS (
        SELECT lag(e.id, 1, lower(s.span) - 1) OVER (PARTITION BY s.span ORDER BY e.id) + 1 AS first, e.id - 1 AS last
          FROM spans s
         CROSS JOIN LATERAL (
             SELECT i.id FROM sse_pg.events i WHERE i.id >= lower(s.span) AND i.id < upper(s.span)
              UNION ALL SELECT upper(s.span)) e)
    SELECT coalesce(array_agg(g.first ORDER BY g.first), '{}'), coalesce(array_agg(g.last ORDER BY g.first), '{}')
      INTO gap_first, gap_last
      FROM gaps g WHERE g.first <= g.last;
END $$;

-- The cursor from which a stream continues after what the caller's transaction sees. In REPEATABLE READ that is the
-- snapshot of the whole transaction; in READ COMMITTED it is the moment of this call, so call it before you read.
CREATE FUNCTION sse_pg.position() RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    here record;
BEGIN
    SELECT * INTO here FROM sse_pg.visible_position();
    RETURN sse_pg.cursor_text(int8multirange(int8range(0, here.high, '[]')) - (
        SELECT coalesce(range_agg(int8range(g.first, g.last, '[]')), '{}')
          FROM unnest(here.gap_first, here.gap_last) g(first, last)));
END $$;

-- Notes what is settled, if that has changed: for a server that reads no log on the primary, but is elected. Call it in READ
-- COMMITTED. It waits for nobody: if somebody holds the row, it notes nothing. Returns whether it has noted something, NULL if
-- nothing has changed.
CREATE FUNCTION sse_pg.write_mark() RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known sse_pg.log;
    here  record;
BEGIN
    SELECT * INTO known FROM sse_pg.log;
    IF known.settled_to = sse_pg.last_id() AND known.open_first = '{}' THEN
        RETURN NULL;
    END IF;
    SELECT * INTO here FROM sse_pg.visible_position();
    IF cardinality(here.gap_first) > 500 THEN
        here.high := here.gap_first[501] - 1;
        here.gap_first := here.gap_first[1:500];
        here.gap_last := here.gap_last[1:500];
    END IF;
    IF (known.settled_to, known.open_first, known.open_last) = (here.high, here.gap_first, here.gap_last) THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE sse_pg.log l SET settled_to = here.high, open_first = here.gap_first, open_last = here.gap_last
      FROM (SELECT k.only_row FROM sse_pg.log k FOR NO KEY UPDATE SKIP LOCKED) free
     WHERE l.only_row = free.only_row AND l.settled_to <= here.high;
    RETURN FOUND;
END $$;

-- ------------------------------------------------------------------ notifications

-- What was sent on sse_pg_control in the last hour, for servers that do not LISTEN. `transaction` finds the rows that a
-- server has not seen: numbers would not do, because transactions commit in another order than they draw them.
CREATE TABLE sse_pg.notifications (
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    message     text NOT NULL,
    sent_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX notifications_transaction ON sse_pg.notifications (transaction);

-- Sends messages to the servers when the caller's transaction commits.
CREATE FUNCTION sse_pg.notify_servers(messages text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO sse_pg.notifications (message) SELECT unnest(messages);
    PERFORM pg_notify('sse_pg_control', m) FROM unnest(messages) m;
END $$;

-- The messages of the transactions that have committed since an earlier snapshot, each once and in no order, and the
-- snapshot to pass to the next call. NULL returns none. At most `most` + 1 messages are returned; if there are more than
-- `most`, the caller has to assume that anything may have been sent.
--
-- A transaction that the earlier snapshot did not show is listed in it as running, or is at or above its upper end. So a
-- transaction that has been running for hours costs one look in the index, and not all rows of these hours. An id above
-- the own snapshot is left from another cluster, and is not returned again and again.
CREATE FUNCTION sse_pg.notifications_since(
    since pg_snapshot, most integer, OUT snapshot pg_snapshot, OUT messages text[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT pg_current_snapshot(), ARRAY(
        SELECT n.message FROM sse_pg.notifications n
         WHERE n.transaction >= pg_snapshot_xmax(since)
           AND n.transaction < pg_snapshot_xmax(pg_current_snapshot())
        UNION
        SELECT n.message FROM pg_snapshot_xip(since) x JOIN sse_pg.notifications n ON n.transaction = x
        LIMIT most + 1) INTO snapshot, messages;
END $$;

-- The messages, each with its transaction, of the transactions from this one on that the caller's snapshot shows. At most
-- `most` + 1. NULL returns none. For a standby: a snapshot there does not list the transactions that are running, so what was
-- returned before is returned again as long as the oldest of them runs.
CREATE FUNCTION sse_pg.messages_from(since xid8, most integer) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_agg(jsonb_build_array(n.transaction::text::numeric, n.message))
      FROM (SELECT f.transaction, f.message FROM sse_pg.notifications f WHERE f.transaction >= since LIMIT most + 1) n $$;

-- ------------------------------------------------------------------ epochs

-- After a restored backup, or a failover that lost commits, the sequence stands lower than before, so ids could be drawn
-- twice. A new epoch jumps over all ids that may have been drawn. A cursor below starts_at that has other ids than those
-- that are certain belongs to the log that was lost: nobody can say which events its reader lacks.
CREATE TABLE sse_pg.epochs (
    starts_at     bigint PRIMARY KEY,         -- ids of the epoch are higher
    -- Ids up to this one belong to the log before, and are certain, but for those in the open ranges.
    settled_to    bigint NOT NULL,
    open_first    bigint[] NOT NULL DEFAULT '{}',
    open_last     bigint[] NOT NULL DEFAULT '{}',
    identity      text NOT NULL,
    noticed_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Identifies the log: the cluster, its timeline (a promotion begins a new one), the database, the table. A part that the
-- owner may not read counts as unchanged.
CREATE FUNCTION sse_pg.log_identity() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    cluster  text := '';
    timeline text := '';
BEGIN
    BEGIN
        cluster := (SELECT c.system_identifier::text FROM pg_control_system() c);
        timeline := left(pg_walfile_name(pg_current_wal_lsn()), 8);
    EXCEPTION WHEN insufficient_privilege OR feature_not_supported THEN
        NULL;
    END;
    RETURN concat_ws('/', cluster, timeline, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()),
                     'sse_pg.events'::regclass::oid);
END $$;

-- Returns the identity of the log that the caller's connection leads to. Raises SP503 on a standby, whose events may lag
-- behind, and if the log is not the expected one; NULL accepts any.
CREATE FUNCTION sse_pg.expect_log(expected text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    here text;
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'the connection leads to a standby' USING ERRCODE = 'SP503';
    END IF;
    here := sse_pg.log_identity();
    IF expected <> here THEN
        RAISE EXCEPTION 'the connection leads to another log than the connection that listens' USING ERRCODE = 'SP503';
    END IF;
    RETURN here;
END $$;

-- What a primary and its standbys have in common, and no other copy of the log: the cluster's identifier, if the owner may
-- read it, and a digest of the key that was drawn with the log.
CREATE FUNCTION sse_pg.copy_identity() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    cluster text := '';
BEGIN
    BEGIN
        cluster := (SELECT c.system_identifier::text FROM pg_control_system() c);
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;
    END;
    RETURN concat_ws('/', cluster, (SELECT md5(l.control_key) FROM sse_pg.log l));
END $$;

-- Whether the trip-wire was set after the last recovery. Only a primary can tell.
CREATE FUNCTION sse_pg.wire_is_intact() RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_sequence_last_value('sse_pg.recovery_wire'::regclass)
           IS NOT DISTINCT FROM hashnameextended(current_database(), 'sse_pg.events'::regclass::oid::bigint) $$;

-- Whether ids that were handed out may be drawn again. The identity is not the one that a server noted last, or events are
-- above what the sequence has drawn. Such events come from logical replication or a data-only dump.
CREATE FUNCTION sse_pg.must_jump() RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM sse_pg.events e WHERE e.id > (SELECT sse_pg.last_id()))
        OR EXISTS (SELECT FROM sse_pg.log l
                    WHERE l.identity NOT IN ('', sse_pg.log_identity())
                      AND (l.settled_to > 0 OR l.purged_to > 0 OR sse_pg.last_id() > 0
                           OR EXISTS (SELECT FROM sse_pg.epochs))) $$;

-- Passes all ids that the log before may have handed out: the next id is at least 1,000,000,000 higher than every id that
-- is known to have been drawn. Returns the id above which the next ones lie. A jump is less than 2^31, so that publishers()
-- still computes the bounds of publishers in flight correctly. The caller holds the lock on sse_pg.epochs.
CREATE FUNCTION sse_pg.jump() RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT setval('sse_pg.last_jump', setval('sse_pg.events_id_seq', 1000000000 + greatest(
        sse_pg.last_id(), (SELECT max(e.id) FROM sse_pg.events e), (SELECT max(p.starts_at) FROM sse_pg.epochs p),
        (SELECT max(greatest(l.settled_to, l.purged_to)) FROM sse_pg.log l)))) $$;

-- Sets the trip-wire, and first passes the ids that may have been handed out. The caller holds the lock on sse_pg.epochs.
CREATE FUNCTION sse_pg.set_wire() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT sse_pg.wire_is_intact() THEN      -- otherwise somebody else was first
        IF sse_pg.must_jump() THEN
            PERFORM sse_pg.jump();
        END IF;
        PERFORM setval('sse_pg.recovery_wire',
                       hashnameextended(current_database(), 'sse_pg.events'::regclass::oid::bigint));
    END IF;
END $$;

-- Called by whoever publishes first after a recovery, before it draws an id. What it does survives a rollback of the
-- caller, as drawing an id does. It does not note the epoch: the caller may roll back, or stay open while others wait for
-- the row. After a plain crash the log is the one that a server noted last, and no id is passed.
--
-- The block ends with an error, so that the lock is free at once and not when the caller's transaction ends. It is a lock
-- on a table, because any session can hold an advisory lock.
CREATE FUNCTION sse_pg.recovered() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE sse_pg.epochs IN SHARE ROW EXCLUSIVE MODE;
    PERFORM sse_pg.set_wire();
    RAISE EXCEPTION USING ERRCODE = 'SPEND';
EXCEPTION WHEN SQLSTATE 'SPEND' THEN
    NULL;
END $$;

-- The id above which the ids of an epoch lie that nobody has noted yet; NULL if there is none.
CREATE FUNCTION sse_pg.unnoted_jump() RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT j.start FROM pg_sequence_last_value('sse_pg.last_jump'::regclass) AS j(start)
     WHERE j.start > (SELECT coalesce(max(e.starts_at), 0) FROM sse_pg.epochs e) $$;

-- Notes an epoch whose ids are above this one. What is certain is what a server had noted about the log before.
CREATE FUNCTION sse_pg.note_epoch(start bigint) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO sse_pg.epochs (starts_at, settled_to, open_first, open_last, identity)
    SELECT start, l.settled_to, l.open_first, l.open_last, sse_pg.log_identity() FROM sse_pg.log l;
    UPDATE sse_pg.log SET identity = sse_pg.log_identity();
    SELECT sse_pg.notify_servers(ARRAY['epoch']) $$;

-- Notes the epoch of a jump that a publisher made after a recovery. Returns whether there was one.
CREATE FUNCTION sse_pg.note_jump() RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    jumped bigint := sse_pg.unnoted_jump();
BEGIN
    IF jumped IS NULL THEN
        RETURN false;
    END IF;
    PERFORM sse_pg.note_epoch(jumped);
    RETURN true;
END $$;

-- The log has one row of facts, but a schema-only copy and TRUNCATE of every table leave none. The events that are missing
-- then count as purged.
CREATE FUNCTION sse_pg.make_log_row() RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO sse_pg.log (purged_to)
    SELECT coalesce((SELECT min(e.id) - 1 FROM sse_pg.events e), sse_pg.last_id())
     WHERE NOT EXISTS (SELECT FROM sse_pg.log)
    ON CONFLICT DO NOTHING $$;

-- Notes that more of the log before is certain than was known when an epoch began: a server that reads on in this log has
-- found in it what it had read. So a client that was given these events needs no gap event. Those with higher ids are
-- certain of nothing that it has not read itself, so what servers note is added up.
CREATE FUNCTION sse_pg.confirm_epochs(high bigint, open_first bigint[], open_last bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    read  int8multirange := sse_pg.settled_ids(high, confirm_epochs.open_first, confirm_epochs.open_last);
    e     sse_pg.epochs;
    known int8multirange;
    gaps  int8multirange;
BEGIN
    FOR e IN SELECT * FROM sse_pg.epochs WHERE starts_at > high FOR UPDATE LOOP
        known := sse_pg.settled_ids(e.settled_to, e.open_first, e.open_last);
        CONTINUE WHEN known @> read;
        known := known + read;
        gaps := int8multirange(range_merge(known)) - known;
        UPDATE sse_pg.epochs SET settled_to = upper(known) - 1,
               open_first = ARRAY(SELECT lower(g) FROM unnest(gaps) g),
               open_last = ARRAY(SELECT upper(g) - 1 FROM unnest(gaps) g)
         WHERE starts_at = e.starts_at;
        PERFORM sse_pg.notify_servers(ARRAY['epoch']);
    END LOOP;
END $$;

-- Begins an epoch. Call it by hand after restoring a disk snapshot, which cannot be distinguished from the cluster it was
-- taken from. Returns the id above which the epoch's ids lie.
CREATE FUNCTION sse_pg.begin_epoch() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    start bigint;
BEGIN
    PERFORM sse_pg.make_log_row();
    PERFORM FROM sse_pg.log FOR UPDATE;
    LOCK TABLE sse_pg.epochs IN SHARE ROW EXCLUSIVE MODE;
    PERFORM sse_pg.set_wire();
    PERFORM sse_pg.note_jump();
    start := sse_pg.jump();
    PERFORM sse_pg.note_epoch(start);
    RETURN start;
END $$;

-- Whether this is the log that a server noted last, and all that is known about it is noted.
CREATE FUNCTION sse_pg.is_known_log() RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT l.identity = sse_pg.log_identity() AND sse_pg.unnoted_jump() IS NULL
           AND NOT EXISTS (SELECT FROM sse_pg.events e WHERE e.id > (SELECT sse_pg.last_id()))
      FROM sse_pg.log l $$;

-- The logs that ended where an epoch began: which of their ids are certain, and above which id the next log begins. If no
-- server has noted an epoch that has begun, it is among them. A log that may have ended, without anybody having published
-- since, ends above all ids.
CREATE FUNCTION sse_pg.ended_logs() RETURNS TABLE (certain int8multirange, starts_at bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY SELECT sse_pg.settled_ids(e.settled_to, e.open_first, e.open_last), e.starts_at FROM sse_pg.epochs e;
    RETURN QUERY
    SELECT sse_pg.settled_ids(l.settled_to, l.open_first, l.open_last),
           coalesce(sse_pg.unnoted_jump(), 9223372036854775806)
      FROM sse_pg.log l
     WHERE CASE WHEN pg_is_in_recovery() THEN false WHEN sse_pg.unnoted_jump() IS NOT NULL THEN true
                ELSE NOT sse_pg.wire_is_intact() AND sse_pg.must_jump() END;
END $$;

-- The ids up to this one, but for those in the open ranges.
CREATE FUNCTION sse_pg.settled_ids(settled_to bigint, open_first bigint[], open_last bigint[]) RETURNS int8multirange
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT int8multirange(int8range(0, settled_to, '[]')) - coalesce(range_agg(int8range(o.first, o.last, '[]')), '{}')
      FROM unnest(open_first, open_last) o(first, last) $$;

-- The subscription (logical replication) that copies events into this log; NULL if there is none. What it copies has the ids
-- of another log and fires no trigger, so it comes in an order that readers do not expect.
CREATE FUNCTION sse_pg.copying_subscription() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.subname FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid
     WHERE s.subenabled
       AND (r.srrelid = 'sse_pg.events'::regclass
            OR r.srrelid IN (SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = 'sse_pg.events'::regclass))
     ORDER BY 1 LIMIT 1 $$;

-- Begins an epoch if the log is not the same as when a server last checked. Each server calls it before it reads, and
-- when it finds that the sequence went back. Returns whether it began one.
CREATE FUNCTION sse_pg.check_epoch() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF sse_pg.copying_subscription() IS NOT NULL THEN
        RAISE EXCEPTION 'the subscription % copies events into this log; servers wait until it is dropped or disabled',
            quote_ident(sse_pg.copying_subscription()) USING ERRCODE = 'SP503';
    END IF;
    PERFORM sse_pg.make_log_row();
    IF NOT sse_pg.wire_is_intact() THEN
        PERFORM sse_pg.recovered();
    END IF;
    IF NOT sse_pg.is_known_log() THEN
        PERFORM FROM sse_pg.log FOR UPDATE;     -- one server at a time
        IF NOT sse_pg.is_known_log() THEN
            LOCK TABLE sse_pg.epochs IN SHARE ROW EXCLUSIVE MODE;
            IF sse_pg.note_jump() THEN
                RETURN true;
            ELSIF sse_pg.must_jump() THEN
                PERFORM sse_pg.note_epoch(sse_pg.jump());
                RETURN true;
            END IF;
            UPDATE sse_pg.log SET identity = sse_pg.log_identity();     -- nobody has read it before
        END IF;
    END IF;
    -- After TRUNCATE ... RESTART IDENTITY or setval(), the notes may be about ids that are still to be drawn.
    UPDATE sse_pg.log l
       SET settled_to = least(l.settled_to, p.last, p.least_bound), open_first = '{}', open_last = '{}',
           purged_to = CASE WHEN l.purged_to > p.last THEN 0 ELSE l.purged_to END
      FROM sse_pg.publishers() p
     WHERE greatest(l.settled_to, l.purged_to) > p.last;
    DELETE FROM sse_pg.expired_channels x WHERE x.up_to > sse_pg.last_id();
    RETURN false;
END $$;

-- ------------------------------------------------------------------ readers in SQL

-- The cursors of the named consumers. The set is stored, not its text, so it never has to be lowered.
CREATE TABLE sse_pg.consumer_cursors (
    name       text COLLATE "C" PRIMARY KEY
        CHECK (char_length(name) BETWEEN 1 AND 255 AND name !~ E'[\\u0001-\\u001f\\u007f]'),
    channels   text[] COLLATE "C" NOT NULL,            -- ascending
    offered    int8multirange,                         -- NULL: nothing yet
    epoch      bigint NOT NULL,                        -- the newest one of the log when the cursor was written
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Checks what a reader asks for. Returns the channels in ascending order.
CREATE FUNCTION sse_pg.wanted_channels(channels text[], most integer) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF coalesce(cardinality(channels), 0) = 0 OR most < 1 OR most IS NULL THEN
        RAISE EXCEPTION 'a reader needs at least one channel, and may ask for 1 event or more'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF array_position(channels, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'a channel is NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sse_pg.check_channel(c.name) FROM unnest(channels) c(name);
    RETURN ARRAY(SELECT DISTINCT c.name COLLATE "C" FROM unnest(channels) c(name) ORDER BY 1);
END $$;

-- In REPEATABLE READ, a partition that was dropped or truncated after the snapshot looks empty, although `purged_to` is
-- still that of the snapshot. Call this after reading: it fails if the file of a partition is not the one of the snapshot.
CREATE FUNCTION sse_pg.refuse_purged_snapshot() RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') AND EXISTS (
        SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'sse_pg.events'::regclass
           AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid)) THEN
        RAISE EXCEPTION 'events were purged after this transaction took its snapshot'
            USING ERRCODE = 'serialization_failure', HINT = 'Run the transaction again.';
    END IF;
END $$;

-- Two functions read in a block that ends with an error of their own, SPEND. So the locks on the partitions end with the
-- block, and a reader whose transaction is long does not keep purge() from dropping them. What was read stays.

-- Whether there is something for a reader: an event that it lacks, or a purge of ids that it lacks.
CREATE FUNCTION sse_pg.is_behind(offered int8multirange, channels text[]) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET jit = off AS $$
DECLARE
    missing int8range[] := ARRAY(SELECT unnest(int8multirange(int8range(1, NULL)) - offered));
    found   boolean;
BEGIN
    found := (SELECT lower(missing[1]) <= l.purged_to FROM sse_pg.log l)
        OR EXISTS (SELECT FROM sse_pg.expired_channels x WHERE x.channel = ANY (channels) AND lower(missing[1]) <= x.up_to)
        OR EXISTS (SELECT FROM unnest(channels) c(channel) CROSS JOIN unnest(missing) m(ids)
                    CROSS JOIN LATERAL (
                        SELECT FROM sse_pg.events e
                         WHERE (e.channel, e.id) >= (c.channel, lower(m.ids))
                           AND (e.channel, e.id) < (c.channel, coalesce(upper(m.ids), 9223372036854775807))
                           AND e.id >= lower(missing[1])
                         ORDER BY e.channel, e.id LIMIT 1) f);
    PERFORM sse_pg.refuse_purged_snapshot();
    RAISE EXCEPTION USING ERRCODE = 'SPEND';
EXCEPTION WHEN SQLSTATE 'SPEND' THEN
    RETURN found;
END $$;

-- The ids of a set that belong to visible events of other channels. An event of the channels that becomes visible meanwhile
-- does not count, so it does not matter that its reader has read before this call.
CREATE FUNCTION sse_pg.visible_elsewhere(ids int8multirange, channels text[], most integer DEFAULT NULL)
RETURNS int8multirange
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET jit = off AS $$
BEGIN
    RETURN (SELECT coalesce(range_agg(int8range(f.id, f.id, '[]')), '{}')
              FROM (SELECT e.id
                      FROM unnest(ids) m(part)
                     CROSS JOIN LATERAL (
                         SELECT i.id FROM sse_pg.events i
                          WHERE i.id >= lower(m.part) AND i.id < coalesce(upper(m.part), 9223372036854775807)
                            AND i.channel <> ALL (channels)
                          ORDER BY i.id LIMIT most) e
                     LIMIT most) f);
END $$;

-- The ids that may still come, in the eyes of this transaction; all above the last id drawn are among them. The order is
-- that of the tail: the last id and the windows of the publishers in flight first, and after this call the rows. In READ
-- COMMITTED each statement of a VOLATILE function sees what was committed before it, so an id that is not in this set and
-- not among the rows is dead (docs/guarantee.md). In REPEATABLE READ all statements see the same; there, and on a standby, the
-- place of the windows is taken by what a tail had noted before the snapshot.
CREATE FUNCTION sse_pg.unsettled_ids() RETURNS int8multirange
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    firsts bigint[];
    lasts  bigint[];
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') OR pg_is_in_recovery() THEN
        SELECT l.open_first || (l.settled_to + 1), l.open_last || 9223372036854775807
          INTO firsts, lasts FROM sse_pg.log l;
    ELSE
        SELECT p.window_first || (p.last + 1), p.window_last || 9223372036854775807
          INTO firsts, lasts FROM sse_pg.publishers() p;
    END IF;
    -- The window of a statement that inserted no row holds no id.
    RETURN (SELECT range_agg(int8range(w.first, nullif(w.last, 9223372036854775807), '[]'))
              FROM unnest(firsts, lasts) w(first, last) WHERE w.first <= w.last);
END $$;

-- The events of these channels that a cursor lacks, ascending, each with the cursor after it: at most `most`, and at most
-- 8 MiB or one larger event. A row without event_type comes last if nothing is left; its cursor covers everything that is
-- settled. NULL is the cursor of a reader that begins at the oldest event. If ids that the cursor lacks were purged, the
-- first row has the type sse-pg.gap. If events of one channel were deleted because of keep(), such a row with the name of
-- the channel comes between the events below the newest one that was deleted and those above it.
--
-- `#> '{}'` fetches a payload that is stored outside of its row, so that the row can outlive the locks.
CREATE FUNCTION sse_pg.lacked(offered int8multirange, channels text[], most integer)
RETURNS TABLE (id bigint, channel text, event_type text, payload jsonb, headers jsonb, created_at timestamptz,
               reached int8multirange)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_incremental_sort = off SET jit = off AS $$
DECLARE
    unsettled    int8multirange := sse_pg.unsettled_ids();      -- before the rows
    missing      int8range[];
    part         int8multirange;
    e            record;
    previous     bigint := 0;
    given        integer := 0;
    bytes        bigint := 0;
    is_cut_off   boolean := false;
    is_checked   boolean := false;
    start        int8multirange;
BEGIN
    reached := coalesce(offered, '{[0,0]}');
    missing := ARRAY(SELECT unnest(int8multirange(int8range(1, NULL)) - reached));
    BEGIN
        FOR e IN
            SELECT l.purged_to, r.id, r.channel, r.event_type, r.payload #> '{}' AS payload, r.headers #> '{}' AS headers,
                   r.created_at, 100 + pg_column_size(r.payload) + coalesce(pg_column_size(r.headers), 0) AS bytes
              FROM sse_pg.log l
              LEFT JOIN LATERAL (
                  (SELECT f.*
                     FROM unnest(channels) c(channel) CROSS JOIN unnest(missing) m(ids)
                    CROSS JOIN LATERAL (
                        SELECT s.id, s.channel, s.event_type, s.payload, s.headers, s.created_at FROM sse_pg.events s
                         WHERE (s.channel, s.id) >= (c.channel, lower(m.ids))
                           AND (s.channel, s.id) < (c.channel, coalesce(upper(m.ids), 9223372036854775807))
                           AND s.id >= lower(missing[1])
                         ORDER BY s.channel, s.id LIMIT most) f
                    ORDER BY f.id LIMIT most)
                  UNION ALL
                  SELECT x.up_to, x.channel, 'sse-pg.gap', NULL, NULL, NULL
                    FROM sse_pg.expired_channels x WHERE x.channel = ANY (channels)) r ON true
             ORDER BY r.id
        LOOP
            EXIT WHEN is_cut_off;
            IF NOT is_checked THEN
                is_checked := true;
                part := int8multirange(int8range(0, e.purged_to, '[]'));
                IF NOT reached @> part THEN
                    reached := reached + part;
                    IF offered IS NOT NULL THEN
                        event_type := 'sse-pg.gap';
                        payload := jsonb_build_object('reason', 'expired', 'after', sse_pg.cursor_text(offered),
                                                      'before', sse_pg.cursor_text(reached));
                        created_at := clock_timestamp();
                        RETURN NEXT;
                    END IF;
                END IF;
                start := CASE WHEN offered IS NOT NULL THEN reached END;
            END IF;
            IF e.event_type = 'sse-pg.gap' THEN
                part := int8multirange(int8range(0, e.id, '[]'));
                IF NOT start @> part THEN
                    id := NULL; channel := e.channel; event_type := e.event_type; headers := NULL;
                    payload := jsonb_build_object('reason', 'expired', 'after', sse_pg.cursor_text(reached),
                                                  'before', sse_pg.cursor_text(reached + part));
                    created_at := clock_timestamp();
                    reached := reached + part;
                    previous := e.id;
                    RETURN NEXT;
                END IF;
            END IF;
            CONTINUE WHEN e.id IS NULL OR e.event_type = 'sse-pg.gap' OR reached @> e.id;
            bytes := bytes + CASE WHEN e.bytes < 2000 THEN e.bytes      -- it may be compressed
                                  ELSE octet_length(e.payload::text) + coalesce(octet_length(e.headers::text), 0) END;
            is_cut_off := given > 0 AND bytes > 8388608;
            EXIT WHEN is_cut_off;
            -- Ids of other channels that are visible among the unsettled ones leave no gaps.
            part := int8multirange(int8range(previous + 1, e.id)) * unsettled - reached;
            part := CASE WHEN isempty(part) THEN part ELSE sse_pg.visible_elsewhere(part, channels) END;
            reached := reached + (part + int8multirange(int8range(e.id, e.id, '[]'))
                                  + (int8multirange(int8range(previous, e.id)) - unsettled));
            id := e.id; channel := e.channel; event_type := e.event_type; payload := e.payload; headers := e.headers;
            created_at := e.created_at;
            RETURN NEXT;
            previous := e.id;
            given := given + 1;
            is_cut_off := given = most;
        END LOOP;
        PERFORM sse_pg.refuse_purged_snapshot();
        IF NOT is_checked THEN
            RAISE EXCEPTION 'sse_pg.log is empty, as after a truncation or in a copy without data'
                USING ERRCODE = 'SP503', HINT = 'Run sse-pg migrate, or start a server: both make its row again.';
        END IF;
        IF NOT is_cut_off THEN
            id := NULL; channel := NULL; event_type := NULL; payload := NULL; headers := NULL; created_at := NULL;
            reached := reached + (int8multirange(int8range(0, NULL)) - unsettled);
            part := int8multirange(int8range(previous + 1, NULL)) * unsettled - reached;
            reached := reached + sse_pg.visible_elsewhere(part, channels, 100000);      -- the rest at the next call
            RETURN NEXT;
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'SPEND';
    EXCEPTION WHEN SQLSTATE 'SPEND' THEN
        NULL;
    END;
END $$;

-- The events of these channels that a cursor lacks, in the caller's transaction, ascending, each with the cursor after it:
-- at most `most`, and at most 8 MiB or one larger event. '0' is the cursor before the oldest event. Nothing to read is no
-- row. A first row of the type sse-pg.gap says that events cannot be given any more (its payload is that of the same
-- event in a stream): they were purged, or the cursor belongs to another log.
--
-- The cursors are those of streams and of position(). As in a stream, a plain integer may claim ids that are in flight;
-- this part of the claim is dropped. On a standby, a cursor that has ids which are not there raises SP503.
CREATE FUNCTION sse_pg.read(after text, channels text[], most integer DEFAULT 100)
RETURNS TABLE (id bigint, channel text, event_type text, payload jsonb, headers jsonb, created_at timestamptz,
               cursor text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    wanted    text[] := sse_pg.wanted_channels(channels, most);
    offered   int8multirange := sse_pg.cursor_ids(after);
    unsettled int8multirange;
    certain   int8multirange;
    e         record;
BEGIN
    SELECT range_intersect_agg(h.certain) INTO certain
      FROM sse_pg.ended_logs() h WHERE upper(offered) - 1 < h.starts_at AND NOT h.certain @> offered;
    IF certain IS NOT NULL THEN
        offered := offered * certain;
    ELSIF pg_is_in_recovery() THEN
        unsettled := offered * sse_pg.unsettled_ids();
        IF NOT sse_pg.visible_elsewhere(unsettled, '{}') @> unsettled THEN
            -- Other readers may have been given these ids, or nobody: only the primary knows.
            RAISE EXCEPTION 'the cursor % has ids that this standby does not have', quote_literal(after)
                USING ERRCODE = 'SP503', HINT = 'Wait until the standby has caught up, or read from the primary.';
        ELSIF NOT sse_pg.is_behind(offered, wanted) THEN
            RETURN;
        END IF;
    ELSIF upper(offered) - 1 > sse_pg.last_id() THEN
        offered := sse_pg.cursor_ids(sse_pg.position());
        certain := '{}';
    ELSE
        IF NOT sse_pg.is_behind(offered, wanted) THEN
            RETURN;
        END IF;
        unsettled := offered * sse_pg.unsettled_ids();
        IF NOT isempty(unsettled) THEN
            offered := offered - unsettled + sse_pg.visible_elsewhere(unsettled, '{}');
        END IF;
    END IF;
    IF certain IS NOT NULL THEN
        event_type := 'sse-pg.gap';
        cursor := sse_pg.cursor_text(offered);
        payload := jsonb_build_object('reason', 'unknown', 'after', after, 'before', cursor);
        created_at := clock_timestamp();
        RETURN NEXT;
    END IF;
    FOR e IN SELECT * FROM sse_pg.lacked(offered, wanted, most) l WHERE l.event_type IS NOT NULL LOOP
        id := e.id; channel := e.channel; event_type := e.event_type; payload := e.payload; headers := e.headers;
        created_at := e.created_at; cursor := sse_pg.cursor_text(e.reached);
        RETURN NEXT;
    END LOOP;
END $$;

-- Whether consume() has something to do. If it has not, it writes nothing; a program that polls can ask this instead, and
-- need not begin a transaction.
CREATE FUNCTION sse_pg.has_work(consumer text, channels text[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known sse_pg.consumer_cursors;
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'consume() moves a cursor, and a standby cannot be written to' USING
            ERRCODE = 'read_only_sql_transaction', HINT = 'Call it on the primary. read() works on a standby.';
    END IF;
    SELECT * INTO known FROM sse_pg.consumer_cursors c WHERE c.name = consumer;
    RETURN NOT coalesce(
        known.channels = has_work.channels AND known.epoch >= (SELECT coalesce(max(h.starts_at), 0) FROM sse_pg.epochs h)
        AND upper(known.offered) - 1 <= sse_pg.last_id()
        AND (known.updated_at > clock_timestamp() - interval '10 seconds' OR upper(known.offered) > sse_pg.last_id())
        AND NOT sse_pg.is_behind(known.offered, has_work.channels), false);
END $$;

-- What read() returns, for a consumer with a name, whose cursor moves with the caller's transaction: after a rollback, the
-- same events come again. A new name begins at the oldest event. Two takers of one name never get the same events: the
-- second waits until the transaction of the first ends (in REPEATABLE READ it then fails with 40001). The channels of a
-- name cannot change.
--
-- A cursor in this table can never belong to another log: whatever restored or replaced the log did the same with the
-- table. So after an epoch began, a gap with the reason `unknown` says so once, and no event comes again.
--
-- If there is no event to give, the cursor moves over the events of other channels, but not more often than every ten
-- seconds: a consumer that polls writes nothing.
CREATE FUNCTION sse_pg.consume(consumer text, channels text[], most integer DEFAULT 100)
RETURNS TABLE (id bigint, channel text, event_type text, payload jsonb, headers jsonb, created_at timestamptz,
               cursor text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    wanted text[] := sse_pg.wanted_channels(channels, most);
    known  sse_pg.consumer_cursors;
    newest bigint;
    e      record;
BEGIN
    IF NOT sse_pg.has_work(consumer, wanted) THEN
        RETURN;
    END IF;
    SELECT coalesce(max(h.starts_at), 0) INTO newest FROM sse_pg.epochs h;
    LOOP
        INSERT INTO sse_pg.consumer_cursors (name, channels, epoch) VALUES (consumer, wanted, newest)
        ON CONFLICT DO NOTHING;
        SELECT * INTO known FROM sse_pg.consumer_cursors c WHERE c.name = consumer FOR UPDATE;
        EXIT WHEN FOUND;
    END LOOP;
    IF known.channels <> wanted THEN
        RAISE EXCEPTION 'the consumer % has the channels %', quote_literal(consumer), known.channels
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Take another name, which begins at the oldest event, or drop_consumer() first.';
    END IF;
    SELECT coalesce(max(h.starts_at), 0) INTO newest FROM sse_pg.epochs h;
    IF known.epoch < newest OR upper(known.offered) - 1 > sse_pg.last_id() THEN
        event_type := 'sse-pg.gap';
        cursor := sse_pg.cursor_text(known.offered);
        payload := jsonb_build_object('reason', 'unknown', 'after', cursor, 'before', cursor);
        created_at := clock_timestamp();
        IF upper(known.offered) - 1 > sse_pg.last_id() THEN      -- TRUNCATE ... RESTART IDENTITY: all of the log is new
            cursor := '0';
            payload := jsonb_set(payload, '{before}', '"0"');
            known.offered := NULL;
        END IF;
        RETURN NEXT;
    END IF;
    FOR e IN SELECT * FROM sse_pg.lacked(known.offered, wanted, most) LOOP
        known.offered := e.reached;
        IF e.event_type IS NOT NULL THEN
            id := e.id; channel := e.channel; event_type := e.event_type; payload := e.payload; headers := e.headers;
            created_at := e.created_at; cursor := sse_pg.cursor_text(e.reached);
            RETURN NEXT;
        END IF;
    END LOOP;
    IF (SELECT count(*) FROM unnest(known.offered)) > 2000 THEN
        RAISE EXCEPTION 'the cursor of the consumer % has more than 2000 gaps', quote_literal(consumer)
            USING ERRCODE = 'SP503', HINT = 'A transaction that publishes has been open for long; see sse-pg doctor. In '
                'REPEATABLE READ, a server must be running too.';
    END IF;
    UPDATE sse_pg.consumer_cursors c SET offered = known.offered, epoch = newest, updated_at = clock_timestamp()
     WHERE c.name = consumer;
END $$;

-- Forgets a consumer; returns whether there was one. It waits for a transaction that has taken events for the name.
CREATE FUNCTION sse_pg.drop_consumer(name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM sse_pg.consumer_cursors c WHERE c.name = drop_consumer.name;
    RETURN FOUND;
END $$;

-- The consumers, and how far each is behind. `lag` is the number of events that it lacks; counting ends at `most_events` in
-- a channel. `oldest_id` and `oldest_at` belong to the oldest event that it lacks, `ids_behind` is the number of ids from
-- there to the last one, without the jumps where epochs begin: a purge that keeps fewer takes events from the consumer.
-- `most` limits the result to so many consumers, those whose cursors lack the lowest ids.
CREATE FUNCTION sse_pg.consumer_states(most integer DEFAULT NULL, most_events integer DEFAULT 100000)
RETURNS TABLE (name text, channels text[], cursor text, lag bigint, updated_at timestamptz, oldest_id bigint,
               oldest_at timestamptz, ids_behind bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET jit = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT c.name, c.channels, sse_pg.cursor_text(coalesce(c.offered, '{[0,0]}')), coalesce(b.lag, 0)::bigint,
           c.updated_at, b.oldest_id, (SELECT e.created_at FROM sse_pg.events e WHERE e.id = b.oldest_id),
           greatest(sse_pg.last_id() - b.oldest_id + 1 - (
               SELECT coalesce(sum(p.starts_at - greatest(p.settled_to, b.oldest_id)), 0)
                 FROM sse_pg.epochs p WHERE p.starts_at > b.oldest_id), 0)::bigint
      FROM (SELECT a.* FROM sse_pg.consumer_cursors a
             ORDER BY lower(int8multirange(int8range(1, NULL)) - coalesce(a.offered, '{}')), a.name LIMIT most) c
     CROSS JOIN LATERAL (
         SELECT sum(n.lag) AS lag, min(n.oldest_id) AS oldest_id
           FROM unnest(c.channels) k(channel)
          CROSS JOIN unnest(int8multirange(int8range(1, NULL)) - coalesce(c.offered, '{}')) m(ids)
          CROSS JOIN LATERAL (
              SELECT count(*) AS lag, min(i.id) AS oldest_id
                FROM (SELECT e.id FROM sse_pg.events e
                       WHERE (e.channel, e.id) >= (k.channel, lower(m.ids))
                         AND (e.channel, e.id) < (k.channel, coalesce(upper(m.ids), 9223372036854775807))
                       ORDER BY e.channel, e.id LIMIT most_events) i) n) b
     ORDER BY c.name;
END $$;

-- The consumers whose cursors lack ids up to this one, which must all be settled. `lacks` is the lowest id of an event among
-- them, NULL if the consumer lacks none.
CREATE FUNCTION sse_pg.consumers_below(up_to bigint) RETURNS TABLE (name text, lacks bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET jit = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT c.name, (SELECT min(f.id)
                      FROM unnest(c.channels) k(channel)
                     CROSS JOIN unnest(int8multirange(int8range(1, up_to, '[]')) - c.offered) m(ids)
                     CROSS JOIN LATERAL (
                         SELECT e.id FROM sse_pg.events e
                          WHERE (e.channel, e.id) >= (k.channel, lower(m.ids))
                            AND (e.channel, e.id) < (k.channel, upper(m.ids))
                          ORDER BY e.channel, e.id LIMIT 1) f)
      FROM sse_pg.consumer_cursors c
     WHERE NOT c.offered @> int8multirange(int8range(1, up_to, '[]'));
END $$;

-- After a purge up to this id: moves the cursors of these consumers, which lack no event below it, so that they get no gap.
-- The cursor of a consumer that is just taking events stays.
CREATE FUNCTION sse_pg.pass_purged(names text[], up_to bigint) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    UPDATE sse_pg.consumer_cursors c SET offered = c.offered + int8multirange(int8range(0, up_to, '[]'))
      FROM (SELECT l.name FROM sse_pg.consumer_cursors l WHERE l.name = ANY (names) FOR UPDATE SKIP LOCKED) free
     WHERE c.name = free.name
$$;

-- Says that these consumers lack events that are gone. Returns their names, each once.
CREATE FUNCTION sse_pg.note_behind(names text[]) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    behind text[] := ARRAY(SELECT DISTINCT n.name FROM unnest(names) n(name) ORDER BY 1);
BEGIN
    IF cardinality(behind) > 0 THEN
        RAISE NOTICE 'events were purged that these consumers lack: %', array_to_string(behind, ', ');
    END IF;
    RETURN behind;
END $$;

CREATE VIEW sse_pg.consumers AS
SELECT s.name, s.channels, s.cursor, s.lag, s.updated_at FROM sse_pg.consumer_states() s;

-- ------------------------------------------------------------------ subscriptions

CREATE TABLE sse_pg.subscriptions (
    user_id    text COLLATE "C" NOT NULL
        CONSTRAINT subscriptions_user CHECK (sse_pg.check_user(user_id)),
    channel    text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, channel),
    CONSTRAINT subscriptions_channel CHECK (sse_pg.check_channel(channel))
);

-- Replaces a name in notifications on sse_pg_control: any role that can log in may LISTEN, and must not learn names.
-- Without the key nobody can find the name of a digest or forge one. The digest of the empty text stands for all names.
-- While sse_pg.log has no row there is no key; a server that makes the row reads everything anew.
CREATE FUNCTION sse_pg.digest(name text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT left(encode(sha256(convert_to(
        coalesce((SELECT l.control_key FROM sse_pg.log l), gen_random_uuid()::text) || name, 'UTF8')), 'hex'), 16)
$$;

-- Notifies the servers whose subscriptions changed, so that open streams follow: one notification per user for up to 100
-- users in a statement, and one for all users if there are more. Unlike the bell, this notification is always sent,
-- because no server polls this table.
--
-- A user may have at most 10,000 subscriptions, because a server reads all of them at each change. Transactions that
-- insert at the same time do not see each other's rows, so together they can exceed the limit.
CREATE FUNCTION sse_pg.subscriptions_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    users   text[];
    crowded text;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM sse_pg.notify_servers(ARRAY['subscriptions ' || sse_pg.digest('')]);
        RETURN NULL;
    END IF;
    IF TG_NAME IN ('added', 'moved_to') THEN
        SELECT c.user_id INTO crowded FROM (SELECT DISTINCT n.user_id FROM changed n) c
         WHERE (SELECT count(*) FROM (SELECT FROM sse_pg.subscriptions s WHERE s.user_id = c.user_id LIMIT 10001) few)
               > 10000
         LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'user % has reached the limit of 10000 subscriptions', crowded USING ERRCODE = '54000';
        END IF;
    END IF;
    users := ARRAY(SELECT DISTINCT c.user_id FROM changed c LIMIT 101);
    IF cardinality(users) > 100 THEN
        users := ARRAY[''];
    END IF;
    IF cardinality(users) > 0 THEN
        PERFORM sse_pg.notify_servers(ARRAY(SELECT 'subscriptions ' || sse_pg.digest(u) FROM unnest(users) u));
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER added AFTER INSERT ON sse_pg.subscriptions REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed();
CREATE TRIGGER removed AFTER DELETE ON sse_pg.subscriptions REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed();
CREATE TRIGGER moved_to AFTER UPDATE ON sse_pg.subscriptions REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed();
CREATE TRIGGER moved_from AFTER UPDATE ON sse_pg.subscriptions REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed();
CREATE TRIGGER emptied AFTER TRUNCATE ON sse_pg.subscriptions
    FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed();
ALTER TABLE sse_pg.subscriptions ENABLE ALWAYS TRIGGER added, ENABLE ALWAYS TRIGGER removed,
    ENABLE ALWAYS TRIGGER moved_to, ENABLE ALWAYS TRIGGER moved_from, ENABLE ALWAYS TRIGGER emptied;

-- Returns true if the subscription is new.
CREATE FUNCTION sse_pg.subscribe(user_id text, channel text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO sse_pg.subscriptions (user_id, channel) VALUES (subscribe.user_id, subscribe.channel)
    ON CONFLICT DO NOTHING;
    RETURN FOUND;
END $$;

-- Returns true if there was such a subscription.
CREATE FUNCTION sse_pg.unsubscribe(user_id text, channel text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM sse_pg.subscriptions s
     WHERE s.user_id = unsubscribe.user_id AND s.channel = unsubscribe.channel;
    RETURN FOUND;
END $$;

-- ------------------------------------------------------------------ the end of a channel

-- What finish() shows to may_write_end(). No channel and no user has a line break, so no notification has this digest.
CREATE FUNCTION sse_pg.sign_of_finish() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT sse_pg.digest(E'\nfinish ' || pg_backend_pid() || ' ' || extract(epoch FROM transaction_timestamp())) $$;

-- Says that a channel has ended: publishes an event of the type sse-pg.end in the caller's transaction, and returns its id.
-- The channel is finished as long as this is its event with the highest id, so a later publish opens it again. Streams with
-- until=end then end. Returns NULL if a trigger of yours discards the event.
CREATE FUNCTION sse_pg.finish(channel text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    published bigint;
    done      boolean;
BEGIN
    done := set_config('sse_pg.finishing', sse_pg.sign_of_finish(), true) IS NULL;
    INSERT INTO sse_pg.events (channel, event_type, payload)
    VALUES (finish.channel, 'sse-pg.end', jsonb_build_object('channel', finish.channel))
    RETURNING id INTO published;
    done := set_config('sse_pg.finishing', '', true) IS NULL;
    RETURN published;
END $$;

-- Of each of these channels that has events: the id and the type of the one with the highest id.
CREATE FUNCTION sse_pg.last_events(channels text[]) RETURNS TABLE (channel text, id bigint, event_type text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_sort = off SET enable_incremental_sort = off
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    -- The pairs are compared and ordered as in read_page(), and the plan is kept for the same reasons.
    RETURN QUERY
    SELECT c.channel, e.id, e.event_type
      FROM unnest(channels) AS c(channel)
     CROSS JOIN LATERAL (
         SELECT e.id, e.event_type FROM sse_pg.events e
          WHERE (e.channel, e.id) >= (c.channel, 0) AND (e.channel, e.id) <= (c.channel, 9223372036854775807)
          ORDER BY e.channel DESC, e.id DESC LIMIT 1) e;
END $$;

-- ------------------------------------------------------------------ access rules

-- Whether a user may do something with a channel, in addition to the rights in the user's token. The actions are 'publish'
-- (over HTTP) and 'subscribe' (stream, history, subscriptions). As shipped it allows everything. Replace it with CREATE OR
-- REPLACE FUNCTION to ask your own tables (docs/authorize.md); no migration changes it again. user_id is NULL if the
-- server requires no tokens and the request names no user. The result NULL means no.
CREATE FUNCTION sse_pg.authorize(user_id text, action text, channel text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT true $$;

-- When the caller's transaction commits, the servers forget what authorize() returned for a user and a channel (NULL
-- means any), and ask again for the open streams. Streams that are no longer allowed end before a later event is
-- delivered. Call it also after replacing authorize().
CREATE FUNCTION sse_pg.revoke(user_id text DEFAULT NULL, channel text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM sse_pg.notify_servers(ARRAY[
        concat_ws(' ', 'revoke', sse_pg.digest(coalesce(revoke.user_id, '')),
                  sse_pg.digest(coalesce(revoke.channel, '')))]);
END $$;

-- Ends the open streams of a user on every server when the caller's transaction commits. A client whose token is still
-- valid reconnects, and goes on where it was.
--
-- Every login may hear this message and send it again. So it has a number, and a server obeys each number once. The last
-- word is the signature: the digest of a text with a line break, which no user and no channel has.
CREATE FUNCTION sse_pg.disconnect(user_id text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    message text := concat_ws(' ', 'disconnect', sse_pg.digest(disconnect.user_id),
                              left(replace(gen_random_uuid()::text, '-', ''), 16));
BEGIN
    IF coalesce(disconnect.user_id, '') = '' THEN
        RAISE EXCEPTION 'disconnect() needs a user' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM sse_pg.notify_servers(ARRAY[message || ' ' || sse_pg.digest(E'\n' || message)]);
END $$;

-- ------------------------------------------------------------------ servers

-- A server holds a lock on its id as long as its LISTEN connection is open, so a server that dies is not listed any more.
-- A server that does not LISTEN has no connection of its own, and therefore no lock. It sets `alive_until` again and again
-- instead. Nothing that is guaranteed depends on it: a server that is taken for dead finds out what was purged meanwhile.
CREATE TABLE sse_pg.servers (
    id                 integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name               text NOT NULL,
    pid                integer NOT NULL,
    version            text NOT NULL,
    migration          integer NOT NULL,              -- the newest one that its code knows
    started_at         timestamptz NOT NULL DEFAULT now(),
    active_connections integer NOT NULL DEFAULT 0,
    position           bigint NOT NULL DEFAULT 0,     -- the highest id it had read, a few seconds ago
    read_to            bigint NOT NULL DEFAULT 0,     -- it had every event up to this id; lags while ids are in flight
    updated_at         timestamptz NOT NULL DEFAULT now(),
    alive_until        timestamptz                    -- of a server without a lock; NULL for the others
);

CREATE FUNCTION sse_pg.live_servers() RETURNS SETOF sse_pg.servers
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.*
      FROM sse_pg.servers s
     WHERE s.alive_until > clock_timestamp()
        OR s.id IN (
            SELECT l.objid::bigint FROM pg_locks l
             WHERE l.locktype = 'advisory' AND l.classid = sse_pg.lock_class('server') AND l.objsubid = 2 AND l.granted
               AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
     ORDER BY s.id
$$;

-- ------------------------------------------------------------------ open streams

-- Only a server knows its streams and what their clients have not read. So it writes nothing about single streams until
-- somebody asks. The notification says nothing, because every login can send one; the question is a row.
CREATE TABLE sse_pg.stream_questions (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id     text,                                 -- whose streams; NULL means everybody's
    most        integer NOT NULL CHECK (most BETWEEN 1 AND 10000),
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    asked_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE sse_pg.stream_answers (
    question bigint REFERENCES sse_pg.stream_questions ON DELETE CASCADE,
    server   integer,
    streams  integer NOT NULL,                        -- how many there are, listed or not
    listed   jsonb NOT NULL,
    PRIMARY KEY (question, server)
);

-- Asks all servers for their open streams, or for those of a user. They answer when the transaction commits; open_streams()
-- shows the answers. Each server lists at most `most` streams, those with the most unread bytes first, then the oldest.
-- Returns the number of the question, which holds for a minute.
CREATE FUNCTION sse_pg.ask_for_streams(user_id text DEFAULT NULL, most integer DEFAULT 1000) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    number bigint;
BEGIN
    DELETE FROM sse_pg.stream_questions q WHERE q.asked_at < now() - interval '10 minutes';
    INSERT INTO sse_pg.stream_questions (user_id, most) VALUES (ask_for_streams.user_id, ask_for_streams.most)
        RETURNING id INTO number;
    PERFORM sse_pg.notify_servers('{streams}');
    RETURN number;
END $$;

-- The answers to a question, by default to the newest one. Waits until all servers have answered, but not longer than
-- `patience`. Each server has at least one row, with or without a stream; `problem` says if it has not answered, or does not
-- list all of its streams. It fails if an empty result would say nothing: if nobody has asked, or no server is up.
CREATE FUNCTION sse_pg.open_streams(question bigint DEFAULT NULL, patience interval DEFAULT '3 seconds')
RETURNS TABLE (server integer, name text, pid integer, problem text, streams integer, user_id text, address text,
               channels text[], channel_count integer, since timestamptz, unread_bytes bigint, sent_bytes bigint,
               catching_up boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    began timestamptz := clock_timestamp();
    asked sse_pg.stream_questions;
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'open_streams() cannot wait for answers in a % transaction', current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state', HINT = 'Call it in READ COMMITTED.';
    END IF;
    SELECT * INTO asked FROM sse_pg.stream_questions q
     WHERE q.id = coalesce(open_streams.question, q.id) ORDER BY q.id DESC LIMIT 1;
    IF asked.id IS NULL OR asked.asked_at < began - interval '1 minute' THEN
        RAISE EXCEPTION 'nobody has asked the servers within the last minute'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'SELECT sse_pg.ask_for_streams();';
    ELSIF asked.transaction = pg_current_xact_id_if_assigned() THEN
        RAISE EXCEPTION 'the servers get the question when the transaction that asked commits'
            USING ERRCODE = 'invalid_transaction_state', HINT = 'Commit, then call open_streams().';
    ELSIF NOT EXISTS (SELECT FROM sse_pg.live_servers()) THEN
        RAISE EXCEPTION 'no server is up' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    WHILE clock_timestamp() < began + open_streams.patience AND EXISTS (
        SELECT FROM sse_pg.live_servers() s
         WHERE NOT EXISTS (SELECT FROM sse_pg.stream_answers a WHERE a.question = asked.id AND a.server = s.id))
    LOOP
        PERFORM pg_sleep(0.03);
    END LOOP;
    RETURN QUERY
        SELECT coalesce(s.id, a.server), s.name, s.pid,
               CASE WHEN a.server IS NULL THEN 'it has not answered'
                    WHEN s.id IS NULL THEN 'it is no longer up'
                    WHEN a.streams > jsonb_array_length(a.listed)
                    THEN format('only %s of its streams are listed', jsonb_array_length(a.listed)) END,
               a.streams, l."userId", l.address, l.channels, l."channelCount", l.since, l."unreadBytes", l."sentBytes",
               l."catchingUp"
          FROM sse_pg.live_servers() s
          FULL JOIN (SELECT n.* FROM sse_pg.stream_answers n WHERE n.question = asked.id) a ON a.server = s.id
          LEFT JOIN LATERAL jsonb_to_recordset(a.listed) AS l(
               "userId" text, address text, channels text[], "channelCount" integer, since timestamptz,
               "unreadBytes" bigint, "sentBytes" bigint, "catchingUp" boolean) ON true
         ORDER BY a.server IS NOT NULL, l."unreadBytes" DESC NULLS FIRST, l.since, 1;
END $$;

-- ------------------------------------------------------------------ erase, and retention by channel

-- What was deleted from the log row by row. Servers read it when they hear of a deletion, and take the events out of their
-- memory. The notification itself says nothing, because every login can send one. `transaction` finds the rows that a
-- reader has not seen: numbers would not do, because transactions commit in another order than they draw them. The channel
-- is a digest(): what was erased may be in its name too. purge() deletes the rows after a day.
CREATE TABLE sse_pg.deletions (
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    channel     text NOT NULL,
    first_id    bigint NOT NULL,
    last_id     bigint NOT NULL,
    expired     boolean NOT NULL,             -- deleted because of keep(); otherwise erased
    deleted_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX deletions_transaction ON sse_pg.deletions (transaction);

-- The retention of single channels, as keep() sets it.
CREATE TABLE sse_pg.kept_channels (
    pattern    text COLLATE "C" PRIMARY KEY,
    period     interval NOT NULL,
    CONSTRAINT kept_channels_pattern CHECK (sse_pg.check_channel(pattern)),
    CONSTRAINT kept_channels_period CHECK (period > interval '0')
);

-- Up to which id events of a channel were deleted because of keep(). A row stays after keep(..., NULL), until the whole log
-- is purged up to there: a cursor below `up_to` lacks events of this channel.
CREATE TABLE sse_pg.expired_channels (
    channel    text COLLATE "C" PRIMARY KEY,
    up_to      bigint NOT NULL
);

CREATE FUNCTION sse_pg.refuse_pattern(name text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF strpos(name, '*') > 0 THEN
        RAISE EXCEPTION '% is a pattern; only the name of one channel is possible here', quote_literal(name)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Call the function once for each channel.';
    ELSIF name IS NULL THEN
        RAISE EXCEPTION 'the channel is NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sse_pg.check_channel(name);
END $$;

-- Notes a deletion. The servers hear of it when the transaction commits.
CREATE FUNCTION sse_pg.note_deletion(channel text, first_id bigint, last_id bigint, expired boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO sse_pg.deletions (channel, first_id, last_id, expired)
    VALUES (sse_pg.digest(note_deletion.channel), note_deletion.first_id, note_deletion.last_id, note_deletion.expired);
    PERFORM sse_pg.notify_servers(ARRAY['deleted']);
END $$;

-- Deletes the channel's events that were created before a moment and, unless `containing` is NULL, whose payload contains
-- it (the operator @>). Returns how many those were. When the caller's transaction commits, the servers take the events
-- out of their memory. Clients get no gap event: an erased id is a hole on purpose.
--
-- Events of transactions that have not committed are not seen, and stay. An idempotency key keeps the id of its event and
-- loses the digest of its payload, so that a repeated publish with this key still does not bring the event back.
--
-- The plan is made anew for each call: without `containing` the index on (channel, id) has all the rows, and with it a
-- channel that has most of the log is read faster without the index.
CREATE FUNCTION sse_pg.erase(channel text, before timestamptz DEFAULT 'infinity', containing jsonb DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    erased bigint;
    first  bigint;
    last   bigint;
BEGIN
    PERFORM sse_pg.refuse_pattern(channel);
    IF before IS NULL THEN
        RAISE EXCEPTION '"before" is NULL' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Leave it out to erase events of any age.';
    END IF;
    WITH gone AS (
        DELETE FROM sse_pg.events e
         WHERE e.channel = erase.channel AND (before = 'infinity' OR e.created_at < before)
           AND (containing IS NULL OR e.payload @> containing)
        RETURNING e.id),
    forgotten AS (
        UPDATE sse_pg.idempotency_keys k SET digest = '' FROM gone g WHERE k.event_id = g.id)
    SELECT count(*), min(g.id), max(g.id) INTO erased, first, last FROM gone g;
    IF erased > 0 THEN
        PERFORM sse_pg.note_deletion(channel, first, last, false);
    END IF;
    RETURN erased;
END $$;

-- Keeps the events of a channel for a period and no longer; NULL takes that back. It shortens the retention: the limits of
-- the whole log hold for the channel too, because they drop whole partitions.
CREATE FUNCTION sse_pg.keep(pattern text, period interval) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    oldest timestamptz;
BEGIN
    PERFORM sse_pg.refuse_pattern(pattern);
    IF period IS NULL THEN
        DELETE FROM sse_pg.kept_channels k WHERE k.pattern = keep.pattern;
        RETURN;
    ELSIF period <= interval '0' OR NOT isfinite(period) THEN
        RAISE EXCEPTION 'the period is %, and must be longer than 0 and finite', period
            USING ERRCODE = 'invalid_parameter_value', HINT = 'sse_pg.erase() removes what is there now.';
    END IF;
    INSERT INTO sse_pg.kept_channels (pattern, period) VALUES (pattern, period)
    ON CONFLICT ON CONSTRAINT kept_channels_pkey DO UPDATE SET period = excluded.period;
    SELECT e.created_at INTO oldest FROM sse_pg.events e ORDER BY e.id LIMIT 1;
    IF oldest > now() - period AND EXISTS (SELECT FROM sse_pg.log l WHERE l.purged_to > 0) THEN
        RAISE NOTICE 'the whole log is purged sooner than after %', period
            USING HINT = 'keep() shortens the retention of a channel. For a longer one, raise that of the log.';
    END IF;
END $$;

-- The channels with a retention of their own. `oldest` is when the oldest event that is left was created, and `late` for
-- how long an event has been there that should be deleted; NULL if there is no such event.
CREATE VIEW sse_pg.retention AS
SELECT k.pattern, k.period, coalesce(x.up_to, 0) AS expired_to, o.created_at AS oldest,
       CASE WHEN o.created_at < now() - k.period THEN now() - k.period - o.created_at END AS late
  FROM sse_pg.kept_channels k
  LEFT JOIN sse_pg.expired_channels x ON x.channel = k.pattern
  LEFT JOIN LATERAL (
      SELECT e.created_at FROM sse_pg.events e
       WHERE (e.channel, e.id) >= (k.pattern, 0) AND (e.channel, e.id) <= (k.pattern, 9223372036854775807)
       ORDER BY e.channel, e.id LIMIT 1) o ON true;

-- Deletes what keep() no longer keeps, at most `most` events in a call; purge() calls it. Returns 'done', 'more', or 'busy'
-- if another session does the same.
--
-- It looks at the first `most` ids of each channel. Events are in the order of their ids and nearly in the order of their
-- times, so this finds what is old without reading the channel. It deletes no event that a server that is up has not read:
-- the streams of that server would lose it silently. A server that starts waits for a deletion that began before it was
-- registered; it sees the lock that is taken here. A server that stands still therefore delays these deletions, and the
-- view `retention` shows for how long.
CREATE FUNCTION sse_pg.purge_channels(most integer, OUT deleted bigint, OUT state text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET jit = off
SET enable_sort = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    settled bigint;
    k       sse_pg.kept_channels;
    ids     bigint[];
    old     bigint[];
BEGIN
    deleted := 0;
    state := 'done';
    IF NOT pg_try_advisory_xact_lock(sse_pg.lock_class('maintenance'), 1) THEN
        state := 'busy';
        RETURN;
    END IF;
    DELETE FROM sse_pg.deletions d WHERE d.deleted_at < now() - interval '1 day';
    DELETE FROM sse_pg.notifications n WHERE n.sent_at < now() - interval '1 hour';
    DELETE FROM sse_pg.stream_questions q WHERE q.asked_at < now() - interval '10 minutes';
    DELETE FROM sse_pg.expired_channels x USING sse_pg.log l WHERE x.up_to <= l.purged_to;
    IF NOT EXISTS (SELECT FROM sse_pg.kept_channels) THEN
        RETURN;
    END IF;
    SELECT least(p.last, p.least_bound) INTO settled FROM sse_pg.publishers() p;
    SELECT least(settled, min(s.read_to)) INTO settled FROM sse_pg.live_servers() s;
    FOR k IN SELECT c.* FROM sse_pg.kept_channels c LOOP
        SELECT array_agg(e.id ORDER BY e.id),
               array_agg(e.id ORDER BY e.id) FILTER (WHERE e.created_at < now() - k.period) INTO ids, old
          FROM (SELECT e.id, e.created_at FROM sse_pg.events e
                 WHERE (e.channel, e.id) >= (k.pattern, 0) AND (e.channel, e.id) <= (k.pattern, settled)
                   AND e.id <= settled
                 ORDER BY e.channel, e.id LIMIT most - deleted) e;
        CONTINUE WHEN old IS NULL;
        BEGIN
            DELETE FROM sse_pg.events e
             WHERE e.id = ANY (old) AND e.id BETWEEN old[1] AND old[cardinality(old)];
        EXCEPTION WHEN lock_not_available THEN      -- somebody erases the same events
            state := 'busy';
            CONTINUE;
        END;
        INSERT INTO sse_pg.expired_channels AS x (channel, up_to) VALUES (k.pattern, old[cardinality(old)])
        ON CONFLICT (channel) DO UPDATE SET up_to = greatest(x.up_to, excluded.up_to);
        PERFORM sse_pg.note_deletion(k.pattern, old[1], old[cardinality(old)], true);
        deleted := deleted + cardinality(old);
        IF cardinality(ids) >= most - deleted + cardinality(old) THEN
            state := 'more';
            EXIT;
        END IF;
    END LOOP;
END $$;

-- ------------------------------------------------------------------ retention

-- The partitions that are ranges of ids, ascending. The pattern has no backslash, because the text of a function is
-- parsed with its caller's standard_conforming_strings.
CREATE FUNCTION sse_pg.partitions() RETURNS TABLE (part regclass, first_id bigint, last_id bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.oid::regclass, b.bounds[1]::bigint, b.bounds[2]::bigint - 1
      FROM pg_inherits i
      JOIN pg_class c ON c.oid = i.inhrelid
     CROSS JOIN LATERAL regexp_match(pg_get_expr(c.relpartbound, c.oid),
           '^FOR VALUES FROM [(]''([0-9]+)''[)] TO [(]''([0-9]+)''[)]$') AS b(bounds)
     WHERE i.inhparent = 'sse_pg.events'::regclass AND b.bounds IS NOT NULL
     ORDER BY 2
$$;

-- Does a task while nobody else uses sse_pg.events; returns false if there was no moment for it. Publishers and readers
-- wait meanwhile: at most 20 ms until the lock is granted, and a few more for the task. If a transaction holds the table
-- for longer, nobody is made to wait.
--
-- The lock excludes publishers, although PostgreSQL attaches a partition under a weaker one. A statement routes its rows
-- by the partitions that it found when it began: a COPY that began before the attach would send an id of the new range to
-- the default partition, and fail.
--
-- The tasks are in this function, so that it takes no text to execute. Like everything that make_partitions() and purge()
-- call, it runs with the rights of its caller: those two run as the owner, and any other caller gains no rights.
CREATE FUNCTION sse_pg.alone(task text, ids bigint[], ends bigint[] DEFAULT NULL, parts regclass[] DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '20ms' AS $$
DECLARE
    here  text[];
    stay  text[];        -- the transactions that have been here since the first look
    tries integer := 0;
BEGIN
    FOR look IN 1 .. 20 LOOP
        here := ARRAY(
            SELECT DISTINCT l.virtualtransaction FROM pg_locks l
             WHERE l.locktype = 'relation' AND l.relation = 'sse_pg.events'::regclass AND l.granted
               AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
               AND l.pid IS DISTINCT FROM pg_backend_pid());
        stay := CASE WHEN stay IS NULL THEN here
                     ELSE ARRAY(SELECT unnest(stay) INTERSECT SELECT unnest(here)) END;
        IF cardinality(here) = 0 OR (look > 1 AND cardinality(stay) = 0) THEN
            BEGIN
                LOCK TABLE ONLY sse_pg.events IN ACCESS EXCLUSIVE MODE;
                PERFORM set_config('lock_timeout', '5ms', true);
                CASE task
                    WHEN 'attach' THEN PERFORM sse_pg.attach_partitions(ids, ends);
                    WHEN 'convert' THEN PERFORM sse_pg.convert_default(ids[1], ids[2]);
                    WHEN 'drop' THEN PERFORM sse_pg.drop_partitions(parts, ids[1]);
                END CASE;
                RETURN true;
            EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                tries := tries + 1;
                EXIT WHEN tries = 4;
                stay := NULL;
            END;
        END IF;
        PERFORM pg_sleep(0.02);
    END LOOP;
    RETURN false;
END $$;

-- Makes a table like sse_pg.events that is not a partition yet.
CREATE FUNCTION sse_pg.make_table(name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE TABLE sse_pg.%I (LIKE sse_pg.events INCLUDING ALL EXCLUDING IDENTITY)', name);
END $$;

CREATE FUNCTION sse_pg.rename_table(old_name text, new_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    index_name name;
BEGIN
    EXECUTE format('ALTER TABLE sse_pg.%I RENAME TO %I', old_name, new_name);
    FOR index_name IN
        SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
         WHERE i.indrelid = format('sse_pg.%I', new_name)::regclass AND starts_with(c.relname, old_name)
    LOOP
        EXECUTE format('ALTER INDEX sse_pg.%I RENAME TO %I',
                       index_name, new_name || substr(index_name, length(old_name) + 1));
    END LOOP;
END $$;

CREATE FUNCTION sse_pg.partition_name(first_id bigint) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT 'events_p' || lpad(first_id::text, greatest(15, length(first_id::text)), '0') $$;

-- Run by alone(): attaches the tables that make_table() made.
CREATE FUNCTION sse_pg.attach_partitions(firsts bigint[], ends bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    LOCK TABLE ONLY sse_pg.events_default IN ACCESS EXCLUSIVE MODE NOWAIT;
    IF sse_pg.last_id() >= greatest(firsts[1], 1) THEN
        RAISE EXCEPTION 'the sequence has reached id %', firsts[1] USING ERRCODE = 'lock_not_available';
    END IF;
    IF NOT EXISTS (SELECT FROM sse_pg.events_default d WHERE d.id >= firsts[1] ORDER BY d.id LIMIT 1) THEN
        PERFORM set_config('sse_pg.last_in_default', (firsts[1] - 1)::text, true);      -- see id_limit()
    END IF;
    FOR i IN 1 .. cardinality(firsts) LOOP
        EXECUTE format('ALTER TABLE sse_pg.events ATTACH PARTITION sse_pg.%I FOR VALUES FROM (%s) TO (%s)',
                       sse_pg.partition_name(firsts[i]), firsts[i], ends[i]);
    END LOOP;
    PERFORM set_config('sse_pg.last_in_default', '', true);
END $$;

-- Run by alone(): turns the whole default partition into the partition of the ids from `first_id` to the next multiple of
-- `size`, without reading its rows, and makes the empty table events_default_next the default partition. If its ids begin
-- later, as after a jump of the sequence, the partition begins later too, because purge() counts its events by the bounds.
CREATE FUNCTION sse_pg.convert_default(first_id bigint, size bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    start  bigint;
    end_id bigint := (greatest(sse_pg.last_id(), first_id) / size + 1) * size;
BEGIN
    LOCK TABLE ONLY sse_pg.events_default IN ACCESS EXCLUSIVE MODE NOWAIT;
    IF EXISTS (SELECT FROM sse_pg.events_default d WHERE d.id < first_id ORDER BY d.id LIMIT 1)
       OR EXISTS (SELECT FROM sse_pg.events_default d WHERE d.id >= end_id ORDER BY d.id LIMIT 1) THEN
        RAISE EXCEPTION 'sse_pg.events_default holds ids outside of % to %', first_id, end_id - 1
            USING HINT = 'They were inserted with OVERRIDING SYSTEM VALUE. Delete them, then retention continues.';
    END IF;
    start := (SELECT d.id FROM sse_pg.events_default d ORDER BY d.id LIMIT 1);
    start := greatest(first_id, coalesce(start, sse_pg.last_id()) / size * size);
    ALTER TABLE sse_pg.events DETACH PARTITION sse_pg.events_default;
    PERFORM set_config('sse_pg.first_in_default', start::text, true),
            set_config('sse_pg.last_in_default', (end_id - 1)::text, true);             -- see id_limit()
    EXECUTE format('ALTER TABLE sse_pg.events ATTACH PARTITION sse_pg.events_default FOR VALUES FROM (%s) TO (%s)',
                   start, end_id);
    PERFORM set_config('sse_pg.first_in_default', '', true), set_config('sse_pg.last_in_default', '', true);
    ALTER TABLE sse_pg.events_default DROP CONSTRAINT events_default_ids;
    PERFORM sse_pg.rename_table('events_default', sse_pg.partition_name(start));
    PERFORM sse_pg.rename_table('events_default_next', 'events_default');
    ALTER TABLE sse_pg.events ATTACH PARTITION sse_pg.events_default DEFAULT;
END $$;

-- Makes partitions for the next ids: `ahead` of them beyond the partition of the last id drawn, each up to a multiple of
-- `size`. If the sequence has outrun the partitions, it converts the default partition first. Returns how many it made:
-- 0 if all of them exist, NULL if it must be called again later, because another session holds the table or maintains it.
CREATE FUNCTION sse_pg.make_partitions(ahead integer DEFAULT 4, size bigint DEFAULT 1000000) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
    last     bigint;
    first_id bigint;
    firsts   bigint[] := '{}';
    ends     bigint[] := '{}';
BEGIN
    IF ahead < 0 OR size < 1 OR ahead IS NULL OR size IS NULL THEN
        RAISE EXCEPTION 'make_partitions(%, %): ahead is 0 or more, size 1 or more', ahead, size
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pg_try_advisory_xact_lock(sse_pg.lock_class('maintenance'), 0) THEN
        RETURN NULL;
    END IF;
    last := sse_pg.last_id();
    SELECT coalesce(max(p.last_id) + 1, (SELECT l.purged_to + (l.purged_to > 0)::integer FROM sse_pg.log l))
      INTO first_id FROM sse_pg.partitions() p;
    IF last >= first_id AND last > 0 THEN
        PERFORM sse_pg.make_table('events_default_next');
        ALTER TABLE sse_pg.events_default_next ADD CONSTRAINT events_default_ids CHECK (
            id BETWEEN sse_pg.id_limit('first_in_default', -9223372036854775808)
                   AND sse_pg.id_limit('last_in_default', 9223372036854775807));
        IF sse_pg.alone('convert', ARRAY[first_id, size]) THEN
            RETURN 1;
        END IF;
        DROP TABLE sse_pg.events_default_next;
        RETURN NULL;
    END IF;
    WHILE first_id <= last + ahead * size AND cardinality(firsts) < 8 LOOP
        firsts := firsts || first_id;
        first_id := (first_id / size + 1) * size;
        ends := ends || first_id;
    END LOOP;
    IF cardinality(firsts) = 0 THEN
        RETURN 0;
    END IF;
    PERFORM sse_pg.make_table(sse_pg.partition_name(f)) FROM unnest(firsts) f;
    IF sse_pg.alone('attach', firsts, ends) THEN
        RETURN cardinality(firsts);
    END IF;
    FOR i IN 1 .. cardinality(firsts) LOOP
        EXECUTE format('DROP TABLE sse_pg.%I', sse_pg.partition_name(firsts[i]));
    END LOOP;
    RETURN NULL;
END $$;

-- Notes that ids up to this one may be gone. The note is committed in the transaction that removes them.
CREATE FUNCTION sse_pg.note_purged(up_to bigint) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$ UPDATE sse_pg.log SET purged_to = up_to WHERE purged_to < up_to $$;

-- Whoever empties the table purges the log: readers that lack something of it get a gap. After the statement, because with
-- RESTART IDENTITY the sequence has begun again by then, and ids of the new log must not count as purged.
CREATE FUNCTION sse_pg.events_emptied() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM sse_pg.note_purged(sse_pg.last_id());
    RETURN NULL;
END $$;

CREATE TRIGGER emptied AFTER TRUNCATE ON sse_pg.events
    FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.events_emptied();
ALTER TABLE sse_pg.events ENABLE ALWAYS TRIGGER emptied;

-- Run by alone().
CREATE FUNCTION sse_pg.drop_partitions(parts regclass[], up_to bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part regclass;
BEGIN
    FOREACH part IN ARRAY parts LOOP
        EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE NOWAIT', part);
        EXECUTE format('DROP TABLE %s', part);
    END LOOP;
    PERFORM sse_pg.note_purged(up_to);
END $$;

-- Drops partitions, the oldest first, at most eight in a call: those with at least `keep_events` ids above them, and those
-- whose newest event is older than `keep`. NULL means no limit; a partition is dropped if either limit allows it. A
-- partition stays if a publisher in flight can still write to it, or if a server that is up has not read all of it. If a
-- transaction holds sse_pg.events for long, the partitions are truncated instead, which needs no lock on sse_pg.events; a
-- later call drops them. The function also deletes idempotency keys older than `keep_keys`, at most 10,000 in a call.
--
-- `behind` names the consumers that lack events which this call purged. `events` is how many ids were drawn in the
-- partitions' ranges, `deleted` how many events keep() no longer keeps were deleted, at most 1,000 in a call. `state` is 'done', 'more' (call again) or 'busy' (call again later).
CREATE FUNCTION sse_pg.purge(
    keep_events bigint DEFAULT NULL, keep interval DEFAULT NULL, keep_keys interval DEFAULT NULL,
    OUT partitions integer, OUT events bigint, OUT bytes bigint, OUT keys bigint, OUT purged_to bigint, OUT state text,
    OUT deleted bigint, OUT behind text[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '20ms' AS $$
#variable_conflict use_variable
DECLARE
    noted   bigint;      -- purged before; a partition below it was truncated and is still to be dropped
    last    bigint;
    settled bigint;      -- no id up to this one is still to be written or read
    jumps   int8multirange;          -- the ids that were skipped where an epoch begins
    above   bigint := 0;
    newest  timestamptz;
    p       record;
    parts   regclass[] := '{}';      -- ascending, as are the other arrays
    lasts   bigint[] := '{}';
    spans   bigint[] := '{}';
    aboves  bigint[] := '{}';        -- ids in newer partitions
    sizes   bigint[] := '{}';
    old     integer := 0;            -- how many of the first partitions are to be removed
    gone    integer := 0;            -- how many were removed
    newest_id bigint;
    tops    bigint[] := '{}';        -- the highest id of an event in them and those before
    more    boolean := false;        -- whether the next call can go on at once
    names   text[];                  -- consumers that lack ids of these partitions
    lacked  bigint[];                -- the lowest id of an event that each of them lacks, or NULL
BEGIN
    partitions := 0; events := 0; bytes := 0; keys := 0; deleted := 0; behind := '{}'; state := 'done';
    SELECT l.purged_to INTO noted FROM sse_pg.log l;
    purged_to := noted;
    IF NOT pg_try_advisory_xact_lock(sse_pg.lock_class('maintenance'), 0) THEN
        state := 'busy';
        RETURN;
    END IF;
    IF keep_keys IS NOT NULL THEN
        DELETE FROM sse_pg.idempotency_keys k WHERE k.key IN (
            SELECT o.key FROM sse_pg.idempotency_keys o WHERE o.created_at < now() - keep_keys
             ORDER BY o.created_at LIMIT 10000 FOR UPDATE SKIP LOCKED);
        GET DIAGNOSTICS keys = ROW_COUNT;
        more := keys = 10000;
    END IF;
    SELECT c.deleted, c.state, more OR c.state = 'more' INTO deleted, state, more FROM sse_pg.purge_channels(1000) c;
    IF deleted > 0 THEN
        behind := ARRAY(SELECT c.name FROM sse_pg.consumer_cursors c JOIN sse_pg.expired_channels x
                            ON x.channel = ANY (c.channels) AND NOT c.offered @> x.up_to);
    END IF;
    SELECT f.last, least(f.last, f.least_bound) INTO last, settled FROM sse_pg.publishers() f;
    -- The slowest server counts, unless it is stuck: it has shown no progress for a minute although there was an event to
    -- read. When it continues, it finds in `log` that events it had not read were purged, and its clients get a gap event.
    SELECT least(settled, min(s.read_to)) INTO settled
      FROM sse_pg.live_servers() s
     WHERE s.updated_at >= now() - interval '1 minute'
        OR NOT coalesce((SELECT e.created_at < now() - interval '1 minute'
                           FROM sse_pg.events e WHERE e.id > s.read_to ORDER BY e.id LIMIT 1), false);
    SELECT coalesce(range_agg(int8range(upper(e.certain), e.starts_at, '[]')), '{}') INTO jumps
      FROM sse_pg.ended_logs() e;
    -- The number of ids drawn in a partition's range is computed from its bounds: asking each table for its lowest and
    -- highest id would make a purge slower with each partition that stays. The default partition is above all others.
    FOR p IN
        SELECT q.part, q.last_id, CASE WHEN pg_relation_size(q.part) = 0 THEN 0 ELSE (
                   SELECT coalesce(sum(upper(r.ids) - lower(r.ids)), 0)
                     FROM unnest(int8multirange(int8range(q.first_id, greatest(q.first_id, least(q.last_id, last) + 1)))
                                 - jumps) AS r(ids)) END AS span
          FROM (SELECT n.part, greatest(n.first_id, 1) AS first_id, n.last_id FROM sse_pg.partitions() n
                 UNION ALL
                SELECT 'sse_pg.events_default', coalesce(max(n.last_id), noted) + 1, NULL
                  FROM sse_pg.partitions() n) q
         ORDER BY q.first_id DESC
    LOOP
        IF p.last_id IS NOT NULL THEN
            parts := p.part || parts;
            lasts := p.last_id || lasts;
            spans := p.span || spans;
            aboves := above || aboves;
        END IF;
        above := above + p.span;
    END LOOP;
    FOR i IN 1 .. cardinality(parts) LOOP
        EXIT WHEN lasts[i] > last;
        IF lasts[i] > noted AND (keep_events IS NULL OR aboves[i] < keep_events) THEN
            EXIT WHEN keep IS NULL;
            EXECUTE format('SELECT created_at FROM %s ORDER BY id DESC LIMIT 1', parts[i]) INTO newest;
            EXIT WHEN newest >= now() - keep;
        END IF;
        IF lasts[i] > settled THEN
            state := 'busy';
            EXIT;
        END IF;
        sizes := sizes || pg_total_relation_size(parts[i]);
        old := i;
    END LOOP;
    IF old = 0 THEN
        behind := sse_pg.note_behind(behind);
        state := CASE WHEN more THEN 'more' ELSE state END;
        RETURN;
    END IF;
    SELECT array_agg(c.name), array_agg(c.lacks) INTO names, lacked FROM sse_pg.consumers_below(lasts[old]) c;
    gone := least(old, 8);
    -- The newest event of each, 0 if there is none. The note says only what is dropped: a cursor in the empty rest of a
    -- partition, whose events were erased, lacks nothing.
    FOR i IN 1 .. old LOOP
        EXECUTE format('SELECT coalesce(max(id), 0) FROM %s', parts[i]) INTO newest_id;
        tops := tops || greatest(newest_id, tops[i - 1]);
    END LOOP;
    IF sse_pg.alone('drop', tops[gone:gone], parts => parts[1:gone]) THEN
        more := more OR old > gone;
    ELSE
        gone := 0;
        state := 'busy';
        FOR i IN 1 .. old LOOP
            BEGIN
                IF pg_relation_size(parts[i]) > 0 THEN
                    EXECUTE format('TRUNCATE TABLE ONLY %s', parts[i]);
                END IF;
            EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                EXIT;
            END;
            gone := i;
        END LOOP;
        PERFORM sse_pg.note_purged(tops[gone]) WHERE gone > 0;
    END IF;
    FOR i IN 1 .. gone LOOP
        IF spans[i] > 0 THEN             -- 0: it was truncated, and counted then
            partitions := partitions + 1;
            events := events + spans[i];
            bytes := bytes + sizes[i];
        END IF;
        purged_to := greatest(purged_to, tops[i]);
    END LOOP;
    PERFORM sse_pg.pass_purged(ARRAY(SELECT c.name FROM unnest(names, lacked) c(name, lacks)
                                      WHERE coalesce(c.lacks > purged_to, true)), purged_to);
    behind := sse_pg.note_behind(
        behind || ARRAY(SELECT c.name FROM unnest(names, lacked) c(name, lacks) WHERE c.lacks <= purged_to));
    state := CASE WHEN more THEN 'more' ELSE state END;
END $$;

-- All of the maintenance in one call, for pg_cron: purge(), then make_partitions().
CREATE FUNCTION sse_pg.maintain(
    keep_events bigint DEFAULT 10000000, keep interval DEFAULT NULL, keep_keys interval DEFAULT '24 hours',
    ahead integer DEFAULT 4, size bigint DEFAULT 1000000,
    OUT made integer, OUT partitions integer, OUT events bigint, OUT bytes bigint, OUT keys bigint,
    OUT purged_to bigint, OUT state text, OUT deleted bigint, OUT behind text[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    SELECT p.partitions, p.events, p.bytes, p.keys, p.purged_to, p.state, p.deleted, p.behind
      INTO partitions, events, bytes, keys, purged_to, state, deleted, behind
      FROM sse_pg.purge(keep_events, keep, keep_keys) p;
    made := sse_pg.make_partitions(ahead, size);
END $$;

-- ------------------------------------------------------------------ changes of tables

-- publish_changes() gives a table statement-level triggers, and a function of its own that publishes what each statement
-- changed. The function belongs to the owner of the table and runs with that owner's rights, so the expressions that it was
-- given never run with the rights of the bus. What was asked for is the argument of the triggers, in JSON. So a dump keeps
-- it, and there is no list of tables here that could disagree with the tables that exist.
--
-- The triggers are sse_pg_insert, sse_pg_update, sse_pg_delete and sse_pg_truncate. A partitioned table has sse_pg_truncated
-- too, and its partitions have the triggers with the argument 'partition', for statements that name a partition. The trigger
-- sse_pg_columns is disabled and never fires. It lists the columns that the function uses: PostgreSQL then refuses to drop
-- one of them, and follows when one is renamed.

-- The name of a channel from a template: literals[1], column_values[1], literals[2] and so on. What a name cannot hold is
-- encoded as in a URL, and the end of a name that is too long is replaced with a digest, so there is a channel for every
-- value. Every other '%' in a value is encoded too, so different values never lead to the same channel.
CREATE FUNCTION sse_pg.fill_channel(literals text[], column_values text[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    encoded CONSTANT text :=
        E'[\\u0001-\\u0020\\u007f-\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000,*%]';
    name text := literals[1];
    part text;
BEGIN
    FOR i IN 1 .. cardinality(column_values) LOOP
        part := coalesce(column_values[i], '%null');
        IF column_values[i] ~ encoded THEN
            SELECT string_agg(CASE WHEN c.one ~ encoded
                                   THEN regexp_replace(upper(encode(convert_to(c.one, 'UTF8'), 'hex')), '(..)', E'%\\1', 'g')
                                   ELSE c.one END, '' ORDER BY c.place)
                   || CASE WHEN char_length(part) > 255 THEN '%~' || md5(part) ELSE '' END
              INTO part
              FROM regexp_split_to_table(left(part, 255), '') WITH ORDINALITY AS c(one, place);
        END IF;
        name := name || part || literals[i + 1];
    END LOOP;
    RETURN CASE WHEN name = '' THEN '%empty'
                WHEN char_length(name) > 255 THEN left(name, 221) || '%~' || md5(name)
                ELSE name END;
END $$;

-- Takes a template apart for fill_channel(): {"literals": [...], "columns": [...]}.
CREATE FUNCTION sse_pg.channel_template(channel text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    token    text;
    literals text[] := ARRAY[''];
    columns  text[] := '{}';
BEGIN
    FOR token IN
        SELECT m.found[1] FROM regexp_matches(channel, '[{][{]|[}][}]|[{][^{}]+[}]|[{}]|[^{}]+', 'g') AS m(found)
    LOOP
        IF token IN ('{', '}') THEN
            RAISE EXCEPTION 'a brace in the channel % has no other half', quote_literal(channel)
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Write {column} for a column, {{ or }} for a brace.';
        ELSIF left(token, 1) = '{' AND token <> '{{' THEN
            columns := columns || substr(token, 2, length(token) - 2);
            literals := literals || ''::text;
        ELSE
            literals[cardinality(literals)] := literals[cardinality(literals)]
                || CASE token WHEN '{{' THEN '{' WHEN '}}' THEN '}' ELSE token END;
        END IF;
    END LOOP;
    IF channel IS NULL THEN
        RAISE EXCEPTION 'the channel is NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sse_pg.check_channel(array_to_string(literals, 'x'));
    RETURN jsonb_build_object('literals', literals, 'columns', columns);
END $$;

-- A row as JSON, or NULL if it is too large or PostgreSQL cannot write it as jsonb, such as json with \u0000 in it. An
-- error would fail the statement that changed the row.
CREATE FUNCTION sse_pg.row_as_json(the_row record, most integer) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    written jsonb;
BEGIN
    IF pg_column_size(the_row) <= most THEN
        written := to_jsonb(the_row);
    END IF;
    -- A number of one digit takes 12 bytes in jsonb, and 3 when it is printed.
    RETURN CASE WHEN pg_column_size(written) <= 4::bigint * most THEN written END;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;

-- Whether the table of events takes a payload.
CREATE FUNCTION sse_pg.can_publish(payload jsonb, most integer) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN sse_pg.payload_fits(payload, NULL, most);
EXCEPTION WHEN check_violation THEN
    RETURN false;
END $$;

-- What is published of a row that is too large: its key, or not even that.
CREATE FUNCTION sse_pg.truncated_change(name text, new_key jsonb, old_key jsonb, most integer) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    payload jsonb := jsonb_build_object('table', name, 'truncated', true);
    keyed   jsonb := payload || jsonb_strip_nulls(jsonb_build_object('new', new_key, 'old', old_key));
BEGIN
    RETURN CASE WHEN sse_pg.can_publish(keyed, most) THEN keyed ELSE payload END;
END $$;

-- What a statement-level trigger has to know about the columns as they are now, as bits: 1 = one of the names in `uses` is
-- missing, 2 = a row may not be writable as jsonb (json, and types that have a cast to json of their own), 4 = numbers may
-- have more digits than an event may. It is asked once per statement, so adding a column of any type is safe.
CREATE FUNCTION sse_pg.column_risks(source oid, uses name[]) RETURNS integer
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT CASE WHEN count(*) FILTER (WHERE a.attname = ANY (uses)) < cardinality(uses) THEN 1 ELSE 0 END
               | coalesce(bit_or(CASE
                    -- The usual types, by their oids: bool, char, name, int8, int2, int4, text, oid, float4, float8, money,
                    -- macaddr, inet, cidr, macaddr8, bpchar, varchar, bytea, date, time, timestamp, timestamptz, interval,
                    -- timetz, uuid
                    WHEN a.atttypid IN (16, 18, 19, 20, 21, 23, 25, 26, 700, 701, 790, 829, 869, 650, 774, 1042, 1043, 17,
                                        1082, 1083, 1114, 1184, 1186, 1266, 2950) THEN 0
                    -- numeric with at most 100 digits, and at most 100 after the point
                    WHEN a.atttypid = 1700 AND a.atttypmod > 0 AND (a.atttypmod - 4) >> 16 <= 100
                         AND (a.atttypmod - 4) & 2047 <= 100 THEN 0
                    -- numeric, jsonb, their arrays, and those of text, varchar, int4 and int8
                    WHEN a.atttypid IN (1700, 3802, 1231, 3807, 1009, 1007, 1016, 1015) THEN 4
                    ELSE (SELECT CASE WHEN t.typtype IN ('e', 'r', 'm') THEN 0 ELSE 6 END
                            FROM pg_type t WHERE t.oid = a.atttypid)
                    END), 0)
          FROM pg_attribute a WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped);
END $$;

-- A transition table, as it stands in FROM: by its name, or with the expressions of virtual columns, which it does not have.
CREATE FUNCTION sse_pg.transition_rows(source regclass, name text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN bool_or(a.attgenerated = 'v') THEN format('(SELECT %s FROM %I)', string_agg(
                    CASE a.attgenerated WHEN 'v' THEN format('(%s) AS %I', pg_get_expr(d.adbin, d.adrelid), a.attname)
                                        ELSE quote_ident(a.attname) END, ', ' ORDER BY a.attnum), name)
                ELSE name END
      FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped
$$;

-- The statement that publishes what one statement did to `source`, as text; `name` is the expression for the table's name
-- in the payload, and `risks` the one for column_risks(). It reads the rows
--   'changed'  from the transition tables. publish_changes() puts this text into the function of the table
--   'current'  from the table itself, those whose keys are in the transition tables. This is for rows that were changed
--              again before the trigger ran: by a trigger of a user, or by a second foreign key. The events of that change
--              are already written, and the older version of a row must not come after them
--   'table'    from the table or partition `part`, all of them, for TRUNCATE
--
-- A row counts if it meets the condition. So for those who follow, an UPDATE after which a row meets it, or no longer does,
-- is an INSERT or a DELETE. Old and new rows meet by key and channel: a row that changes one of these is a DELETE and
-- an INSERT. The join is a FULL JOIN, which PostgreSQL always does as a hash or merge join. For a nested loop, which is
-- right for few rows, a plan is kept in the session and would be used for many.
--
-- It only reads catalogs. It is declared IMMUTABLE because everybody may call such functions (see set_rights()): the
-- function of a table calls it as the table's owner, who should need no right except to publish.
CREATE FUNCTION sse_pg.change_statement(
    source regclass, settings jsonb, operation text, origin text, name text, risks text, part regclass DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    template  jsonb := sse_pg.channel_template(settings ->> 'channel');
    varies    boolean := jsonb_array_length(template -> 'columns') > 0;     -- whether the channel depends on the row
    keyed     boolean := jsonb_array_length(settings -> 'key') > 0;
    most      integer := (settings ->> 'most')::integer;
    large     integer := least(most / 64, 16384);     -- a row up to this size, with no risks, is not too large as JSON
    now       jsonb := '{}';       -- what the columns are called now, by the names that they had
    called    text;                -- the columns with the names that they had
    lost      text;
    new_rows  text := sse_pg.transition_rows(source, 'sse_pg_new');
    old_rows  text := sse_pg.transition_rows(source, 'sse_pg_old');
    condition text := coalesce(E'\n     WHERE (' || (settings ->> 'condition') || E'\n     )', '');
    picked    text := 'new';
    pick      text := '';
    channel   text := quote_literal(template -> 'literals' ->> 0);
    word      text;
    side      text;
    keys      text;
    meet      text;
    pairs     text;
    new_key   text;
    old_key   text;
    payload   text;
BEGIN
    -- A column that has the old name now is the one that was meant.
    SELECT jsonb_object_agg(u.name, coalesce(a.attname, b.attname)),
           string_agg(format('new.%I AS %I', coalesce(a.attname, b.attname, ''), u.name), ', '),
           min(u.name) FILTER (WHERE a.attname IS NULL AND b.attname IS NULL)
      INTO now, called, lost
      FROM jsonb_array_elements_text(settings -> 'uses') WITH ORDINALITY AS u(name, place)
      LEFT JOIN pg_attribute a ON a.attrelid = source AND a.attname = u.name AND NOT a.attisdropped AND a.attnum > 0
      LEFT JOIN pg_trigger t ON t.tgrelid = source AND t.tgname = 'sse_pg_columns'
      LEFT JOIN pg_attribute b ON b.attrelid = source AND b.attnum = t.tgattr[u.place - 1] AND NOT b.attisdropped;
    IF lost IS NOT NULL THEN
        RAISE EXCEPTION 'the changes of % are published with its column %, which no longer exists', source, quote_ident(lost)
            USING ERRCODE = 'undefined_column',
            HINT = 'The owner of the table can call sse_pg.publish_changes() again, or sse_pg.stop_publishing().';
    END IF;
    IF condition <> '' AND EXISTS (SELECT FROM jsonb_each_text(now) c WHERE c.key <> c.value) THEN
        condition := format(E'\n     WHERE (SELECT (%s\n     ) FROM (SELECT %s) AS new)', settings ->> 'condition', called);
    END IF;

    SELECT string_agg(quote_ident(now ->> (k.key ->> 'name')), ', ' ORDER BY k.place),
           string_agg(format('t.%1$I %2$s k.%1$I', now ->> (k.key ->> 'name'), k.key ->> 'equals'), ' AND '),
           string_agg(format(', new.%I AS k%s', now ->> (k.key ->> 'name'), k.place), '' ORDER BY k.place),
           string_agg(format('o.k%1$s %2$s n.k%1$s', k.place, k.key ->> 'equals'), ' AND '),
           'jsonb_build_object('
               || string_agg(format('%L, e.n%s', now ->> (k.key ->> 'name'), k.place), ', ' ORDER BY k.place) || ')',
           'jsonb_build_object('
               || string_agg(format('%L, e.o%s', now ->> (k.key ->> 'name'), k.place), ', ' ORDER BY k.place) || ')'
      INTO keys, meet, side, pairs, new_key, old_key
      FROM jsonb_array_elements(settings -> 'key') WITH ORDINALITY AS k(key, place);
    IF origin = 'table' THEN
        new_rows := part::text;
        old_rows := part::text;
    ELSIF origin = 'current' AND keyed AND NOT row_security_active(source) THEN
        -- OFFSET 0 makes it look up each key. The plan for many rows would read the whole table.
        new_rows := format('(SELECT t.* FROM (%s) k CROSS JOIN LATERAL (SELECT t.* FROM %s t WHERE %s OFFSET 0) t)',
            concat_ws(' UNION ', CASE WHEN operation <> 'DELETE' THEN format('SELECT %s FROM sse_pg_new', keys) END,
                                 CASE WHEN operation <> 'INSERT' THEN format('SELECT %s FROM sse_pg_old', keys) END),
            source, meet);
        -- The first version of each row.
        old_rows := format('(SELECT %1$s FROM (SELECT DISTINCT ON (%2$s) * FROM (SELECT *, row_number() OVER () AS '
            '"sse_pg place" FROM %3$s AS o) p ORDER BY %2$s, "sse_pg place") d)',
            (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
              WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped), keys, old_rows);
        operation := CASE operation WHEN 'DELETE' THEN 'UPDATE' ELSE operation END;      -- the row may be there again
    END IF;

    IF settings ->> 'columns' IS NOT NULL THEN
        pick := (SELECT string_agg(format('new.%I', now ->> n.name), ', ' ORDER BY n.place)
                   FROM jsonb_array_elements_text(settings -> 'columns') WITH ORDINALITY AS n(name, place));
    ELSIF EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = source AND a.attname = 'new' AND a.attnum > 0) THEN
        pick := 'new.*';
    END IF;
    IF pick <> '' THEN
        pick := format(' CROSS JOIN LATERAL (SELECT %s) AS "sse_pg picked"', pick);
        picked := '"sse_pg picked"';
    END IF;

    IF varies THEN
        -- Numbers and UUIDs hold nothing that fill_channel() encodes, and calling it takes longer than all the rest.
        SELECT CASE WHEN bool_and(a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'uuid'::regtype))
                         AND length(settings ->> 'channel') + 36 * count(*) <= 255
                    THEN quote_literal(template -> 'literals' ->> 0) || string_agg(
                        format(' || coalesce(new.%I::text, ''%%null'') || %L', a.attname,
                               template -> 'literals' ->> n.place::integer), '' ORDER BY n.place)
                    ELSE format('sse_pg.fill_channel(%L, ARRAY[%s])',
                        ARRAY(SELECT jsonb_array_elements_text(template -> 'literals')),
                        string_agg(format(CASE WHEN a.atttypid IN ('text'::regtype, 'varchar'::regtype) THEN 'new.%I::text'
                                               ELSE '(to_jsonb(new.%I) #>> ''{}'')' END, a.attname), ', ' ORDER BY n.place))
                    END
          INTO channel
          FROM jsonb_array_elements_text(template -> 'columns') WITH ORDINALITY AS n(name, place)
          JOIN pg_attribute a ON a.attrelid = source AND a.attname = now ->> n.name;
    END IF;
    IF operation = 'TRUNCATE' THEN
        RETURN format(E'INSERT INTO sse_pg.events (channel, event_type, payload)\n'
            'SELECT DISTINCT %s, ''TRUNCATE'', jsonb_build_object(''table'', %s) FROM %s AS new%s',
            channel, name, new_rows, condition);
    END IF;

    side := format('SELECT %s AS r, %s AS channel%s FROM ', picked, channel, coalesce(side, ''));
    new_rows := side || new_rows || ' AS new' || pick || condition;
    old_rows := side || old_rows || ' AS new' || pick || condition;
    IF operation = 'UPDATE' AND keyed THEN
        pairs := format($pairs$SELECT %1$s AS channel,
               CASE WHEN o.k1 IS NULL THEN 'INSERT' WHEN n.k1 IS NULL THEN 'DELETE' ELSE 'UPDATE' END AS event_type,
               CASE WHEN %3$s & 2 > 0 OR pg_column_size(n.r) > %4$s OR pg_column_size(o.r) > %4$s
                    THEN jsonb_build_object('table', %2$s)
                         || CASE WHEN n.k1 IS NULL THEN '{}'
                                 ELSE jsonb_set('{"new": 0}', '{new}', sse_pg.row_as_json(n.r, %5$s)) END
                         || CASE WHEN o.k1 IS NULL THEN '{}'
                                 ELSE jsonb_set('{"old": 0}', '{old}', sse_pg.row_as_json(o.r, %5$s)) END
                    WHEN o.k1 IS NULL THEN jsonb_build_object('table', %2$s, 'new', n.r)
                    WHEN n.k1 IS NULL THEN jsonb_build_object('table', %2$s, 'old', o.r)
                    ELSE jsonb_build_object('table', %2$s, 'new', n.r, 'old', o.r) END AS payload, %6$s
          FROM (%7$s) n
          FULL JOIN (%8$s) o ON %9$s$pairs$,
            CASE WHEN varies THEN 'coalesce(n.channel, o.channel)' ELSE channel END, name, risks, large, most,
            (SELECT string_agg(format('n.k%1$s AS n%1$s, o.k%1$s AS o%1$s', i), ', ')
               FROM generate_series(1, jsonb_array_length(settings -> 'key')) i),
            new_rows, old_rows, pairs || CASE WHEN varies THEN ' AND o.channel = n.channel' ELSE '' END);
        new_key := format('CASE WHEN e.n1 IS NOT NULL THEN %s END', new_key);
        old_key := format('CASE WHEN e.o1 IS NOT NULL THEN %s END', old_key);
    ELSE
        word := CASE operation WHEN 'DELETE' THEN 'old' ELSE 'new' END;
        pairs := format($rows$SELECT s.channel, %1$L AS event_type,
               CASE WHEN %3$s & 2 > 0 OR pg_column_size(s.r) > %4$s
                    THEN jsonb_set(jsonb_build_object('table', %2$s, %6$L, 0), '{%6$s}', sse_pg.row_as_json(s.r, %5$s))
                    ELSE jsonb_build_object('table', %2$s, %6$L, s.r) END AS payload%7$s
          FROM (%8$s) s$rows$,
            operation, name, risks, large, most, word,
            (SELECT string_agg(format(', s.k%1$s AS n%1$s, s.k%1$s AS o%1$s', i), '')
               FROM generate_series(1, jsonb_array_length(settings -> 'key')) i),
            CASE word WHEN 'old' THEN old_rows ELSE new_rows END);
        new_key := CASE word WHEN 'new' THEN coalesce(new_key, 'NULL') ELSE 'NULL' END;
        old_key := CASE word WHEN 'old' THEN coalesce(old_key, 'NULL') ELSE 'NULL' END;
    END IF;
    payload := format('CASE WHEN %1$s & 4 = 0 AND pg_column_size(e.payload) < %2$s OR sse_pg.can_publish(e.payload, %3$s)'
        ' THEN e.payload ELSE sse_pg.truncated_change(%4$s, %5$s, %6$s, %3$s) END',
        risks, large, most, name, new_key, old_key);
    IF operation = 'UPDATE' AND keyed THEN       -- a row leaves its old channel or key before it arrives in the new one
        RETURN format(E'WITH e AS MATERIALIZED (\n        %1$s)\n'
            'INSERT INTO sse_pg.events (channel, event_type, payload)\n'
            'SELECT e.channel, e.event_type, %2$s FROM e WHERE e.n1 IS NULL\n UNION ALL\n'
            'SELECT e.channel, e.event_type, %2$s FROM e WHERE e.n1 IS NOT NULL', pairs, payload);
    END IF;
    RETURN format(E'INSERT INTO sse_pg.events (channel, event_type, payload)\nSELECT e.channel, e.event_type, %s\n'
        '  FROM (%s\n        OFFSET 0) e', payload, pairs);
END $$;

-- The function of a published table, as text.
CREATE FUNCTION sse_pg.change_function(source regclass, settings jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    varies    boolean := jsonb_array_length(sse_pg.channel_template(settings ->> 'channel') -> 'columns') > 0;
    keyed     boolean := jsonb_array_length(settings -> 'key') > 0;
    condition text := coalesce(E' WHERE (' || (settings ->> 'condition') || E'\n)', '');
    any_new   text := format('EXISTS (SELECT FROM %s AS new%s)', sse_pg.transition_rows(source, 'sse_pg_new'), condition);
    any_old   text := format('EXISTS (SELECT FROM %s AS new%s)', sse_pg.transition_rows(source, 'sse_pg_old'), condition);
    keys      text := (SELECT string_agg(quote_ident(k.key ->> 'name'), ', ')
                         FROM jsonb_array_elements(settings -> 'key') AS k(key));
BEGIN
    RETURN format($body$
-- Made by sse_pg.publish_changes(). Call it again to change this, and sse_pg.stop_publishing() to drop it.
#variable_conflict use_column
DECLARE
    "sse_pg source" CONSTANT oid := CASE WHEN TG_ARGV[0] = 'partition' THEN pg_partition_root(TG_RELID) ELSE TG_RELID END;
    "sse_pg name" text := concat_ws('.', nullif(TG_TABLE_SCHEMA, 'public'), TG_TABLE_NAME);
    "sse_pg origin" text;
    "sse_pg depth" CONSTANT text := 'sse_pg.depth_' || "sse_pg source";
    "sse_pg risks" CONSTANT integer := sse_pg.column_risks(TG_RELID, %3$L);
    "sse_pg settings" CONSTANT jsonb := %1$L;
BEGIN
    IF TG_ARGV[0] = 'columns' THEN
        RETURN NULL;         -- somebody enabled all triggers
    ELSIF TG_ARGV[0] = 'partition' THEN
        IF "sse_pg source" IS NULL THEN
            RETURN NULL;     -- it was detached
        END IF;
        "sse_pg name" := (SELECT concat_ws('.', nullif(s.nspname, 'public'), c.relname)
                            FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace WHERE c.oid = "sse_pg source");
    END IF;
    IF TG_OP = 'TRUNCATE' THEN
        IF TG_WHEN = 'AFTER' THEN
            PERFORM set_config('sse_pg.truncating_' || "sse_pg source", '', true);
        ELSIF TG_ARGV[0] <> 'partition' THEN
            PERFORM set_config('sse_pg.truncating_' || "sse_pg source", 'on', true);     -- partitions follow
            %2$s
        ELSIF current_setting('sse_pg.truncating_' || "sse_pg source", true) = 'on' THEN
            NULL;
        ELSE
            EXECUTE sse_pg.change_statement("sse_pg source", "sse_pg settings", 'DELETE', 'table', '$1', '$2', TG_RELID)
              USING "sse_pg name", "sse_pg risks";
        END IF;
        RETURN NULL;
    END IF;
    -- A statement in a trigger publishes before the statement that fired the trigger does.
    IF coalesce(nullif(current_setting("sse_pg depth", true), ''), '0')::integer > pg_trigger_depth() THEN
        "sse_pg origin" := 'current';
    ELSIF "sse_pg risks" & 1 > 0 THEN
        "sse_pg origin" := 'changed';       -- by columns that have other names now
    END IF;
    IF "sse_pg origin" IS NOT NULL THEN
        EXECUTE sse_pg.change_statement("sse_pg source", "sse_pg settings", TG_OP, "sse_pg origin", '$1', '$2')
          USING "sse_pg name", "sse_pg risks";
        RETURN NULL;
    ELSIF pg_trigger_depth() > 1 THEN
        PERFORM set_config("sse_pg depth", pg_trigger_depth()::text, true);
    END IF;
    IF TG_OP = 'INSERT' THEN
        IF %4$s THEN
            %5$s;
        END IF;
    ELSIF TG_OP = 'DELETE' THEN
        IF %6$s THEN
            %7$s;
        END IF;
    ELSIF %8$s THEN
        %9$s%10$s;%11$s
    END IF;
    RETURN NULL;
END $body$,
        settings,
        CASE WHEN varies THEN 'EXECUTE sse_pg.change_statement("sse_pg source", "sse_pg settings", ''TRUNCATE'', ''table'', '
                              '''$1'', ''$2'', TG_RELID) USING "sse_pg name", "sse_pg risks";'
             ELSE format('INSERT INTO sse_pg.events (channel, event_type, payload) '
                         'VALUES (%L, ''TRUNCATE'', jsonb_build_object(''table'', "sse_pg name"));',
                         sse_pg.channel_template(settings ->> 'channel') -> 'literals' ->> 0) END,
        ARRAY(SELECT jsonb_array_elements_text(settings -> 'uses')),
        any_new, sse_pg.change_statement(source, settings, 'INSERT', 'changed', '"sse_pg name"', '"sse_pg risks"'),
        any_old, sse_pg.change_statement(source, settings, 'DELETE', 'changed', '"sse_pg name"', '"sse_pg risks"'),
        any_new || CASE WHEN keyed AND condition <> '' THEN ' OR ' || any_old ELSE '' END,
        -- With two foreign keys that update rows of this table, a row can be in the transition tables twice.
        CASE WHEN keyed THEN format($check$IF EXISTS (
            SELECT FROM pg_constraint c WHERE c.conrelid = TG_RELID AND c.contype = 'f'
               AND (c.confupdtype IN ('c', 'n', 'd') OR c.confdeltype IN ('n', 'd')))
           AND EXISTS (SELECT FROM sse_pg_new GROUP BY %s HAVING count(*) > 1) THEN
            EXECUTE sse_pg.change_statement("sse_pg source", "sse_pg settings", 'UPDATE', 'current', '$1', '$2')
              USING "sse_pg name", "sse_pg risks";
        ELSE
            $check$, keys) ELSE '' END,
        sse_pg.change_statement(source, settings, 'UPDATE', 'changed', '"sse_pg name"', '"sse_pg risks"'),
        CASE WHEN keyed THEN E'\n        END IF;' ELSE '' END);
END $$;

-- Publishes the changes of a table from the commit of the caller's transaction on. A later call replaces an earlier one.
--   source      a table, or a partitioned table; the caller must be its owner, and the owner may publish
--   channel     {column} stands for the value in the row, {{ and }} for braces
--   columns     what is published of a row; NULL means all columns, also those that are added later
--   condition   an expression about one row, which is called new. It is evaluated with the rights of the owner and
--               search_path = pg_catalog, so functions and tables need their schemas
--   operations  which statements: INSERT, UPDATE, DELETE, TRUNCATE; NULL means all
CREATE FUNCTION sse_pg.publish_changes(
    source regclass, channel text, columns text[] DEFAULT NULL, condition text DEFAULT NULL,
    operations text[] DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_variable
DECLARE
    wanted    text[] := coalesce((SELECT array_agg(DISTINCT upper(o)) FROM unnest(operations) o),
                                 CASE WHEN operations IS NULL THEN ARRAY['DELETE', 'INSERT', 'TRUNCATE', 'UPDATE'] END, '{}');
    facts     record;
    wrong     text;
    settings  jsonb;
    key       jsonb;
    uses      text[];
    before    oid[];         -- the functions that the table has now
    function  text;
    view      text;
    probe     refcursor;
    part      record;
    operation text;
BEGIN
    IF source IS NULL OR channel IS NULL THEN
        RAISE EXCEPTION 'publish_changes() needs a table and a channel' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    SELECT c.relkind, c.relpersistence, c.relispartition, c.relowner, c.relname, c.relnamespace, n.nspname,
           EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)) AS inherits,
           pg_get_userbyid(c.relowner) AS owner
      INTO facts FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = source;
    IF facts IS NULL THEN
        RAISE EXCEPTION 'there is no table with the oid %', source::oid USING ERRCODE = 'undefined_table';
    END IF;
    wrong := CASE
        WHEN facts.relkind NOT IN ('r', 'p') THEN CASE facts.relkind
            WHEN 'v' THEN 'is a view: publish the changes of its tables'
            WHEN 'm' THEN 'is a materialized view: publish the changes of its tables'
            WHEN 'f' THEN 'is a foreign table: what others write to it fires no trigger here'
            ELSE 'is not a table' END
        WHEN facts.nspname IN ('sse_pg', 'pg_catalog', 'information_schema') THEN 'belongs to the bus or to PostgreSQL'
        WHEN facts.relpersistence = 't' THEN 'is a temporary table: only its own session sees it'
        WHEN facts.relpersistence = 'u' THEN 'is unlogged: PostgreSQL empties it after a crash, and no event would say so'
        WHEN facts.relispartition THEN
            format('is a partition: publish the changes of %s', pg_partition_root(source))
        WHEN facts.relkind = 'r' AND facts.inherits THEN
            'inherits, or is inherited from: a statement fires only the triggers of the table that it names'
        WHEN EXISTS (SELECT FROM pg_partition_tree(source) t JOIN pg_class c ON c.oid = t.relid WHERE c.relkind = 'f') THEN
            'has a partition that is a foreign table: what others write to it fires no trigger here' END;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION '% %', source, wrong USING ERRCODE = 'wrong_object_type';
    END IF;
    IF NOT pg_has_role(facts.relowner, 'USAGE') THEN
        RAISE EXCEPTION 'only the owner of % can publish its changes', source USING ERRCODE = 'insufficient_privilege',
            HINT = format('The owner is %I.', facts.owner);
    END IF;
    IF NOT has_schema_privilege(facts.relowner, 'sse_pg', 'USAGE')
       OR EXISTS (SELECT FROM unnest(ARRAY['channel', 'event_type', 'payload']) c
                   WHERE NOT has_column_privilege(facts.relowner, 'sse_pg.events', c, 'INSERT')) THEN
        RAISE EXCEPTION '%, the owner of %, may not publish', quote_ident(facts.owner), source
            USING ERRCODE = 'insufficient_privilege',
            HINT = format('GRANT USAGE ON SCHEMA sse_pg TO %1$I; '
                          'GRANT INSERT (channel, event_type, payload) ON sse_pg.events TO %1$I', facts.owner);
    END IF;
    IF cardinality(wanted) = 0 OR NOT wanted <@ ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE'] THEN
        RAISE EXCEPTION 'the operations are INSERT, UPDATE, DELETE and TRUNCATE, not %', operations
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF cardinality(columns) = 0 THEN
        RAISE EXCEPTION 'the list of columns is empty' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'NULL means all columns.';
    END IF;
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', source);      -- two calls for one table take turns
    uses := columns || ARRAY(SELECT jsonb_array_elements_text(sse_pg.channel_template(channel) -> 'columns'));
    SELECT c.name INTO wrong FROM unnest(uses) AS c(name)
     WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = source AND a.attname = c.name AND a.attnum > 0
                          AND NOT a.attisdropped);
    IF FOUND THEN
        RAISE EXCEPTION '% has no column %', source, quote_nullable(wrong) USING ERRCODE = 'undefined_column';
    END IF;

    -- A cursor takes one statement, and plans it without running it. The condition has to be an expression in both places.
    IF condition IS NOT NULL THEN
        BEGIN
            OPEN probe FOR EXECUTE format(E'SELECT FROM %s AS new WHERE CASE WHEN %s\n THEN true END', source, condition);
            CLOSE probe;
            OPEN probe FOR EXECUTE format(E'SELECT FROM %s AS new WHERE (%s\n)', source, condition);
            CLOSE probe;
        EXCEPTION WHEN OTHERS THEN
            RAISE EXCEPTION 'the condition % cannot be used: %', quote_literal(condition), SQLERRM USING ERRCODE = SQLSTATE,
                HINT = 'It is a boolean expression about one row, which is called new. A name that is not in pg_catalog '
                       'needs its schema.';
        END;
    END IF;

    -- The function that the table has already is replaced, unless the table has another owner or schema since.
    before := ARRAY(SELECT DISTINCT t.tgfoid FROM pg_trigger t
                     WHERE t.tgrelid = source
                       AND t.tgname IN ('sse_pg_insert', 'sse_pg_update', 'sse_pg_delete', 'sse_pg_truncate'));
    function := (SELECT p.proname FROM pg_proc p
                  WHERE p.oid = ANY (before) AND p.proowner = facts.relowner AND p.pronamespace = facts.relnamespace
                    AND substring(p.prosrc, 1, 60) LIKE '%Made by sse_pg.publish_changes()%' LIMIT 1);
    IF function IS NULL THEN
        function := ('sse_pg_' || left(facts.relname, 40) || '_changes')::name;
        -- A function that no trigger uses is left from a table that was dropped.
        WHILE EXISTS (SELECT FROM pg_proc p
                       WHERE p.pronamespace = facts.relnamespace AND p.proname = function
                         AND NOT (p.proowner = facts.relowner AND p.prosrc LIKE '%Made by sse_pg.publish_changes()%'
                                  AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgfoid = p.oid))) LOOP
            function := ('sse_pg_' || left(facts.relname, 40) || '_' || left(gen_random_uuid()::text, 8))::name;
        END LOOP;
    END IF;

    SELECT coalesce(jsonb_agg(jsonb_build_object(
               'name', a.attname, 'equals', format('OPERATOR(%I.%s)', s.nspname, o.oprname)) ORDER BY k.place), '[]')
      INTO key
      FROM pg_index i
     CROSS JOIN LATERAL generate_series(0, i.indnkeyatts - 1) AS k(place)
      JOIN pg_attribute a ON a.attrelid = source AND a.attnum = i.indkey[k.place]
      JOIN pg_opclass c ON c.oid = i.indclass[k.place]
      JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
           AND m.amopstrategy = 3          -- equality in a B-tree
      JOIN pg_operator o ON o.oid = m.amopopr
      JOIN pg_namespace s ON s.oid = o.oprnamespace
     WHERE i.indrelid = source AND i.indisprimary;
    IF condition IS NOT NULL THEN          -- PostgreSQL knows which columns an expression uses
        view := 'sse_pg_' || gen_random_uuid();
        EXECUTE format(E'CREATE VIEW %I.%I AS SELECT 1 AS one FROM %s AS new WHERE (%s\n)',
                       facts.nspname, view, source, condition);
        uses := uses || ARRAY(
            SELECT a.attname::text
              FROM pg_rewrite r
              JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refobjid = source
              JOIN pg_attribute a ON a.attrelid = source AND a.attnum = d.refobjsubid AND a.attnum > 0
             WHERE r.ev_class = format('%I.%I', facts.nspname, view)::regclass);
        EXECUTE format('DROP VIEW %I.%I', facts.nspname, view);
    END IF;
    IF sse_pg.transition_rows(source, 'sse_pg_new') <> 'sse_pg_new' THEN       -- it names every column
        uses := uses || ARRAY(SELECT a.attname::text FROM pg_attribute a
                               WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped);
    END IF;
    uses := ARRAY(SELECT k ->> 'name' FROM jsonb_array_elements(key) k UNION SELECT unnest(uses) ORDER BY 1);
    settings := jsonb_build_object(
        'channel', channel, 'columns', columns, 'condition', condition, 'operations', wanted, 'key', key, 'uses', uses,
        'most', (SELECT coalesce(min(substring(pg_get_constraintdef(k.oid) FROM 'payload_fits[(].*, ([0-9]+)[)]')::integer),
                                 1048576)
                   FROM pg_constraint k WHERE k.conrelid = 'sse_pg.events'::regclass AND k.conname = 'events_payload'));
    IF key = '[]' THEN
        RAISE NOTICE '% has no primary key: the event of an UPDATE has the new row and not the old one', source;
    END IF;

    EXECUTE format('CREATE OR REPLACE FUNCTION %I.%I() RETURNS trigger LANGUAGE plpgsql VOLATILE SECURITY DEFINER '
        'SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on SET row_security = off SET jit = off '
        'SET plan_cache_mode = force_generic_plan '
        'SET DateStyle = ''ISO, MDY'' SET IntervalStyle = postgres SET TimeZone = UTC SET bytea_output = hex '
        'SET extra_float_digits = 1 AS %L', facts.nspname, function, sse_pg.change_function(source, settings));
    EXECUTE format('REVOKE ALL ON FUNCTION %I.%I() FROM PUBLIC', facts.nspname, function);
    FOR part IN
        SELECT t.relid::regclass AS name, t.relid = source AS top, t.isleaf
          FROM pg_partition_tree(source) t UNION SELECT source, true, facts.relkind = 'r' ORDER BY 2 DESC
    LOOP
        FOREACH operation IN ARRAY ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE'] LOOP
            IF operation = ANY (wanted) AND (operation <> 'TRUNCATE' OR part.top OR part.isleaf) THEN
                EXECUTE format(
                    'CREATE OR REPLACE TRIGGER %I %s %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION %I.%I(%L)',
                    'sse_pg_' || lower(operation),
                    CASE operation WHEN 'TRUNCATE' THEN 'BEFORE' ELSE 'AFTER' END, operation,
                    part.name, CASE operation
                        WHEN 'INSERT' THEN 'REFERENCING NEW TABLE AS sse_pg_new'
                        WHEN 'UPDATE' THEN 'REFERENCING NEW TABLE AS sse_pg_new OLD TABLE AS sse_pg_old'
                        WHEN 'DELETE' THEN 'REFERENCING OLD TABLE AS sse_pg_old' ELSE '' END,
                    facts.nspname, function, CASE WHEN part.top THEN settings::text ELSE 'partition' END);
            ELSIF EXISTS (SELECT FROM pg_trigger t
                           WHERE t.tgrelid = part.name AND t.tgname = 'sse_pg_' || lower(operation)) THEN
                EXECUTE format('DROP TRIGGER %I ON %s', 'sse_pg_' || lower(operation), part.name);
            END IF;
        END LOOP;
    END LOOP;
    IF facts.relkind = 'p' AND 'TRUNCATE' = ANY (wanted) THEN
        EXECUTE format('CREATE OR REPLACE TRIGGER sse_pg_truncated AFTER TRUNCATE ON %s FOR EACH STATEMENT '
                       'EXECUTE FUNCTION %I.%I(''truncated'')', source, facts.nspname, function);
    ELSIF EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = source AND t.tgname = 'sse_pg_truncated') THEN
        EXECUTE format('DROP TRIGGER sse_pg_truncated ON %s', source);
    END IF;
    IF cardinality(uses) > 0 THEN
        EXECUTE format('CREATE OR REPLACE TRIGGER sse_pg_columns BEFORE UPDATE OF %s ON %s FOR EACH STATEMENT '
                       'EXECUTE FUNCTION %I.%I(''columns'')',
                       (SELECT string_agg(quote_ident(u.name), ', ' ORDER BY u.place)
                          FROM unnest(uses) WITH ORDINALITY AS u(name, place)), source, facts.nspname, function);
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER sse_pg_columns', source);
    ELSIF EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = source AND t.tgname = 'sse_pg_columns') THEN
        EXECUTE format('DROP TRIGGER sse_pg_columns ON %s', source);
    END IF;
    IF facts.owner <> current_user::text THEN
        EXECUTE format('ALTER FUNCTION %I.%I() OWNER TO %I', facts.nspname, function, facts.owner);
    END IF;
    FOR part IN
        SELECT p.oid::regprocedure AS name FROM pg_proc p
         WHERE p.oid = ANY (before) AND pg_has_role(p.proowner, 'USAGE')
           AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgfoid = p.oid)
    LOOP
        EXECUTE format('DROP FUNCTION %s', part.name);
    END LOOP;
END $$;

-- Ends what publish_changes() began. Returns whether the table was published.
CREATE FUNCTION sse_pg.stop_publishing(source regclass) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    function oid;
    used     record;
    found    boolean := false;
BEGIN
    FOR function IN
        SELECT DISTINCT t.tgfoid FROM pg_trigger t
         WHERE t.tgrelid = source AND substr(t.tgargs, 1, 1) = '{'
           AND t.tgname IN ('sse_pg_insert', 'sse_pg_update', 'sse_pg_delete', 'sse_pg_truncate')
    LOOP
        found := true;
        FOR used IN
            SELECT t.tgname AS name, t.tgrelid::regclass AS on_table FROM pg_trigger t WHERE t.tgfoid = function
        LOOP
            EXECUTE format('DROP TRIGGER %I ON %s', used.name, used.on_table);
        END LOOP;
        IF (SELECT pg_has_role(p.proowner, 'USAGE') FROM pg_proc p WHERE p.oid = function) THEN
            EXECUTE format('DROP FUNCTION %s', function::regprocedure);
        END IF;
    END LOOP;
    RETURN found;
END $$;

-- The tables whose changes are published. `problem` is NULL if all is well.
CREATE VIEW sse_pg.published_tables AS
SELECT p.source, p.settings ->> 'channel' AS channel,
       CASE WHEN p.settings ->> 'columns' IS NOT NULL
            THEN ARRAY(SELECT jsonb_array_elements_text(p.settings -> 'columns')) END AS columns,
       p.settings ->> 'condition' AS condition,
       ARRAY(SELECT jsonb_array_elements_text(p.settings -> 'operations')) AS operations,
       ARRAY(SELECT k.key ->> 'name' FROM jsonb_array_elements(p.settings -> 'key') AS k(key)) AS key,
       f.oid::regproc AS function, pg_get_userbyid(c.relowner) AS owner,
       nullif(concat_ws('; ',
           CASE WHEN f.proowner <> c.relowner
                THEN format('the function still has the rights of %I', pg_get_userbyid(f.proowner)) END,
           CASE WHEN NOT has_schema_privilege(f.proowner, 'sse_pg', 'USAGE')
                     OR NOT has_column_privilege(f.proowner, 'sse_pg.events', 'channel', 'INSERT')
                     OR NOT has_column_privilege(f.proowner, 'sse_pg.events', 'event_type', 'INSERT')
                     OR NOT has_column_privilege(f.proowner, 'sse_pg.events', 'payload', 'INSERT')
                THEN format('%I may not publish, so writing to the table fails', pg_get_userbyid(f.proowner)) END,
           (SELECT 'it uses columns that no longer exist, so writing to the table fails: ' || string_agg(u.name, ', ')
              FROM jsonb_array_elements_text(p.settings -> 'uses') WITH ORDINALITY AS u(name, place)
             WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = p.source AND NOT a.attisdropped
                                  AND a.attname = u.name)
               AND NOT EXISTS (SELECT FROM pg_trigger h JOIN pg_attribute a ON a.attrelid = h.tgrelid
                                  AND a.attnum = h.tgattr[u.place - 1] AND NOT a.attisdropped
                                WHERE h.tgrelid = p.source AND h.tgname = 'sse_pg_columns')),
           (SELECT 'not published because a trigger is missing or disabled: '
                   || string_agg(format('%s on %s', lower(w.name), r.relid::regclass), ', ' ORDER BY r.relid, w.name)
              FROM (SELECT t.relid, t.isleaf FROM pg_partition_tree(p.source) t
                     UNION SELECT p.source, true) r
             CROSS JOIN jsonb_array_elements_text(p.settings -> 'operations') AS w(name)
             WHERE (w.name <> 'TRUNCATE' OR r.isleaf OR r.relid = p.source)
               AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = r.relid AND t.tgfoid = f.oid
                                  AND t.tgname = 'sse_pg_' || lower(w.name) AND t.tgenabled IN ('O', 'A'))),
           CASE WHEN c.relispartition OR c.relkind = 'r' AND EXISTS (
                         SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))
                THEN 'it inherits or is inherited from now: a statement that names the other table is not published' END,
           CASE WHEN jsonb_array_length(p.settings -> 'key') <> coalesce(
                         (SELECT i.indnkeyatts FROM pg_index i WHERE i.indrelid = p.source AND i.indisprimary), 0)
                THEN 'the primary key has changed' END), '') AS problem
  FROM (SELECT DISTINCT ON (t.tgrelid) t.tgrelid::regclass AS source, t.tgfoid,
               convert_from(substr(t.tgargs, 1, length(t.tgargs) - 1), 'UTF8')::jsonb AS settings
          FROM pg_trigger t
         WHERE t.tgname IN ('sse_pg_insert', 'sse_pg_update', 'sse_pg_delete', 'sse_pg_truncate')
           AND t.tgnargs = 1 AND substr(t.tgargs, 1, 1) = '{'
         ORDER BY t.tgrelid, t.oid) p
  JOIN pg_class c ON c.oid = p.source
  JOIN pg_proc f ON f.oid = p.tgfoid;

-- ------------------------------------------------------------------ rights

-- A function may be called only by roles to which it was granted. USAGE on the schema sse_pg and EXECUTE on publish() are
-- enough to publish. The exceptions are the functions that a CHECK calls, which run with the rights of the role that
-- inserts, lock_class(), which a role needs to understand pg_locks, and those that write the statements for a published
-- table, which run with the rights of the table's owner. Those are marked IMMUTABLE: they change nothing, and read nothing
-- but the catalog, which is open to every role.
--
-- `sse-pg migrate` calls this each time: after a restore without rights (pg_restore --no-acl), any role could call every
-- function.
CREATE FUNCTION sse_pg.set_rights() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f record;
BEGIN
    FOR f IN
        SELECT format(CASE WHEN r.harmless THEN 'GRANT EXECUTE ON FUNCTION %s TO PUBLIC'
                           ELSE 'REVOKE ALL ON FUNCTION %s FROM PUBLIC' END, r.signature) AS statement
          FROM (SELECT p.oid::regprocedure AS signature, p.provolatile = 'i' AND NOT p.prosecdef AS harmless,
                       EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                                WHERE a.grantee = 0) AS open
                  FROM pg_proc p
                 WHERE p.pronamespace = 'sse_pg'::regnamespace AND pg_has_role(p.proowner, 'USAGE')) r
         WHERE r.open <> r.harmless
    LOOP
        EXECUTE f.statement;
    END LOOP;
END $$;

-- Revoke also what default privileges (ALTER DEFAULT PRIVILEGES ... GRANT EXECUTE ON FUNCTIONS) gave to roles just now.
DO $$
DECLARE
    role regrole;
BEGIN
    PERFORM sse_pg.set_rights();
    FOR role IN
        SELECT DISTINCT a.grantee::pg_catalog.regrole
          FROM pg_catalog.pg_proc p CROSS JOIN LATERAL pg_catalog.aclexplode(p.proacl) a
         WHERE p.pronamespace = 'sse_pg'::pg_catalog.regnamespace AND a.grantee NOT IN (0, p.proowner)
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA sse_pg FROM %s', role);
    END LOOP;
END $$;

-- ------------------------------------------------------------------ descriptions

-- What \df+ and \d+ show. docs/sql.md says the same, and a test compares the two.

COMMENT ON FUNCTION sse_pg.publish(text,text,jsonb,text,jsonb) IS
    'Publishes one event in the transaction of the caller and returns its id; NULL if a trigger of yours discards it. The last two arguments may be left out. A repeated idempotency key returns the id of the first call, and raises SP409 if the event is another one.';
COMMENT ON FUNCTION sse_pg.publish(text,jsonb) IS
    'Publishes an event of the type message.';
COMMENT ON FUNCTION sse_pg.publish(sse_pg.channel_of_json,text,json,text,jsonb) IS
    'The same with a payload of the type json, such as row_to_json() returns.';
COMMENT ON FUNCTION sse_pg.publish(sse_pg.channel_of_json,json) IS
    'The same for an event of the type message.';
COMMENT ON FUNCTION sse_pg.publish_many IS
    'Publishes many events with one statement; returns a row (id, created_at) for each, in order. The arrays have the same length, and the last two may be left out.';
COMMENT ON FUNCTION sse_pg.finish IS
    'Says that a channel has ended: publishes an event of the type sse-pg.end and returns its id. A later publish opens the channel again. See docs/ends.md.';
COMMENT ON FUNCTION sse_pg.publish_changes IS
    'Publishes the changes of a table as events of type INSERT, UPDATE, DELETE and TRUNCATE. See docs/tables.md.';
COMMENT ON FUNCTION sse_pg.stop_publishing IS
    'Ends what publish_changes() began. Returns whether the table was published.';
COMMENT ON FUNCTION sse_pg.position IS
    'The cursor at which a stream continues after what the transaction of the caller sees. In READ COMMITTED that is the moment of the call.';
COMMENT ON FUNCTION sse_pg.read IS
    'The events of these channels that a cursor lacks, ascending, each with the cursor after it. ''0'' is the cursor before the oldest event. A first row of the type sse-pg.gap says that events cannot be given any more.';
COMMENT ON FUNCTION sse_pg.consume IS
    'What read() returns, for a consumer with a name, whose cursor moves with the transaction of the caller: after a rollback the same events come again.';
COMMENT ON FUNCTION sse_pg.has_work IS
    'Whether consume() has something to do. It writes nothing.';
COMMENT ON FUNCTION sse_pg.drop_consumer IS
    'Forgets a consumer; returns whether there was one.';
COMMENT ON FUNCTION sse_pg.consumer_states IS
    'The consumers, how many events each lacks, and how close the oldest of these is to a purge.';
COMMENT ON FUNCTION sse_pg.id_at IS
    'The last id that was drawn before a moment: WHERE id > sse_pg.id_at(now() - interval ''1 hour'') reads the last hour by the primary key.';
COMMENT ON FUNCTION sse_pg.last_id IS
    'The last id that was drawn; 0 if none was.';
COMMENT ON FUNCTION sse_pg.publishers IS
    'The last id drawn, and which ids the transactions in flight may still bring.';
COMMENT ON FUNCTION sse_pg.visible_position IS
    'The position of the caller as numbers: every id up to high is visible or dead, except in the gaps.';
COMMENT ON FUNCTION sse_pg.subscribe IS
    'Subscribes a user to a channel; open streams of the user follow. Returns true if the subscription is new.';
COMMENT ON FUNCTION sse_pg.unsubscribe IS
    'Removes a subscription; open streams of the user follow. Returns true if there was one.';
COMMENT ON FUNCTION sse_pg.authorize IS
    'The access rule: whether a user may publish or subscribe. Replace it with your own. See docs/authorize.md.';
COMMENT ON FUNCTION sse_pg.revoke IS
    'Lets the servers ask authorize() again for a user and a channel when the transaction commits; NULL means any. Streams that are no longer allowed end.';
COMMENT ON FUNCTION sse_pg.disconnect IS
    'Ends the open streams of a user on every server when the transaction commits. Clients that may still read reconnect.';
COMMENT ON FUNCTION sse_pg.ask_for_streams IS
    'Asks all servers for their open streams, or for those of a user, when the transaction commits; returns the number of the question.';
COMMENT ON FUNCTION sse_pg.open_streams IS
    'The open streams of all servers, as they answered a question of the last minute, by default the newest. Waits for the answers. Each server has at least one row; problem says if it has not answered.';
COMMENT ON FUNCTION sse_pg.erase IS
    'Deletes events of a channel from the log and from the memory of every server; returns how many. See docs/erasure.md.';
COMMENT ON FUNCTION sse_pg.keep IS
    'Keeps the events of a channel for a period and no longer; NULL takes that back.';
COMMENT ON FUNCTION sse_pg.purge IS
    'Drops the oldest partitions, at most eight in a call, and returns what it did. Servers call it.';
COMMENT ON FUNCTION sse_pg.make_partitions IS
    'Makes the partitions for the next ids. Servers call it.';
COMMENT ON FUNCTION sse_pg.maintain IS
    'All of the maintenance in one call, for pg_cron. See docs/retention.md.';
COMMENT ON FUNCTION sse_pg.partitions IS
    'The partitions that are ranges of ids, ascending.';
COMMENT ON FUNCTION sse_pg.begin_epoch IS
    'Begins an epoch by hand: the next id is at least 1,000,000,000 higher. For a snapshot of a disk. See docs/operating.md.';
COMMENT ON FUNCTION sse_pg.check_epoch IS
    'Begins an epoch if the log was restored, copied, moved or promoted; returns whether it did. Each server calls it before it reads.';
COMMENT ON FUNCTION sse_pg.live_servers IS
    'The servers that are up, as rows of sse_pg.servers.';
COMMENT ON FUNCTION sse_pg.schema_version IS
    'The number of the newest migration in this schema.';
COMMENT ON FUNCTION sse_pg.lock_class IS
    'The first key of the advisory locks of the bus, by name, to understand pg_locks.';
COMMENT ON FUNCTION sse_pg.set_rights IS
    'Takes back from PUBLIC the right to call the functions that read or change something. sse-pg migrate calls it.';
COMMENT ON TABLE sse_pg.events IS 'The log. Insert channel, event_type, payload and headers; the rest is filled in.';
COMMENT ON TABLE sse_pg.events_default IS 'The partition of the ids for which there is no other partition yet.';
COMMENT ON TABLE sse_pg.subscriptions IS 'Which user is subscribed to which channel. Streams that name a user follow it.';
COMMENT ON VIEW sse_pg.consumers IS 'The named consumers: their channels, their cursors, and how many events each lacks.';
COMMENT ON VIEW sse_pg.published_tables IS 'The tables whose changes are published; problem is NULL if all is well.';
COMMENT ON VIEW sse_pg.retention IS 'The channels with a retention of their own, as keep() set it, and for how long deletion is overdue.';
COMMENT ON TABLE sse_pg.servers IS 'The servers. live_servers() leaves out those that are down.';
COMMENT ON TABLE sse_pg.log IS 'One row of facts about the log: up to which id it was purged and is settled, and its identity.';
COMMENT ON TABLE sse_pg.epochs IS 'Where the ids of each epoch begin, and which ids before it are certain.';
COMMENT ON TABLE sse_pg.migrations IS 'The migrations that sse-pg migrate has applied.';
COMMENT ON TABLE sse_pg.consumer_cursors IS 'The cursors of the named consumers, as sets of ids.';
COMMENT ON TABLE sse_pg.idempotency_keys IS 'The event that was published with each idempotency key.';
COMMENT ON TABLE sse_pg.kept_channels IS 'The periods that keep() has set.';
COMMENT ON TABLE sse_pg.expired_channels IS 'Up to which id events of a channel were deleted because of keep().';
COMMENT ON TABLE sse_pg.deletions IS 'What was deleted from the log row by row, for the servers, for a day.';
COMMENT ON TABLE sse_pg.notifications IS 'What was sent on sse_pg_control in the last hour, for servers that do not LISTEN.';
COMMENT ON TABLE sse_pg.stream_questions IS 'What ask_for_streams() has asked in the last minutes.';
COMMENT ON TABLE sse_pg.stream_answers IS 'What the servers have answered. open_streams() shows it.';
COMMENT ON SEQUENCE sse_pg.events_id_seq IS 'The ids of the events.';
COMMENT ON SEQUENCE sse_pg.servers_id_seq IS 'The ids of the servers.';
COMMENT ON SEQUENCE sse_pg.stream_questions_id_seq IS 'The numbers of the questions.';
COMMENT ON SEQUENCE sse_pg.last_jump IS 'The highest id that the jump to an epoch has passed.';
COMMENT ON SEQUENCE sse_pg.recovery_wire IS 'A trip-wire: PostgreSQL resets it when it recovers or is promoted, so that whoever publishes next looks whether ids may be drawn twice.';
COMMENT ON DOMAIN sse_pg.channel_of_json IS 'The name of a channel, in the functions that take json.';
COMMENT ON FUNCTION sse_pg.alone IS
    'Does a task while nobody else uses sse_pg.events; returns false if there was no moment for it.';
COMMENT ON FUNCTION sse_pg.announce IS
    'The trigger before each INSERT: shows which ids the transaction may bring, and rings the bell if a server needs it.';
COMMENT ON FUNCTION sse_pg.announce_below IS
    'Shows a lower bound although another session holds the lock of the right one.';
COMMENT ON FUNCTION sse_pg.announce_open IS
    'Leaves the last window of a publisher open.';
COMMENT ON FUNCTION sse_pg.attach_partitions IS
    'Run by alone(): attaches the tables that make_table() made.';
COMMENT ON FUNCTION sse_pg.can_publish IS
    'Whether the table of events takes a payload.';
COMMENT ON FUNCTION sse_pg.change_function IS
    'The function of a published table, as text.';
COMMENT ON FUNCTION sse_pg.change_statement IS
    'The statement that publishes what one statement did to source, as text; name is the expression for the table''s name in the payload, and risks the one for column_risks().';
COMMENT ON FUNCTION sse_pg.channel_template IS
    'Takes a template apart for fill_channel(): {"literals": [...], "columns": [...]}.';
COMMENT ON FUNCTION sse_pg.check_channel IS
    'The rule for the name of a channel: true, or an error that says the rule.';
COMMENT ON FUNCTION sse_pg.check_event_type IS
    'The rule for the type of an event: true, or an error that says the rule.';
COMMENT ON FUNCTION sse_pg.check_key IS
    'The rule for an idempotency key: true, or an error that says the rule.';
COMMENT ON FUNCTION sse_pg.check_names IS
    'The rules for channel and type of an event: true, or an error that says the rule.';
COMMENT ON FUNCTION sse_pg.check_user IS
    'The rule for a user id: true, or an error that says the rule.';
COMMENT ON FUNCTION sse_pg.close_later_window IS
    'close_window() for a transaction that has published before.';
COMMENT ON FUNCTION sse_pg.close_window IS
    'The trigger after each INSERT: shows the upper bound of the ids of the statement.';
COMMENT ON FUNCTION sse_pg.column_risks IS
    'What a statement-level trigger has to know about the columns as they are now, as bits: 1 = one of the names in uses is missing, 2 = a row may not be writable as jsonb (json, and types that have a cast to json of their own), 4 = numbers may have more digits than an event may.';
COMMENT ON FUNCTION sse_pg.confirm_epochs IS
    'Notes that more of the log before is certain than was known when an epoch began.';
COMMENT ON FUNCTION sse_pg.consumers_below IS
    'The consumers whose cursors lack ids up to this one, which must all be settled.';
COMMENT ON FUNCTION sse_pg.convert_default IS
    'Run by alone(): turns the whole default partition into the partition of the ids from first_id to the next multiple of size, without reading its rows, and makes the empty table events_default_next the default partition.';
COMMENT ON FUNCTION sse_pg.copy_identity IS
    'What a primary and its standbys have in common, and no other copy of the log.';
COMMENT ON FUNCTION sse_pg.copying_subscription IS
    'The subscription (logical replication) that copies events into this log; NULL if there is none.';
COMMENT ON FUNCTION sse_pg.cursor_ids IS
    'The ids that a printed cursor covers.';
COMMENT ON FUNCTION sse_pg.cursor_text IS
    'A cursor as text, of at most 128 bytes.';
COMMENT ON FUNCTION sse_pg.digest IS
    'Replaces a name in notifications, which any role may hear.';
COMMENT ON FUNCTION sse_pg.drop_partitions IS
    'Run by alone(): drops partitions.';
COMMENT ON FUNCTION sse_pg.ended_logs IS
    'The logs that ended where an epoch began: which of their ids are certain, and above which id the next log begins.';
COMMENT ON FUNCTION sse_pg.expect_log IS
    'Returns the identity of the log that the caller''s connection leads to.';
COMMENT ON FUNCTION sse_pg.events_emptied IS
    'The trigger after TRUNCATE of sse_pg.events: notes that all ids up to the last one may be gone.';
COMMENT ON FUNCTION sse_pg.fill_channel IS
    'The name of a channel from a template: literals[1], column_values[1], literals[2] and so on.';
COMMENT ON FUNCTION sse_pg.id_limit IS
    'A bound for the ids in the default partition.';
COMMENT ON FUNCTION sse_pg.is_behind IS
    'Whether there is something for a reader: an event that it lacks, or a purge of ids that it lacks.';
COMMENT ON FUNCTION sse_pg.is_known_log IS
    'Whether this is the log that a server noted last, and all that is known about it is noted.';
COMMENT ON FUNCTION sse_pg.jump IS
    'Passes all ids that the log before may have handed out: the next id is at least 1,000,000,000 higher than every id that is known to have been drawn.';
COMMENT ON FUNCTION sse_pg.lacked IS
    'The events of these channels that a cursor lacks, ascending, each with the cursor after it: at most most, and at most 8 MiB or one larger event.';
COMMENT ON FUNCTION sse_pg.last_events IS
    'Of each of these channels that has events: the id and the type of the one with the highest id.';
COMMENT ON FUNCTION sse_pg.log_identity IS
    'Identifies the log: the cluster, its timeline (a promotion begins a new one), the database, the table.';
COMMENT ON FUNCTION sse_pg.make_log_row IS
    'Makes the row of sse_pg.log again if it is missing.';
COMMENT ON FUNCTION sse_pg.make_table IS
    'Makes a table like sse_pg.events that is not a partition yet.';
COMMENT ON FUNCTION sse_pg.may_write_end IS
    'Whether a row of the type sse-pg.end may be written: by finish(), and by whoever copies a log.';
COMMENT ON FUNCTION sse_pg.messages_from IS
    'The messages, each with its transaction, of the transactions from this one on that the caller''s snapshot shows.';
COMMENT ON FUNCTION sse_pg.must_jump IS
    'Whether ids that were handed out may be drawn again.';
COMMENT ON FUNCTION sse_pg.note_behind IS
    'Says that these consumers lack events that are gone.';
COMMENT ON FUNCTION sse_pg.note_deletion IS
    'Notes a deletion.';
COMMENT ON FUNCTION sse_pg.note_epoch IS
    'Notes an epoch whose ids are above this one.';
COMMENT ON FUNCTION sse_pg.note_jump IS
    'Notes the epoch of a jump that a publisher made after a recovery.';
COMMENT ON FUNCTION sse_pg.note_purged IS
    'Notes that ids up to this one may be gone.';
COMMENT ON FUNCTION sse_pg.notifications_since IS
    'The messages of the transactions that have committed since an earlier snapshot, each once and in no order, and the snapshot to pass to the next call.';
COMMENT ON FUNCTION sse_pg.notify_servers IS
    'Sends messages to the servers when the caller''s transaction commits.';
COMMENT ON FUNCTION sse_pg.partition_name IS
    'The name of the partition that begins at an id.';
COMMENT ON FUNCTION sse_pg.pass_purged IS
    'After a purge up to this id: moves the cursors of these consumers, which lack no event below it, so that they get no gap.';
COMMENT ON FUNCTION sse_pg.payload_fits IS
    'The rule for payload and headers: true, or an error that says the rule.';
COMMENT ON FUNCTION sse_pg.purge_channels IS
    'Deletes what keep() no longer keeps, at most most events in a call; purge() calls it.';
COMMENT ON FUNCTION sse_pg.read_above IS
    'The events above the last id that a server has seen.';
COMMENT ON FUNCTION sse_pg.read_marked IS
    'The events that a server has not seen, up to the mark in sse_pg.log, also on a standby.';
COMMENT ON FUNCTION sse_pg.read_open IS
    'The events that a server has not seen, while ids are open.';
COMMENT ON FUNCTION sse_pg.read_page IS
    'A page of stored events of these channels, within these ranges of ids, ascending.';
COMMENT ON FUNCTION sse_pg.read_page_desc IS
    'A page of stored events, from the newest down.';
COMMENT ON FUNCTION sse_pg.recovered IS
    'Called by whoever publishes first after a recovery.';
COMMENT ON FUNCTION sse_pg.refuse_long_numbers IS
    'Fails if a number is so large or so small that it has more than 400 digits when it is written out.';
COMMENT ON FUNCTION sse_pg.refuse_pattern IS
    'Fails if a text is a pattern, or not the name of a channel.';
COMMENT ON FUNCTION sse_pg.refuse_purged_snapshot IS
    'In REPEATABLE READ, a partition that was dropped or truncated after the snapshot looks empty, although purged_to is still that of the snapshot.';
COMMENT ON FUNCTION sse_pg.rename_table IS
    'Renames a table of the schema.';
COMMENT ON FUNCTION sse_pg.row_as_json IS
    'A row as JSON, or NULL if it is too large or PostgreSQL cannot write it as jsonb, such as json with \u0000 in it.';
COMMENT ON FUNCTION sse_pg.set_wire IS
    'Sets the trip-wire, and first passes the ids that may have been handed out.';
COMMENT ON FUNCTION sse_pg.settled_ids IS
    'The ids up to one, except for the open ranges.';
COMMENT ON FUNCTION sse_pg.sign_of_finish IS
    'What finish() shows to may_write_end().';
COMMENT ON FUNCTION sse_pg.subscriptions_changed IS
    'The trigger of sse_pg.subscriptions, which notifies the servers.';
COMMENT ON FUNCTION sse_pg.transition_rows IS
    'A transition table, as it stands in FROM: by its name, or with the expressions of virtual columns, which it does not have.';
COMMENT ON FUNCTION sse_pg.truncated_change IS
    'What is published of a row that is too large: its key, or not even that.';
COMMENT ON FUNCTION sse_pg.unnoted_jump IS
    'The id above which the ids of an epoch lie that nobody has noted yet; NULL if there is none.';
COMMENT ON FUNCTION sse_pg.unsettled_ids IS
    'The ids that may still come, in the eyes of this transaction; all above the last id drawn are among them.';
COMMENT ON FUNCTION sse_pg.visible_elsewhere IS
    'The ids of a set that belong to visible events of other channels.';
COMMENT ON FUNCTION sse_pg.wanted_channels IS
    'Checks what a reader asks for.';
COMMENT ON FUNCTION sse_pg.wire_is_intact IS
    'Whether the trip-wire was set after the last recovery.';
COMMENT ON FUNCTION sse_pg.write_mark IS
    'Notes what is settled, if that has changed: for a server that reads no log on the primary, but is elected.';
