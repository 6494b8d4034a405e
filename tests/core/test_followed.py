"""The filter of the channels that are followed: what it lets pass, for how long, and how large it is."""

from __future__ import annotations

from sse_pg.core.followed import FORGET_PAUSE_S, LINGER_S, MAX_BITS, MAX_CHANNELS, Followed, passes


def names(count: int, prefix: str = "orders.") -> frozenset[str]:
    return frozenset(f"{prefix}{number}" for number in range(count))


def passing(bits: bytes | None, channels: frozenset[str]) -> int:
    assert bits is not None
    return sum(passes(bits, channel) for channel in channels)


def test_every_followed_channel_passes_and_few_others() -> None:
    followed = Followed()
    assert passing(followed.filter(0), names(1000)) == 0
    for count in (1, 10, 16, 17, 100, 1000, 2049, 20_000):
        wanted, others = names(count), names(4000, "others.")
        followed.add(wanted)
        bits = followed.filter(0)
        assert bits is not None
        assert len(bits) * 8 <= MAX_BITS
        assert passing(bits, wanted) == count
        assert passing(bits, others) <= 4000 * (0.06 if count < 2050 else 0.3)
    assert followed.filter(0) is followed.filter(1), "it is made once"


def test_with_too_many_channels_everything_is_read() -> None:
    followed = Followed()
    many = names(MAX_CHANNELS)
    followed.add(many)
    assert passing(followed.filter(0), many) == MAX_CHANNELS
    one_more = frozenset({"one more"})
    followed.add(one_more)
    assert followed.filter(0) is None
    followed.discard(many, 0)
    later = LINGER_S + FORGET_PAUSE_S
    bits = followed.filter(later)
    assert passing(bits, one_more) == 1
    assert bits is not None
    assert len(bits) == 64


def test_a_channel_stays_for_some_time_after_its_last_stream() -> None:
    followed = Followed()
    one, two = frozenset("ab"), frozenset("bc")
    for channels in (one, one, two):
        followed.add(channels)
    followed.discard(one, 0)
    followed.filter(2 * LINGER_S)
    assert all(channel in followed for channel in "abc")
    followed.discard(one, 3 * LINGER_S)
    assert passing(followed.filter(3.9 * LINGER_S), frozenset("abc")) == 3
    assert passing(followed.filter(4.5 * LINGER_S), frozenset("abc")) == 2
    followed.discard(two, 5 * LINGER_S)
    followed.add(one)
    assert passing(followed.filter(7 * LINGER_S), frozenset("abc")) == 2
    assert len(followed) == 2
