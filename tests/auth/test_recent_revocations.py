"""Cached answers and revocations: which answers have to be asked for again, and how much is remembered."""

from __future__ import annotations

import pytest

from sse_pg.auth.digests import Digests
from sse_pg.auth.recent_revocations import RecentRevocations


@pytest.fixture
def digests() -> Digests:
    made = Digests()
    made.use("key")
    return made


@pytest.mark.parametrize(
    ("user", "channel", "concerned"),
    [
        (None, None, ["ann a", "ann b", "bob a", "anonymous a"]),
        ("ann", None, ["ann a", "ann b"]),
        (None, "a", ["ann a", "bob a", "anonymous a"]),
        ("ann", "a", ["ann a"]),
        ("eve", "a", []),
    ],
)
def test_a_revocation_concerns_older_answers(
    digests: Digests, user: str | None, channel: str | None, concerned: list[str]
) -> None:
    recent = RecentRevocations(digests, 10.0)
    recent.note((user and digests.of(user), channel and digests.of(channel)), 5, 100.0)
    answers: dict[str, tuple[str | None, str]] = {
        "ann a": ("ann", "a"),
        "ann b": ("ann", "b"),
        "bob a": ("bob", "a"),
        "anonymous a": (None, "a"),
    }
    assert [name for name, (who, where) in answers.items() if recent.concern(who, where, 4)] == concerned
    assert not any(recent.concern(who, where, 5) for who, where in answers.values()), "later answers"


def test_a_revocation_is_forgotten_when_no_older_answer_is_valid(digests: Digests) -> None:
    recent = RecentRevocations(digests, 10.0)
    recent.note((digests.of("ann"), None), 1, 100.0)
    recent.note((digests.of("bob"), None), 2, 105.0)
    recent.note((digests.of("ann"), None), 3, 109.0)
    recent.note((digests.of("eve"), None), 4, 116.0)
    assert len(recent) == 2
    assert recent.concern("ann", "a", 2)
    assert not recent.concern("bob", "a", 1)


def test_too_many_revocations_concern_all(digests: Digests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse_pg.auth.recent_revocations.MAX_REVOCATIONS", 3)
    recent = RecentRevocations(digests, 10.0)
    for number in range(1, 5):
        recent.note((digests.of(f"user{number}"), None), number, 100.0)
    assert len(recent) == 1
    assert recent.concern("user1", "a", 0)
    assert recent.concern("somebody else", "a", 3)
    assert not recent.concern("user1", "a", 4)
