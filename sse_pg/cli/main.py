"""The command line: ``sse-pg serve | migrate | publish | tail | history | token | purge | doctor``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click
import psycopg

from sse_pg import logs
from sse_pg.auth import exposure
from sse_pg.cli import database as databases
from sse_pg.cli import doctor as doctor_command
from sse_pg.cli import history as history_command
from sse_pg.cli import publish as publish_command
from sse_pg.cli import purge as purge_command
from sse_pg.cli import signals
from sse_pg.cli import tail as tail_command
from sse_pg.cli import token as token_command
from sse_pg.config import Settings, misspelt
from sse_pg.db.connection import describe, refuse_pooler
from sse_pg.db.migrate import migrate as apply_migrations
from sse_pg.errors import EmbeddedError
from sse_pg.server import serve as run_server
from sse_pg.version import VERSION
from sse_pg.workers.supervisor import supervise

T = TypeVar("T")
log = logging.getLogger(__name__)

_database_url = click.option(
    "--database-url", metavar="URL", help="The database; else DATABASE_URL, else the embedded PostgreSQL."
)
_data_dir = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Where the embedded PostgreSQL keeps its data."
)


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        """Run a command; a signal that it does not deal with itself gives its usual exit code."""
        try:
            return super().invoke(ctx)
        except signals.Ended as ended:
            sys.exit(ended.exit_code)


_debug = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="sse-pg")
@_debug
def cli() -> None:
    """An event bus on PostgreSQL: INSERT publishes, NOTIFY wakes, Server-Sent Events deliver."""


@cli.command(short_help="Migrate, then serve.")
@click.option("--host", metavar="H", help="Address to listen on [127.0.0.1].")
@click.option("--port", type=int, metavar="P", help="Port to listen on [8080].")
@click.option("--workers", type=int, metavar="N", help="Server processes on that port, to use more cores [1].")
@click.option(
    "--open", "is_open", is_flag=True, default=None, help="Without tokens, serve others than this machine too."
)
@_database_url
@_data_dir
@_debug
def serve(
    host: str | None,
    port: int | None,
    workers: int | None,
    is_open: bool | None,
    database_url: str | None,
    data_dir: Path | None,
) -> None:
    """Migrate, then serve. Without a database: start the embedded PostgreSQL, and stop it on exit."""
    # To be told to stop is how a server ends, also while it starts: exit code 0.
    with contextlib.suppress(signals.Ended):
        settings = _settings(
            host=host, port=port, workers=workers, open=is_open, database_url=database_url, data_dir=data_dir
        )
        logs.configure(settings.log_level, settings.log_format)
        for advice in misspelt(os.environ):
            log.warning("%s", advice)
        warning = exposure.check(settings)
        with databases.started(settings) as ready:
            for name in apply_migrations(ready.database_url):
                click.echo(f"applied migration {name}")
            _run(_serve(ready, warning))


async def _serve(settings: Settings, warning: str | None) -> None:
    def announce(url: str) -> None:
        click.echo(f"sse-pg {VERSION} listens on {url}")
        if warning is not None:
            click.echo(warning)

    await refuse_pooler(settings.listen_url)
    try:
        await (run_server if settings.workers == 1 else supervise)(settings, announce)
    finally:
        signals.hold()


@cli.command(short_help="Bring the schema of the database up to date.")
@click.option(
    "--post", is_flag=True, help="Also apply the steps that older servers cannot work with; stop those first."
)
@_database_url
@_data_dir
@_debug
def migrate(post: bool, database_url: str | None, data_dir: Path | None) -> None:
    """Bring the schema of the database up to date; safe to run from many places at once.

    Servers of the release before keep working. When the last of them has stopped, finish the upgrade with --post.
    """
    settings = _settings(database_url=database_url, data_dir=data_dir)
    logs.configure(settings.log_level, "text")
    with databases.started(settings) as ready:
        applied = apply_migrations(ready.database_url, post=post)
    for name in applied:
        click.echo(f"applied migration {name}")
    if not applied:
        click.echo("the schema is up to date")


@cli.command(short_help="Publish an event, or one for each line.")
@click.argument("channel")
@click.argument("payload", required=False)
@click.option("--type", "event_type", metavar="T", default="message", show_default=True, help="The event type.")
@click.option("--key", metavar="K", help="Idempotency key of the one event: published once, however often it is sent.")
@click.option("--text", is_flag=True, help="A line (or payload) that is not JSON is published as a JSON string.")
@_database_url
@_data_dir
@_debug
def publish(
    channel: str,
    payload: str | None,
    event_type: str,
    key: str | None,
    text: bool,
    database_url: str | None,
    data_dir: Path | None,
) -> None:
    """Publish one event, or one for each line of standard input ("-" or no PAYLOAD); print the ids."""
    settings = databases.running(_settings(database_url=database_url, data_dir=data_dir))
    from_stdin = payload in (None, "-")
    if from_stdin and key is not None:
        raise click.UsageError("--key belongs to one event; it cannot stand for the lines of standard input")
    template = publish_command.Template(channel, event_type, text, settings.max_payload)
    if from_stdin:
        _run(publish_command.publish_lines(settings, template, _stdin()))
    else:
        _run(publish_command.publish_one(settings, template, payload or "", key))


@cli.command(short_help="Follow channels in the terminal.")
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@click.option("--from", "cursor", metavar="CURSOR", help="Where to begin; 0 is all that is retained. [now]")
@click.option("--url", metavar="URL", help="The server [http://127.0.0.1:8080, with HOST and PORT].")
@_debug
def tail(channels: tuple[str, ...], cursor: str | None, url: str | None) -> None:
    """Follow channels in the terminal, reconnecting; one JSON line an event.

    A server with tokens is shown the one in SSE_PG_TOKEN.
    """
    settings = _settings()
    logs.configure(settings.log_level, "text")
    with contextlib.suppress(signals.Ended):
        _run(tail_command.tail(url or _local_url(settings), channels, cursor, settings.token))


@cli.command(short_help="Print the stored events of a channel.")
@click.argument("channel")
@click.option("--after", metavar="C", help="A cursor or an id; events after it.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="At most so many events [all].")
@_database_url
@_data_dir
@_debug
def history(
    channel: str, after: str | None, limit: int | None, database_url: str | None, data_dir: Path | None
) -> None:
    """Print the stored events of a channel, one JSON line each; the cursor to go on from goes to standard error."""
    settings = databases.running(_settings(database_url=database_url, data_dir=data_dir))
    _run(history_command.history(settings, channel, after, limit))


@cli.command(short_help="Make a token.")
@click.option("--user", metavar="U", required=True, help="Whose token it is.")
@click.option("--publish", metavar="P", multiple=True, help="A channel or pattern (orders.*) to publish to.")
@click.option("--subscribe", metavar="P", multiple=True, help="A channel or pattern to read.")
@click.option("--act-for", metavar="P", multiple=True, help="A user or pattern that it may act for.")
@click.option("--observe", is_flag=True, help="It may look at the whole server: connections, anybody's subscriptions.")
@click.option("--ttl", metavar="T", default="1h", show_default=True, help="How long it is good: 90s, 15m, 12h, 30d.")
@_debug
def token(
    user: str, publish: tuple[str, ...], subscribe: tuple[str, ...], act_for: tuple[str, ...], observe: bool, ttl: str
) -> None:
    """Make a token with the configured secret (SSE_PG_TOKEN_SECRET or its file).

    Options for channels may be repeated, or hold several with commas between.
    """
    click.echo(token_command.token(_settings(), user, publish, subscribe, act_for, observe, ttl))


@cli.command(short_help="Apply retention now.")
@click.option("--keep-events", type=int, metavar="N", help="Keep the newest N events; 0 is no limit [as set].")
@click.option(
    "--keep-hours", type=float, metavar="H", help="Keep the events of the last H hours; 0 is no limit [as set]."
)
@_database_url
@_data_dir
@_debug
def purge(keep_events: int | None, keep_hours: float | None, database_url: str | None, data_dir: Path | None) -> None:
    """Apply retention now: drop the partitions beyond the limits; print what went."""
    settings = databases.running(
        _settings(keep_events=keep_events, keep_hours=keep_hours, database_url=database_url, data_dir=data_dir)
    )
    _run(purge_command.purge(settings))


@cli.command(short_help="Say what is wrong, and how to mend it.")
@click.option("--url", metavar="URL", help="The address that clients use, to look at the proxies on the way, too.")
@click.option(
    "--wait", type=click.FloatRange(0), metavar="S", help="Watch a quiet stream of it for S seconds [2.5 heartbeats]."
)
@click.option(
    "--header", "headers", metavar="NAME:VALUE", multiple=True, help="A header for requests to it, such as a token."
)
@click.option(
    "--old", type=click.FloatRange(0), metavar="S", default=60.0, show_default=True,
    help="A transaction that published is old after S seconds.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@_database_url
@_data_dir
@_debug
def doctor(
    url: str | None,
    wait: float | None,
    headers: tuple[str, ...],
    old: float,
    as_json: bool,
    database_url: str | None,
    data_dir: Path | None,
) -> None:
    """Find what is wrong with database, settings and proxies, and say how to mend it; change nothing.

    Exit code 1 where there are errors; warnings alone give 0.
    """
    settings = _settings(database_url=database_url, data_dir=data_dir)
    database = True
    try:
        settings = databases.running(settings)
    except EmbeddedError:
        if url is None:
            raise
        database = False
    pairs = [header.partition(":") for header in headers]
    if bad := next((name for name, colon, _ in pairs if not (name.strip() and colon)), None):
        raise click.UsageError(f"--header {bad!r}: a header is NAME:VALUE")
    sent = {name.strip(): value.strip() for name, _, value in pairs}
    options = doctor_command.Options(database=database, old=old, url=url, wait=wait, headers=sent, as_json=as_json)
    if _run(doctor_command.doctor(settings, options)):
        sys.exit(1)


# ---------------------------------------------------------------- around the commands


def _settings(**flags: Any) -> Settings:
    return Settings.from_env(os.environ, **flags)


def _local_url(settings: Settings) -> str:
    """Return where a server with the same settings is reached from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.host, settings.host)  # noqa: S104 - compared with, not listened on
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _stdin() -> int:
    if sys.stdin is None:
        raise click.UsageError("standard input is closed; give a PAYLOAD")
    return sys.stdin.fileno()


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def main() -> None:
    """Run the command line: errors are one line on standard error, exit code 1 (2 for usage)."""
    words = sys.argv[1:]
    debug = "--debug" in words[: words.index("--") if "--" in words else None]
    signals.install()
    try:
        cli.main(prog_name="sse-pg", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "sse-pg"
        click.echo(f"sse-pg: {error.format_message()} ({command} --help shows the usage)", err=True)
        sys.exit(error.exit_code)
    except signals.Ended as ended:
        sys.exit(ended.exit_code)
    except click.Abort:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has enough; keep the interpreter from flushing into the void.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        click.echo(f"sse-pg: {_message(error)}", err=True)
        sys.exit(1)


def _message(error: Exception) -> str:
    """Return the line that ends a command, with what to do about it."""
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedFunction):
        return f"{error.diag.message_primary}: run `sse-pg migrate` on this database first"
    text = describe(error)
    return f"{text} (--debug shows where)" if text.startswith("unexpected ") else text
