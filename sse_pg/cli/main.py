"""The command line: all commands of ``sse-pg`` with their arguments, and how errors are printed."""

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
from sse_pg.cli import erase as erase_command
from sse_pg.cli import finish as finish_command
from sse_pg.cli import history as history_command
from sse_pg.cli import publish as publish_command
from sse_pg.cli import purge as purge_command
from sse_pg.cli import signals, systemd
from sse_pg.cli import tail as tail_command
from sse_pg.cli import token as token_command
from sse_pg.config import Settings, advice, has_database, require_no_lost_secret
from sse_pg.db.connection import describe, refuse_pooler
from sse_pg.db.erasing import Wanted
from sse_pg.db.migrate import migrate as apply_migrations
from sse_pg.db.migration_script import migration_script
from sse_pg.errors import EmbeddedError
from sse_pg.http.loop import run as run_in_server_loop
from sse_pg.server import serve as run_server
from sse_pg.version import VERSION
from sse_pg.workers.supervisor import supervise

T = TypeVar("T")
log = logging.getLogger(__name__)

_database_url = click.option(
    "--database-url", metavar="URL", help="The database [DATABASE_URL, or the embedded PostgreSQL]."
)
_data_dir = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Data directory of the embedded PostgreSQL."
)


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        """Run a command. A signal that the command does not handle gives the usual exit code."""
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


