"""``sse-pg doctor``: checks of a database, of the ways to it, and of the settings."""
