"""The servers of docs/examples, each a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from support.process import CHECKOUT, environment
from support.waiting import TIMEOUT_S, eventually

EXAMPLES = CHECKOUT / "docs" / "examples"


class Program:
    """A server of an example, from its start to its end."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.url = ""

    async def listening(self) -> None:
        found: list[str] = []

        def is_listening() -> bool:
            found[:] = re.findall(r"(?:Listening at:|running on) (http://127\.0\.0\.1:\d+)", self.log.read_text())
            assert self.process.returncode is None, self.log.read_text()
            return bool(found)

        await eventually(is_listening)
        self.url = found[0]

    async def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT_S):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def running(log: Path, *words: str, python: str = sys.executable, **variables: str) -> AsyncIterator[Program]:
    """Run a program until the block ends. ``python`` is the interpreter that has its packages."""
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            python, "-m", *words, cwd=EXAMPLES, env=environment(**variables), stdout=out, stderr=out
        )
    program = Program(process, log)
    try:
        await program.listening()
        yield program
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
