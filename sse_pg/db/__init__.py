"""The database: connections, statements, and what stands between them and the rest."""
