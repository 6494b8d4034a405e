"""``sse-pg doctor``: says what is wrong with an installation, and how to fix it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import click
import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from sse_pg import logs
from sse_pg.config import Settings
from sse_pg.doctor.examine import OLD_TRANSACTION_S, examine
from sse_pg.doctor.finding import Finding
from sse_pg.doctor.proxy import proxy

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "unchecked": "cyan"}
#: How long a quiet stream is watched by default, in heartbeat intervals.
WATCHED_HEARTBEATS = 2.5


@dataclass(frozen=True)
class Options:
    """The flags of the command."""

    database: bool = True
    """Whether there is a database to check, or only a URL."""
    old: float = OLD_TRANSACTION_S
    url: str | None = None
    wait: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    as_json: bool = False


async def doctor(settings: Settings, options: Options) -> int:
    """Print the findings, each with its fix if it needs one; return the number of errors."""
    logs.configure("error", "text")
    terminal = Console(highlight=False) if sys.stdout.isatty() else None
    found: list[Finding] = []
    async for finding in _examine(settings, options):
        found.append(finding)
        if options.as_json:
            continue
        if terminal:
            _show(terminal, finding)
        else:
            _print(finding)
    counts: Counter[str] = Counter(finding.state for finding in found)
    if options.as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"findings": found, "counts": counts})).decode())
    else:
        click.echo(_summary(counts))
    return counts["error"]


async def _examine(settings: Settings, options: Options) -> AsyncIterator[Finding]:
    if options.database:
        async for finding in examine(settings, old=options.old):
            yield finding
    if options.url is not None:
        wait = WATCHED_HEARTBEATS * settings.heartbeat if options.wait is None else options.wait
        if wait >= 5 and sys.stderr.isatty():
            click.echo(f"watching a quiet stream of {options.url} for {wait:g} s ...", err=True)
        token = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
        for finding in await proxy(options.url, wait=wait, headers={**token, **options.headers}):
            yield finding


def _print(finding: Finding) -> None:
    """Print a finding to a file or a pipe: one line, and below it indented ones that say how to fix it."""
    click.echo(f"{finding.state:<9} {finding.name}: {finding.found}")
    if finding.fix:
        click.echo(f"          fix: {finding.fix}")
    for statement in finding.sql:
        click.echo(f"          sql: {statement};")


def _show(terminal: Console, finding: Finding) -> None:
    """Print a finding on a terminal, in colour and with long lines wrapped and indented."""
    style = _STYLES[finding.state]
    head = Text.assemble((f"{finding.state:<9} ", style), (f"{finding.name}: ", "bold"), finding.found)
    terminal.print(head)
    if finding.fix:
        terminal.print(Padding(Text(f"fix: {finding.fix}"), (0, 0, 0, 10), expand=False))
    for statement in finding.sql:
        # Not wrapped, so that it can be copied.
        terminal.print(Text(f"          {statement};", style="bold"), soft_wrap=True)


def _summary(counts: Mapping[str, int]) -> str:
    words = [
        f"{count} {name}{'s' if count > 1 and name in ('warning', 'error') else ''}"
        for name in ("error", "warning", "unchecked", "ok")
        if (count := counts.get(name, 0))
    ]
    return ", ".join(words)
