"""Errors of the command line do not show the password of the database."""

from __future__ import annotations

import pytest
from support.process import one_line, run

PASSWORD = "hunter2-sesame"


@pytest.mark.parametrize("command", [["migrate"], ["serve", "--port", "0"], ["history", "a"], ["--debug", "migrate"]])
def test_errors_do_not_show_the_password(command: list[str]) -> None:
    for url in (f"postgresql://u:{PASSWORD}@127.0.0.1:1/db", f"postgresql://u:{PASSWORD}%zz@127.0.0.1:1/db"):
        done = run(*command, DATABASE_URL=url)
        assert done.returncode == 1
        assert done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        if "--debug" not in command:
            one_line(done)
