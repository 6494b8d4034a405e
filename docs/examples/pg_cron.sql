SELECT cron.schedule(
    'remind',
    '0 9 * * *',
    $$INSERT INTO sse_pg.events (channel, event_type, payload)
      SELECT 'shop', 'REMINDER', jsonb_build_object('order', id) FROM orders WHERE state = 'PLACED'$$
);
