"""Several server processes on one port: the supervisor, its slots, and the worker that serves."""
