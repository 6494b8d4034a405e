"""Several server processes on one port: the parent, its slots, and the child that serves."""
