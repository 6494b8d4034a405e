CREATE TABLE IF NOT EXISTS orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item text NOT NULL,
    state text NOT NULL DEFAULT 'PLACED',
    customer text
);

CREATE OR REPLACE FUNCTION publish_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM sse_pg.publish('orders', NEW.state, to_jsonb(NEW));
    RETURN NULL;
END;
$$;

CREATE OR REPLACE TRIGGER publish_order AFTER INSERT OR UPDATE OF state ON orders
    FOR EACH ROW EXECUTE FUNCTION publish_order();