@cli.command(short_help="Apply the migrations, then serve.")
@click.option("--host", metavar="H", help="Address to listen on [127.0.0.1].")
@click.option("--port", type=int, metavar="P", help="Port to listen on [8080].")
@click.option("--workers", type=int, metavar="N", help="Number of server processes that share the port [1].")
@click.option(
    "--open", "is_open", is_flag=True, default=None, help="Serve other machines even if tokens are not required."
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
    """Apply the migrations, then serve.

    If no database is configured, the embedded PostgreSQL is started, and stopped on exit.
    """
    # A signal is the normal end of a server, even while it starts: exit code 0.
    with contextlib.suppress(signals.Ended):
        if os.environ.get("SSE_PG_LOG_FORMAT") == "json":
            logs.configure("info", "json")  # for an error in the settings
        settings = Settings.from_env(
            os.environ,
            host=host,
            port=port,
            workers=workers,
            open=is_open,
            database_url=database_url,
            data_dir=data_dir,
        )
        logs.configure(settings.log_level, settings.log_format)
        for line in advice(os.environ):
            log.warning("%s", line)
        require_no_lost_secret(settings, os.environ)
        warning = exposure.check(settings)
        with databases.started(settings) as ready:
            for name in apply_migrations(ready.database_url):
                logs.say(f"applied migration {name}")
            run_in_server_loop(_serve(ready, warning))


async def _serve(settings: Settings, warning: str | None) -> None:
    def announce(url: str) -> None:
        logs.say(f"sse-pg {VERSION} listens on {url}")
        systemd.notify(f"READY=1\nSTATUS=listens on {url}")
        if warning is not None:
            logs.say(warning)

    if not settings.polls:
        await refuse_pooler(settings.listen_url)
    try:
        await (run_server if settings.workers == 1 else supervise)(settings, announce)
    finally:
        signals.hold()


@cli.command(short_help="Bring the schema of the database up to date.")
@click.option(
    "--post", is_flag=True, help="Also apply the steps that older servers cannot work with. Stop those servers first."
)
@click.option("--sql", "prints_sql", is_flag=True, help="Print the SQL instead of running it.")
@click.option(
    "--after",
    type=click.IntRange(0),
    metavar="N",
    help="With --sql: the migrations after this number, whatever a database has [those that the database lacks].",
)
@_database_url
@_data_dir
@_debug
def migrate(post: bool, prints_sql: bool, after: int | None, database_url: str | None, data_dir: Path | None) -> None:
    """Bring the schema of the database up to date. Several migrate commands may run at the same time.

    Servers of the previous release keep working. When the last of them has stopped, finish the upgrade with --post.

    With --sql nothing is run. If no database is configured, the SQL is that for an empty one. It is a script for one
    transaction, for tools that run migrations themselves.
    """
    settings = _settings(database_url=database_url, data_dir=data_dir)
    logs.configure(settings.log_level, "text")
    if prints_sql:
        if after is None and not has_database(settings, os.environ):
            after = 0
        click.echo(migration_script(settings.database_url, after=after, post=post), nl=False)
        return
    if after is not None:
        raise click.UsageError("--after can only be used with --sql")
    with databases.started(settings) as ready:
        applied = apply_migrations(ready.database_url, post=post)
    for name in applied:
        click.echo(f"applied migration {name}")
    if not applied:
        click.echo("the schema is up to date")


@cli.command(short_help="Publish an event, or one event for each line of input.")
@click.argument("channel")
@click.argument("payload", required=False)
@click.option("--type", "event_type", metavar="T", default="message", show_default=True, help="The event type.")
@click.option(
    "--key", metavar="K", help="Idempotency key: an event with a key is published once, however often it is sent."
)
@click.option("--header", "headers", metavar="NAME=VALUE", multiple=True, help="A header of every event published.")
@click.option("--text", is_flag=True, help="Publish a line or payload that is not JSON as a JSON string.")
@_database_url
@_data_dir
@_debug
def publish(
    channel: str,
    payload: str | None,
    event_type: str,
    key: str | None,
    headers: tuple[str, ...],
    text: bool,
    database_url: str | None,
    data_dir: Path | None,
) -> None:
    """Publish one event, or one event for each line of standard input ("-" or no PAYLOAD). Prints the ids."""
    settings = databases.running(_settings(database_url=database_url, data_dir=data_dir))
    from_stdin = payload in (None, "-")
    if from_stdin and key is not None:
        raise click.UsageError("--key can only be used with a PAYLOAD, because a key belongs to one event")
    template = publish_command.Template(
        channel, event_type, text, settings.max_payload, publish_command.headers_of(headers)
    )
    if from_stdin:
        _run(publish_command.publish_lines(settings, template, _stdin()))
    else:
        _run(publish_command.publish_one(settings, template, payload or "", key))


@cli.command(short_help="Say that a channel has ended.")
@click.argument("channel")
@_database_url
@_data_dir
@_debug
def finish(channel: str, database_url: str | None, data_dir: Path | None) -> None:
    """Say that a channel has ended: streams with until=end end then. Prints the id of the event that says so."""
    settings = databases.running(_settings(database_url=database_url, data_dir=data_dir))
    _run(finish_command.finish(settings, channel))


@cli.command(short_help="Print the events of channels as they arrive.")
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@click.option("--from", "cursor", metavar="CURSOR", help="Where to start; 0 means everything that is retained [now].")
@click.option(
    "--latest", metavar="N", type=click.IntRange(1, 1000), help="Start with the last N events of each channel."
)
@click.option("--url", metavar="URL", help="The server [http://127.0.0.1:8080, or HOST and PORT].")
@_debug
def tail(channels: tuple[str, ...], cursor: str | None, latest: int | None, url: str | None) -> None:
    """Print the events of channels as they arrive, one JSON line per event. Reconnects by itself.

    Several channels are separated by spaces or commas; each line then has the field channel.

    If SSE_PG_TOKEN is set, this token is sent to the server.
    """
    if cursor is not None and latest is not None:
        raise click.UsageError("--from and --latest both say where to start; use one of them")
    settings = _settings()
    logs.configure(settings.log_level, "text")
    with contextlib.suppress(signals.Ended):
        _run(tail_command.tail(url or _local_url(settings), channels, cursor, settings.token, latest=latest))


@cli.command(short_help="Print the stored events of a channel.")
@click.argument("channel")
@click.option("--after", metavar="C", help="Start after this cursor or id.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Maximum number of events [all].")
@click.option("--newest", is_flag=True, help="Newest first.")
@_database_url
@_data_dir
@_debug
def history(
    channel: str, after: str | None, limit: int | None, newest: bool, database_url: str | None, data_dir: Path | None
) -> None:
    """Print the stored events of a channel, one JSON line per event.

    The cursor to continue from is printed to standard error, unless the newest events come first.
    """
    settings = databases.running(_settings(database_url=database_url, data_dir=data_dir))
    _run(history_command.history(settings, channel, after, limit, newest=newest))


@cli.command(short_help="Create a token.")
@click.option("--user", metavar="U", required=True, help="The user that the token is for.")
@click.option("--publish", metavar="P", multiple=True, help="Channel or pattern (orders.*) that it may publish to.")
@click.option("--subscribe", metavar="P", multiple=True, help="Channel or pattern that it may read.")
@click.option("--act-for", metavar="P", multiple=True, help="User or pattern that it may act for.")
@click.option(
    "--observe", is_flag=True, help="It may read the state of the whole server: connections, everybody's subscriptions."
)
@click.option("--ttl", metavar="T", default="1h", show_default=True, help="How long it is valid: 90s, 15m, 12h, 30d.")
@_debug
def token(
    user: str, publish: tuple[str, ...], subscribe: tuple[str, ...], act_for: tuple[str, ...], observe: bool, ttl: str
) -> None:
    """Create a token with the configured secret (SSE_PG_TOKEN_SECRET or SSE_PG_TOKEN_SECRET_FILE).

    Options for channels can be repeated, and can contain several channels separated by commas.
    """
    click.echo(token_command.token(_settings(), user, publish, subscribe, act_for, observe, ttl))


@cli.command(short_help="Apply the retention now.")
@click.option(
    "--keep-events",
    type=int,
    metavar="N",
    help="Number of newest events to keep; 0 means no limit [SSE_PG_KEEP_EVENTS].",
)
@click.option(
    "--keep-hours",
    type=float,
    metavar="H",
    help="Keep the events of the last H hours; 0 means no limit [SSE_PG_KEEP_HOURS].",
)
@_database_url
@_data_dir
@_debug
def purge(keep_events: int | None, keep_hours: float | None, database_url: str | None, data_dir: Path | None) -> None:
    """Apply the retention now: drop the partitions beyond the limits, and print what was purged."""
    settings = databases.running(
        _settings(keep_events=keep_events, keep_hours=keep_hours, database_url=database_url, data_dir=data_dir)
    )
    _run(purge_command.purge(settings))


@cli.command(short_help="Take events out of the log for good.")
@click.argument("channel")
@click.option(
    "--before", metavar="T", default="infinity", help="Only events that were created before this moment [all]."
)
@click.option(
    "--containing", metavar="JSON", help='Only events whose payload contains this, such as {"user": 42} [all].'
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_database_url
@_data_dir
@_debug
def erase(
    channel: str, before: str, containing: str | None, yes: bool, database_url: str | None, data_dir: Path | None
) -> None:
    """Take events out of the log and out of every server's memory, as when a user asks for the deletion of their data.

    Clients are not told. Says what it does not reach: backups, WAL, subscribers.
    """
    settings = databases.running(_settings(database_url=database_url, data_dir=data_dir))
    _run(erase_command.erase(settings, Wanted(channel, before, containing), yes=yes))


@cli.command(short_help="Say what is wrong, and how to fix it.")
@click.option("--url", metavar="URL", help="The address that clients use, to check the proxies too.")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    metavar="S",
    help="How many seconds to watch a quiet stream [2.5 heartbeat intervals].",
)
@click.option(
    "--header",
    "headers",
    metavar="NAME:VALUE",
    multiple=True,
    help="Header to send with those requests, such as a token.",
)
@click.option(
    "--old", type=click.FloatRange(0), metavar="S", default=60.0, show_default=True,
    help="Age in seconds from which an open transaction that has published counts as old.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
    """Check the database, the settings and the proxies, and say how to fix what is wrong. Changes nothing.

    The exit code is 1 if there are errors; warnings alone give 0.
    """
    settings = Settings.from_env(os.environ, database_url=database_url, data_dir=data_dir)
    database = True
    try:
        settings = databases.running(settings)
    except EmbeddedError:
        if url is None:
            raise
        database = False
    pairs = [header.partition(":") for header in headers]
    if bad := next(
        (pair[0] for pair in pairs if not (pair[0].strip() and pair[1] and "".join(pair).isprintable())), None
    ):
        raise click.UsageError(f"--header {bad!r}: allowed is NAME:VALUE")
    sent = {name.strip(): value.strip() for name, _, value in pairs}
    options = doctor_command.Options(database=database, old=old, url=url, wait=wait, headers=sent, as_json=as_json)
    if _run(doctor_command.doctor(settings, options)):
        sys.exit(1)


# ---------------------------------------------------------------- around the commands


def _settings(**flags: Any) -> Settings:
    """Return the settings of a command that prints on standard error which variables have no effect.

    ``serve`` logs them, and ``doctor`` has a finding for each.
    """
    for line in advice(os.environ):
        click.echo(f"sse-pg: {line}", err=True)
    return Settings.from_env(os.environ, **flags)


def _local_url(settings: Settings) -> str:
    """Return the URL at which this machine reaches a server with these settings."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.host, settings.host)  # noqa: S104 - compared with, not listened on
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _stdin() -> int:
    if sys.stdin is None:
        raise click.UsageError("standard input is closed; pass a PAYLOAD")
    return sys.stdin.fileno()


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def main() -> None:
    """Run the command line. An error is one line on standard error and exit code 1, or 2 for wrong usage."""
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
        # The reader of our output is gone. The interpreter must not fail when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        logs.say(f"sse-pg: {_message(error)}", err=True)
        sys.exit(1)


def _message(error: Exception) -> str:
    """Return an error as one line that says what to do."""
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedFunction):
        return f"{error.diag.message_primary}: run `sse-pg migrate` on this database first"
    text = describe(error)
    return f"{text} (--debug shows where)" if text.startswith("unexpected ") else text
