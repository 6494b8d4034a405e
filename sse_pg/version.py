"""The version, in its one place."""

VERSION = "0.1.0"

#: Major versions of PostgreSQL: the oldest that has what the schema needs, and the newest that the tests ran on.
OLDEST_POSTGRES, NEWEST_POSTGRES = 15, 18
