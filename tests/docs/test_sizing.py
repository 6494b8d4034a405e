"""docs/sizing.py: docs/scaling.md shows what it prints, and the answer grows with what is asked for."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from support.process import CHECKOUT

PAGE = (CHECKOUT / "docs" / "scaling.md").read_text()
SHOWN = re.search(r"```console\n\$ python (docs/sizing\.py .*)\n((?:.+\n)+)```", PAGE)


def sizing(*words: str) -> str:
    done = subprocess.run([sys.executable, "docs/sizing.py", *words], cwd=CHECKOUT, capture_output=True, text=True)
    return done.stdout or done.stderr


def number(text: str, line: str) -> float:
    """The first number of a line."""
    found = re.search(rf"^{line} +([\d,.]+)", text, re.MULTILINE)
    assert found, text
    return float(found[1].replace(",", ""))


def test_the_page_shows_what_it_prints() -> None:
    assert SHOWN
    assert SHOWN[2] == sizing(*shlex.split(SHOWN[1])[1:])


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("clients", "server processes"),
        ("clients", "memory of all of them"),
        ("events", "WAL"),
        ("events", "reads of the servers"),
        ("payload", "disk for them"),
        ("days", "events that are kept"),
        ("follows", "deliveries"),
    ],
)
def test_more_takes_more(option: str, line: str) -> None:
    words = {"clients": 20_000, "events": 200, "channels": 1000, "payload": 300, "days": 7, "follows": 1}
    answers = []
    for factor in (1, 10):
        given = {**words, option: words[option] * factor}
        answers.append(sizing(*(f"--{name}={value}" for name, value in given.items())))
    assert number(answers[0], line) < number(answers[1], line)


def test_more_events_than_a_process_can_read_are_refused() -> None:
    text = sizing("--clients=10", "--events=50000", "--channels=10")
    assert text == "one process cannot read 50,000 events per second: see docs/scaling.md\n"
