BEGIN;
INSERT INTO orders (item) VALUES ('lamp');
SELECT sse_pg.publish('shop', 'NOTE', '{"text": "a lamp was sold"}');
COMMIT;

-- Publish many events at once, from a query:
INSERT INTO sse_pg.events (channel, event_type, payload)
SELECT 'shop', 'REMINDER', jsonb_build_object('order', id) FROM orders WHERE state = 'PLACED';
