"""sse_pg: a Postgres-native event bus. INSERT publishes, NOTIFY wakes, Server-Sent Events deliver."""

from sse_pg import version

__version__ = version.VERSION

__all__ = ["__version__"]
