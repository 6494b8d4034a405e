"""How the bytes of a stream travel: what a client decodes is what was sent, part by part."""

from __future__ import annotations

import gzip
import io
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_pg.core import wire
from sse_pg.core.cursor import Cursor
from sse_pg.core.event import Event
from sse_pg.core.framing import GZIP_HEAD, MAX_COMPRESSED_BYTES, MIN_COMPRESSED_BYTES, Framing

PARTS = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=40), st.integers(1, 4000)),
)


def chunks(body: bytes) -> list[bytes]:
    """Return what the chunks of a body contain."""
    read = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        read.append(body[:length])
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]
    return read


def burst(count: int) -> bytes:
    """Return the blocks of so many small events."""
    return b"".join(
        wire.frame(
            Event(
                number,
                "orders",
                "order.changed",
                json.dumps({"order": 7 * number, "state": "paid", "cents": 31 * number}),
                0,
            ),
            Cursor(number),
        )
        for number in range(123_400, 123_400 + count)
    )


def test_a_plain_body_is_what_was_sent() -> None:
    assert Framing.PLAIN.head + Framing.PLAIN.batch(b"a") + Framing.PLAIN.single(b"b") + Framing.PLAIN.end == b"ab"


@given(st.lists(st.tuples(PARTS, st.booleans()), max_size=5))
def test_chunks_are_read_back(parts: list[tuple[bytes, bool]]) -> None:
    framing = Framing.CHUNKED
    body = b"".join(framing.batch(part) if many else framing.single(part) for part, many in parts)
    assert chunks(framing.head + body + framing.end) == [*(part for part, _ in parts), b""]


@given(st.lists(st.tuples(PARTS, st.booleans()), max_size=5))
def test_each_part_of_a_compressed_stream_is_read_as_soon_as_it_arrives(parts: list[tuple[bytes, bool]]) -> None:
    framing = Framing.GZIP
    (head,) = chunks(framing.head)
    reader = zlib.decompressobj(zlib.MAX_WBITS | 16)
    assert reader.decompress(head) == b""
    for part, many in parts:
        (sent,) = chunks(framing.batch(part) if many else framing.single(part))
        assert reader.decompress(sent) == part
    assert not reader.eof
    assert chunks(framing.end) == [b""]


def test_a_part_refers_to_nothing_before_it() -> None:
    """A stream that was sent other parts before reads it as well."""
    (part,) = chunks(Framing.GZIP.batch(burst(20)))
    for before in (b"", b"x" * 5000, burst(20)):
        reader = zlib.decompressobj(zlib.MAX_WBITS | 16)
        (head,) = chunks(Framing.GZIP.head)
        reader.decompress(head + (chunks(Framing.GZIP.single(before))[0] if before else b""))
        assert reader.decompress(part) == burst(20)


def test_a_burst_of_ten_small_events_takes_at_most_four_tenths_of_the_bytes() -> None:
    assert len(Framing.GZIP.batch(burst(10))) <= 0.4 * len(Framing.CHUNKED.batch(burst(10)))


@pytest.mark.parametrize("size", [1, MIN_COMPRESSED_BYTES - 1, MAX_COMPRESSED_BYTES + 1])
def test_what_is_small_or_large_is_not_compressed(size: int) -> None:
    assert size <= len(Framing.GZIP.batch(b"a" * size)) <= size + 30


def test_the_head_is_that_of_gzip() -> None:
    (head,) = chunks(Framing.GZIP.head)
    assert head == GZIP_HEAD
    end = b"\x03\x00" + zlib.crc32(b"").to_bytes(4, "little") + bytes(4)  # an empty last block, checksum, length
    assert gzip.GzipFile(fileobj=io.BytesIO(head + end)).read() == b""
