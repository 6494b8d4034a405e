"""``sse-pg doctor``: checks of the database, the connections to it, the settings and the proxies in front."""
