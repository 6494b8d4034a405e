"""Patterns of names."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_pg.auth.identity import OPEN, Patterns

SOME = st.text("ab.*[?\\", max_size=8)


@given(SOME, st.text("ab.[?\\", max_size=12))
def test_a_star_is_any_run_of_characters_and_nothing_else_means_anything(pattern: str, name: str) -> None:
    judge = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL)
    assert Patterns([pattern]).match(name) == (judge is not None)


@given(st.lists(SOME, max_size=4), st.text("ab.", max_size=6))
def test_one_of_many_is_enough(patterns: list[str], name: str) -> None:
    assert Patterns(patterns).match(name) == any(Patterns([each]).match(name) for each in patterns)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("orders", ["orders"], ["orders.7", "order", "Orders", ""]),
        ("orders.*", ["orders.7", "orders.", "orders.7.x"], ["orders", "xorders.7"]),
        ("*", ["", "a", "a b"], []),
        ("a*b*c", ["abc", "aXbYc", "abbc"], ["ab", "acb", "abcd"]),
        ("aa*aa", ["aaaa", "aaxaa"], ["aaa", "aa"]),
        ("order:??", ["order:??"], ["order:17"]),
    ],
)
def test_examples(pattern: str, yes: list[str], no: list[str]) -> None:
    patterns = Patterns([pattern])
    assert [name for name in yes + no if patterns.match(name)] == yes


def test_no_pattern_takes_long() -> None:
    """A pattern that sends a regular expression into years is answered before the test's own time is over."""
    started = time.process_time()
    assert not Patterns(["a*" * 120 + "b"]).match("a" * 255)
    assert time.process_time() - started < 60


def test_nothing_matches_nothing_and_open_matches_all() -> None:
    assert not Patterns().match("a")
    assert OPEN.publish.match("anything")
    assert OPEN.observe
