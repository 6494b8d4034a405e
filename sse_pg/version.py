"""The version of this package, and the versions of PostgreSQL that it works with."""

VERSION = "0.1.0"

#: Major versions of PostgreSQL: the oldest that the schema works on, and the newest that the tests run on.
OLDEST_POSTGRES, NEWEST_POSTGRES = 15, 18
