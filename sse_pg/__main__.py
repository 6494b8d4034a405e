"""``python -m sse_pg`` is ``sse-pg``."""

from sse_pg.cli.main import main

main()
