"""Answers that models write piece by piece: many at once, each a channel that is finished, and the server is killed.

One process writes all answers through the client's Publisher; another reads each with ``until=end`` until it gets 204.
Half-way the server is killed and started again. Each text that was read must be the one that was written.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from random import Random

from bench.stack import Stack, cpu_seconds
from bench.table import Result, percentile
from sse_pg.client import Publisher

ANSWERS = 200
PIECES_PER_S = 30
SECONDS = 16
WITHIN_S = 0.02
#: Pieces that were written so long after the server was back still belong to the outage: what waited comes first.
RECOVERY_S = 2.0
MAX_P99_S = 0.15
LETTERS = 'abc defgh ijklm nop "\\äé\n日本🙂'


def run(rounds: int = 3) -> Result:
    """Measure, with a kill in the middle of each round."""
    result = Result("answers", f"{ANSWERS} answers at once, {PIECES_PER_S} pieces a second each; the server is killed")
    for number in range(max(1, rounds // 3)):
        with Stack() as stack:
            _measure(stack, result, seed=number)
    result.notes = [
        f"one sse_pg.client.Publisher for all answers, within={WITHIN_S}, over HTTP, with idempotency keys; PostgreSQL, server, writer",
        "and readers share the machine. The delay is from the call of publish() to the reader. Pieces that were written from the kill",
        f"until {RECOVERY_S:.0f} s after the server was back count as the outage.",
    ]
    return result


def text_of(answer: int, seed: int) -> list[str]:
    """Return the pieces of an answer."""
    random = Random(f"{seed} {answer}")
    return ["".join(random.choices(LETTERS, k=random.randint(1, 8))) for _ in range(PIECES_PER_S * SECONDS)]


def _measure(stack: Stack, result: Result, seed: int) -> None:
    server = stack.serve()
    context = multiprocessing.get_context("spawn")
    ours, theirs = multiprocessing.Pipe()
    reader = context.Process(target=_read_all, args=(server.port, theirs, seed), daemon=True)
    writer = context.Process(target=_write_all, args=(server.port, theirs, seed), daemon=True)
    reader.start()
    assert ours.recv() == "open"
    began = time.monotonic()
    cpu = cpu_seconds(server.process.pid)
    writer.start()
    time.sleep(SECONDS / 2)
    spent = cpu_seconds(server.process.pid) - cpu
    seconds = time.monotonic() - began
    killed = time.monotonic()
    server.process.popen.kill()
    server.process.popen.wait()
    stack.serve(port=server.port)
    back = time.monotonic()
    delays, wrong, repeats = ours.recv()
    quiet = sorted(delay for at, delay in delays if not killed - 1 <= at <= back + RECOVERY_S)
    outage = max(delay for at, delay in delays if killed - 1 <= at <= back + RECOVERY_S)
    p99 = percentile(quiet, 0.99)
    result.add(
        "delay p50 / p99", f"{percentile(quiet, 0.5) * 1e3:.0f} / {p99 * 1e3:.0f} ms", "p99 < 150 ms", p99 < MAX_P99_S
    )
    result.add("texts that differ", f"{wrong} of {ANSWERS}", "0", wrong == 0)
    result.add("pieces read", f"{len(delays)}, {repeats} more than once", "", None)
    result.add("server away / longest delay", f"{back - killed:.1f} s / {outage:.1f} s", "", None)
    result.add("CPU of the server", f"{spent / seconds * 100:.0f} % of a core", "", None)


def _write_all(port: int, pipe: Connection, seed: int) -> None:
    asyncio.run(_write(port, seed))


async def _write(port: int, seed: int) -> None:
    async def answer(number: int) -> None:
        at = time.monotonic() + Random(number).random() / PIECES_PER_S
        for piece in text_of(number, seed):
            await asyncio.sleep(at - time.monotonic())
            at += 1 / PIECES_PER_S
            await bus.publish(f"answer.{number}", [piece, time.monotonic()])
        await bus.finish(f"answer.{number}")

    async with Publisher(f"http://127.0.0.1:{port}", within=WITHIN_S) as bus:
        await asyncio.gather(*map(answer, range(ANSWERS)))


def _read_all(port: int, pipe: Connection, seed: int) -> None:
    asyncio.run(_read(port, pipe, seed))


async def _read(port: int, pipe: Connection, seed: int) -> None:
    delays: list[tuple[float, float]] = []
    wrong = repeats = opened = 0

    async def follow(number: int) -> None:
        nonlocal wrong, repeats, opened
        pieces: list[str] = []
        cursor, ids = "0", set[int]()
        while True:
            try:
                stream, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(
                    f"GET /api/events/stream?channels=answer.{number}&until=end HTTP/1.0\r\nHost: localhost\r\n"
                    f"Last-Event-ID: {cursor}\r\n\r\n".encode()
                )
                head = await stream.readuntil(b"\r\n\r\n")
                if b" 204 " in head.partition(b"\r\n")[0]:
                    break
                while True:
                    block = await stream.readuntil(b"\n\n")
                    now = time.monotonic()
                    fields = dict(line.split(": ", 1) for line in block.decode().splitlines() if ": " in line)
                    if fields.get("event") == "message":
                        piece, at = json.loads(fields["data"])
                        event = int(fields.get("number", fields["id"].partition("~")[0]))
                        repeats += event in ids
                        ids.add(event)
                        pieces.append(piece)
                        delays.append((at, now - at))
                    elif fields.get("event") == "sse-pg.hello" and cursor == "0":
                        opened += 1
                        if opened == ANSWERS:
                            pipe.send("open")
                    cursor = fields.get("id", cursor)
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.05)
            finally:
                writer.close()
        wrong += "".join(pieces) != "".join(text_of(number, seed))

    await asyncio.gather(*map(follow, range(ANSWERS)))
    pipe.send((delays, wrong, repeats))
