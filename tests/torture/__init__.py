"""Random work and random faults on real servers and a real PostgreSQL, and a checker that believes only the table."""
