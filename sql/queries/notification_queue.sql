-- Asking gives back what no listener needs any more. Nobody else does once the queue is full: who rings is refused then.
SELECT pg_notification_queue_usage()
