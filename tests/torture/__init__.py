"""Random work and random faults on real servers and a real PostgreSQL, checked against the table."""
