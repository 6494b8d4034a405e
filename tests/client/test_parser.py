"""The parser compared with a simple reference, for any bytes cut into any chunks."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_pg.client.parser import Block, Parser
from sse_pg.errors import ClientError


def reference(stream: bytes) -> tuple[list[Block], int]:
    """The standard's algorithm on a whole stream: its blocks and the number of its comments."""
    text = stream.decode(errors="replace").removeprefix("\ufeff")
    lines = re.split("\r\n|\r|\n", text)[:-1]
    blocks, comments = [], 0
    event, data, last_id, retry = "", "", "", None
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line == "":
            if data:
                blocks.append(Block(event or "message", data[:-1], last_id, retry))
                retry = None
            event, data = "", ""
        elif name == "":
            comments += 1
        elif name == "event":
            event = value
        elif name == "data":
            data += value + "\n"
        elif name == "id" and "\0" not in value:
            last_id = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            retry = int(value)
    return blocks, comments


def parse(chunks: list[bytes]) -> tuple[list[Block], int]:
    parser = Parser()
    blocks = [block for chunk in chunks for block in parser.feed(chunk)]
    return blocks, parser.comments


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
values = st.one_of(
    st.sampled_from(
        [
            b"",
            b" ",
            b"  two",
            b"a\0b",
            b"12",
            b"007",
            b"-1",
            "\u00e9\u20ac\U0001f600".encode(),
            "\u0661".encode(),
        ]
    ),
    st.text(max_size=5).map(lambda text: text.encode(errors="replace")),
    st.binary(max_size=5),
)
names = st.sampled_from([b"data", b"event", b"id", b"retry", b"", b"other", b"Data", b"\xef\xbb\xbfdata"])
fields = st.builds(lambda *parts: b"".join(parts), names, st.sampled_from([b":", b": ", b""]), values)
lines = st.builds(lambda line, end: line + end, st.one_of(fields, fields, st.just(b"")), ends)
streams = st.builds(
    lambda bom, body, rest: bom + b"".join(body) + rest,
    st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf", b"\xef\xbb"]),
    st.lists(lines, max_size=20),
    st.one_of(st.just(b""), fields),
)


@given(stream=streams, places=st.lists(st.integers(0, 1 << 16), max_size=8))
def test_any_chunking_gives_what_the_reference_gives(stream: bytes, places: list[int]) -> None:
    expected = reference(stream)
    assert parse([stream]) == expected
    assert parse([stream[i : i + 1] for i in range(len(stream))]) == expected
    assert parse(cut(stream, places)) == expected


@given(body=st.lists(st.sampled_from(b"data:\r\n \0i"), max_size=200).map(bytes))
def test_noise_gives_what_the_reference_gives(body: bytes) -> None:
    assert parse([body]) == reference(body)


@given(stream=streams, places=st.lists(st.integers(0, 1 << 16), max_size=8), limit=st.integers(1, 30))
def test_the_limit_applies_to_the_same_block(stream: bytes, places: list[int], limit: int) -> None:
    def outcome(chunks: list[bytes]) -> tuple[list[Block], bool]:
        parser = Parser(limit=limit)
        blocks: list[Block] = []
        try:
            for chunk in [*chunks, b""]:
                blocks += parser.feed(chunk)
        except ClientError:
            return blocks, True
        return blocks, False

    whole = outcome([stream])
    assert outcome(cut(stream, places)) == whole
    assert all(len(block.data.encode()) <= 3 * limit for block in whole[0])  # U+FFFD is three bytes for one


@pytest.mark.parametrize(
    ("stream", "blocks"),
    [
        (b"data: a\n\n", [Block("message", "a", "", None)]),
        (b"data: a\r\rdata: b\r\n\r\n", [Block("message", "a", "", None), Block("message", "b", "", None)]),
        (b"data: a\r\ndata: b\r\n\r\n", [Block("message", "a\nb", "", None)]),
        (b"data\n\ndata\ndata\n\ndata:", [Block("message", "", "", None), Block("message", "\n", "", None)]),
        (b"data:test\n\ndata: test\n\n", [Block("message", "test", "", None)] * 2),
        (
            b": c\ndata: a\nid: 1\n\ndata:b\nid\n\n",
            [Block("message", "a", "1", None), Block("message", "b", "", None)],
        ),
        (b"id: 7\n\ndata: a\n\n", [Block("message", "a", "7", None)]),
        (
            b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n",
            [Block("message", "a", "1", None), Block("message", "b", "1", None)],
        ),
        (b"retry: 5\nevent: x\n\ndata: a\n\n", [Block("message", "a", "", 5)]),
        (
            b"retry: 5\nevent: x\ndata: a\n\ndata: b\n\n",
            [Block("x", "a", "", 5), Block("message", "b", "", None)],
        ),
        (b"retry: 1.5\ndata: a\n\n", [Block("message", "a", "", None)]),
        (b"retry: " + b"9" * 5000 + b"\ndata: a\n\n", [Block("message", "a", "", None)]),
        (b"\xef\xbb\xbfdata: a\n\n", [Block("message", "a", "", None)]),
        (b"data: a\xff\n\n", [Block("message", "a\ufffd", "", None)]),
        (b"data: a\x0b\x0c\xc2\x85\xe2\x80\xa8b\n\n", [Block("message", "a\x0b\x0c\x85\u2028b", "", None)]),
        (b"id: 9\ndata: partial\n", []),
    ],
)
def test_known_streams(stream: bytes, blocks: list[Block]) -> None:
    assert parse([stream])[0] == blocks
    assert parse([stream[i : i + 1] for i in range(len(stream))])[0] == blocks


def test_a_cr_ends_a_block_without_waiting_for_more() -> None:
    parser = Parser()
    assert parser.feed(b"data: a\r\r") == [Block("message", "a", "", None)]
    assert parser.feed(b"\ndata: b\r\n\r") == [Block("message", "b", "", None)]


def test_the_id_moves_only_with_a_whole_block_and_starts_where_given() -> None:
    parser = Parser(last_event_id="5")
    assert parser.feed(b"data: a\n\nid: 6\n") == [Block("message", "a", "5", None)]
    assert parser.last_event_id == "5"
    assert parser.feed(b"\n") == []
    assert parser.last_event_id == "6"


def test_comments_are_counted_and_hold_no_memory() -> None:
    parser = Parser(limit=10)
    for _ in range(100):
        assert parser.feed(b":\n\n: beat\n") == []
    assert parser.comments == 200


def test_the_error_stays() -> None:
    parser = Parser(limit=8)
    assert parser.feed(b"data: a\n\ndata: a line too long\n\n") == [Block("message", "a", "", None)]
    for _ in range(2):
        with pytest.raises(ClientError, match="longer than 8 bytes"):
            parser.feed(b"data: b\n\n")


def test_many_short_data_lines_exceed_the_limit_too() -> None:
    parser = Parser(limit=100)
    assert [parser.feed(b"data:\n") for _ in range(100)] == [[]] * 100
    with pytest.raises(ClientError):
        parser.feed(b"data:\n")


def test_a_long_line_in_small_chunks_takes_linear_time() -> None:
    parser = Parser()
    started = time.process_time()
    parser.feed(b"data: ")
    for _ in range(100_000):
        parser.feed(b"x" * 100)
    [block] = parser.feed(b"\n\n")
    assert len(block.data) == 10_000_000
    assert time.process_time() - started < 5
