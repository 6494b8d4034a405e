"""The settings: one validated object, created once and passed down. Flags override the environment.

Each setting is one field with its variable, unit, bounds and help text (``setting.py``). ``.env.example`` and
``docs/settings.md`` are generated from this table (``tests/support/config_print.py``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from sse_pg.errors import SettingError
from sse_pg.setting import read, require_connection_string, setting

#: Minimum length of a secret for tokens: the length of the digest.
MIN_SECRET_BYTES = 32
PREFIX = "SSE_PG_"
#: Similarity from which a name counts as a misspelling of another, on the scale of difflib.
MIN_SIMILARITY = 0.8
#: A server that polls reads the log so many times less often when nothing has come for long.
IDLE_POLL_FACTOR = 20
#: The value of a field with which no connection listens.
NO_LISTEN = ("listen_database_url", "none")
#: The settings of which any one makes the server require tokens.
KEY_VARIABLES = (
    "SSE_PG_TOKEN_SECRET", "SSE_PG_TOKEN_SECRET_FILE", "SSE_PG_TOKEN_PUBLIC_KEYS", "SSE_PG_TOKEN_JWKS_URL",
)  # fmt: skip
#: Names the PostgreSQL that the project's tests run on. Programs that a test starts may inherit it.
OF_THE_TESTS = "SSE_PG_TEST_POSTGRES"
SETTINGS_PAGE = "docs/settings.md lists the settings"
#: What Kubernetes calls its variables, after the name of the service.
_OF_A_SERVICE = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_LIKE_A_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|JWK|JWT|_(AUTH|KEYS?)(_|$)")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a server. Durations are in seconds here, whatever the unit of the variable is."""

    host: str = setting("HOST", "127.0.0.1", "Address to listen on. The container image sets 0.0.0.0.")
    port: int = setting("PORT", 8080, "Port to listen on; 0 picks a free port.", low=0, high=65535)
    workers: int = setting(
        "SSE_PG_WORKERS",
        1,
        "Number of server processes that share the port; more processes use more cores. Each has its own LISTEN "
        "connection, connection pool and limits.",
        low=1,
        high=256,
    )
    database_url: str | None = setting(
        "DATABASE_URL",
        None,
        "The database, as a postgresql:// URL or a libpq connection string; libpq's own PG* variables are honoured. If "
        "neither this nor PGHOST, PGSERVICE or PGDATABASE is set, an embedded PostgreSQL is started.",
        secret=True,
    )
    listen_database_url: str | None = setting(
        "SSE_PG_LISTEN_DATABASE_URL",
        None,
        "Separate connection string for the LISTEN connection, to bypass a transaction pooler. If it is set, requests "
        "do not use prepared statements. none: no connection listens; the server polls, and everything works through "
        "the pooler (docs/poolers.md).",
        secret=True,
    )
    read_database_url: str | None = setting(
        "SSE_PG_READ_DATABASE_URL",
        None,
        "Connection string of a hot standby of the database, or of several, from which streams and history are read. "
        "DATABASE_URL remains the primary, where everything is written (docs/standbys.md).",
        secret=True,
    )
    data_dir: Path | None = setting(
        "SSE_PG_DATA_DIR",
        None,
        "Data directory of the embedded PostgreSQL; by default /var/lib/sse-pg for root, else sse-pg in the user's "
        "data directory.",
    )
    postgres_bin: Path | None = setting(
        "SSE_PG_POSTGRES_BIN",
        None,
        "Directory that contains the PostgreSQL programs for the embedded server; by default those of the wheel, else "
        "those installed on the machine.",
    )
    server_name: str | None = setting(
        "SSE_PG_SERVER_NAME", None, "Name of this server in active-connections; by default the host name."
    )
    open: bool = setting(
        "SSE_PG_OPEN",
        False,
        "Serve without tokens on addresses other than loopback: anybody who can reach the port can read and publish "
        "everything. No effect if tokens are configured.",
        choices=("true", "false"),
    )
    token_secret: str | None = setting(
        "SSE_PG_TOKEN_SECRET",
        None,
        "Secret of at least 32 bytes that signs tokens (HS256). If this or another source of keys is set, every "
        "request needs a token.",
        secret=True,
    )
    token_secret_file: Path | None = setting(
        "SSE_PG_TOKEN_SECRET_FILE",
        None,
        "File with such secrets, one per line; it is read again when it changes. The first secret signs new tokens, "
        "all of them verify tokens.",
    )
    token_public_keys: str | None = setting(
        "SSE_PG_TOKEN_PUBLIC_KEYS",
        None,
        "Files with public keys in PEM form (RSA, EC, Ed25519), separated by commas; they are read again when they "
        "change.",
    )
    token_jwks_url: str | None = setting(
        "SSE_PG_TOKEN_JWKS_URL", None, "URL of the identity provider's keys (JSON Web Key Set)."
    )
    token_jwks_refresh: float = setting(
        "SSE_PG_TOKEN_JWKS_SECONDS",
        300.0,
        "Interval at which the key set is fetched again.",
        unit="s",
        low=1,
        high=86400,
    )
    token_jwks_pause: float = setting(
        "SSE_PG_TOKEN_JWKS_PAUSE_SECONDS",
        10.0,
        "Minimum time before the key set is fetched again after a failure, or because a token names a key that is not "
        "in it.",
        unit="s",
        low=0,
        high=3600,
    )
    token_audience: str | None = setting(
        "SSE_PG_TOKEN_AUDIENCE",
        None,
        "Audience (aud) that tokens must have. If it is not set, a token that has an audience is refused.",
    )
    token_issuer: str | None = setting(
        "SSE_PG_TOKEN_ISSUER", None, "Issuer (iss) that tokens must have. If it is not set, any issuer is accepted."
    )
    token_leeway: float = setting(
        "SSE_PG_TOKEN_LEEWAY_SECONDS",
        0.0,
        "Clock difference that is tolerated when exp and nbf are checked.",
        unit="s",
        low=0,
        high=300,
    )
    token_cookie: str = setting(
        "SSE_PG_TOKEN_COOKIE",
        "sse_pg_token",
        "Name of the cookie that a token is read from if there is no Authorization header.",
    )
    token: str | None = setting("SSE_PG_TOKEN", None, "The token that `sse-pg tail` sends to a server.", secret=True)
    cors_origins: str | None = setting(
        "SSE_PG_CORS_ORIGINS",
        None,
        "Origins whose pages may use this server from a browser, separated by commas, for example https://app.example. "
        "Pages of the server's own origin are always allowed.",
    )
    authorize_cache: float = setting(
        "SSE_PG_AUTHORIZE_CACHE_SECONDS",
        10.0,
        "How long a decision of sse_pg.authorize() is cached; sse_pg.revoke() discards it at once.",
        unit="s",
        low=0,
        high=3600,
    )
    authorize_timeout: float = setting(
        "SSE_PG_AUTHORIZE_TIMEOUT_SECONDS",
        2.0,
        "Maximum time that sse_pg.authorize() may take for a request; after that the request is refused with 503.",
        unit="s",
        low=0.05,
        high=60,
    )
    pool_size: int = setting(
        "SSE_PG_POOL_SIZE", 8, "Maximum number of database connections for requests.", low=1, high=1000
    )
    pool_timeout: float = setting(
        "SSE_PG_POOL_TIMEOUT_SECONDS",
        5.0,
        "How long a request waits for a database connection before it gets 503.",
        unit="s",
        low=0.1,
        high=600,
    )
    order_wait: float = setting(
        "SSE_PG_ORDER_WAIT_MS",
        0.02,
        "How long events are held back when a lower id is still missing, so that they go out in order.",
        unit="ms",
        low=0,
        high=1000,
    )
    poll: float = setting(
        "SSE_PG_POLL_MS", 0.005, "How often a busy server reads the log.", unit="ms", low=1, high=1000
    )
    safety_read: float = setting(
        "SSE_PG_SAFETY_READ_MS",
        1.0,
        "How often an idle server reads the log even if no notification (bell) has arrived. While no stream is open, "
        "it does so 60 times less often, but at least once a minute.",
        unit="ms",
        low=10,
        high=60000,
    )
    let_go_after: float = setting(
        "SSE_PG_LET_GO_AFTER_SECONDS",
        0.0,
        "Time without a stream or a request that needs the database after which the server closes all its database "
        "connections, so that a database that sleeps when it is idle can do so. The next stream or request opens them "
        "again. 0 means never.",
        unit="s",
        low=0,
        high=86400,
    )
    bell: str = setting(
        "SSE_PG_BELL",
        "masked",
        "When publishers send a notification (ring the bell). masked: not while every server is busy polling. always: "
        "on every commit.",
        choices=("masked", "always"),
    )
    heartbeat: float = setting(
        "SSE_PG_HEARTBEAT_SECONDS",
        15.0,
        "Idle time after which a heartbeat comment is sent.",
        unit="s",
        low=0.1,
        high=3600,
    )
    position_refresh: float = setting(
        "SSE_PG_POSITION_SECONDS",
        60.0,
        "How often a quiet stream is sent its current position, if it has changed.",
        unit="s",
        low=0.1,
        high=86400,
    )
    retry: float = setting(
        "SSE_PG_RETRY_MS",
        2.0,
        "How long a client waits before it reconnects after losing its stream. Each client is sent a random value "
        "between 0.5 and 1.5 times this.",
        unit="ms",
        low=0,
        high=600000,
    )
    stream_buffer: int = setting(
        "SSE_PG_STREAM_BUFFER_BYTES",
        1048576,
        "Maximum amount of unread data per stream; a client that falls further behind is disconnected.",
        unit="bytes",
        low=1024,
        high=2**31,
    )
    unread: int = setting(
        "SSE_PG_UNREAD_BYTES",
        268435456,
        "Maximum amount of unread data of all streams of a process together; beyond it, the clients with the most are "
        "disconnected.",
        unit="bytes",
        low=1024,
        high=2**40,
    )
    compression: str = setting(
        "SSE_PG_COMPRESSION",
        "off",
        "Whether streams are compressed for clients that accept gzip. Each batch of events is compressed once for all "
        "of them and does not wait for more. docs/security.md says when it should stay off.",
        choices=("on", "off"),
    )
    ring_events: int = setting(
        "SSE_PG_RING_EVENTS",
        10000,
        "Number of recent events that are kept in memory for clients that reconnect.",
        low=0,
        high=10_000_000,
    )
    ring_bytes: int = setting(
        "SSE_PG_RING_BYTES", 67108864, "Maximum memory for those events.", unit="bytes", low=0, high=2**40
    )
    replay_page: int = setting(
        "SSE_PG_REPLAY_PAGE",
        500,
        "Number of events that are read from the table at a time while a client catches up.",
        low=1,
        high=10000,
    )
    max_payload: int = setting(
        "SSE_PG_MAX_PAYLOAD_BYTES",
        1048576,
        "Maximum size of a payload published over HTTP. The table has a limit of its own (docs/operating.md).",
        unit="bytes",
        low=1,
        high=2**28,
    )
    max_body: int = setting(
        "SSE_PG_MAX_BODY_BYTES", 16777216, "Maximum size of a request body.", unit="bytes", low=1024, high=2**30
    )
    max_bodies: int = setting(
        "SSE_PG_MAX_BODIES_BYTES",
        268435456,
        "Memory limit for all request bodies, and pages of the history, that are being handled at the same time; "
        "further requests get 503.",
        unit="bytes",
        low=1024,
        high=2**40,
    )
    body_seconds: float = setting(
        "SSE_PG_BODY_SECONDS",
        30.0,
        "How long a request body may take to arrive before the request gets 408.",
        unit="s",
        low=0.05,
        high=3600,
    )
    idle: float = setting(
        "SSE_PG_IDLE_SECONDS",
        75.0,
        "How long a connection may take to send the head of its first or next request before it is closed. Set it "
        "longer than a proxy in front keeps idle connections.",
        unit="s",
        low=0.05,
        high=3600,
    )
    max_connections: int = setting(
        "SSE_PG_MAX_CONNECTIONS",
        16000,
        "Maximum number of connections per process, including streams; further ones get 503.",
        low=1,
        high=1_000_000,
    )
    max_batch: int = setting(
        "SSE_PG_MAX_BATCH", 100000, "Maximum number of events in one request.", low=1, high=10_000_000
    )
    max_channels: int = setting(
        "SSE_PG_MAX_CHANNELS", 1000, "Maximum number of channels on one stream.", low=1, high=100000
    )
    max_streams: int = setting(
        "SSE_PG_MAX_STREAMS",
        15000,
        "Maximum number of streams per process; further ones get 503.",
        low=1,
        high=1_000_000,
    )
    max_streams_user: int = setting(
        "SSE_PG_MAX_STREAMS_PER_USER",
        0,
        "Maximum number of streams per user in one process; further ones get 429. Each process counts its own streams, "
        "so N processes allow N times as many. 0 means no limit.",
        low=0,
        high=1_000_000,
    )
    max_streams_address: int = setting(
        "SSE_PG_MAX_STREAMS_PER_ADDRESS",
        0,
        "Maximum number of streams per client address (for IPv6, per /64 network) in one process; further ones get "
        "429. 0 means no limit. Behind a proxy, set SSE_PG_TRUSTED_PROXIES first.",
        low=0,
        high=1_000_000,
    )
    publish_rate: float = setting(
        "SSE_PG_PUBLISH_RATE",
        0.0,
        "Maximum number of events per second that one user (or one address, if tokens are not used) may publish over "
        "HTTP in one process; beyond it requests get 429. 0 means no limit.",
        unit="1/s",
        low=0,
        high=1_000_000_000,
    )
    trusted_proxies: str = setting(
        "SSE_PG_TRUSTED_PROXIES",
        "",
        "Addresses and networks of the proxies in front, separated by commas. The client's address is taken from their "
        "X-Forwarded-For header.",
    )
    drain: float = setting(
        "SSE_PG_DRAIN_SECONDS",
        5.0,
        "Period over which a stopping server ends its streams one by one. It is also the maximum time that the server "
        "waits for kept-alive connections.",
        unit="s",
        low=0,
        high=3600,
    )
    keep_events: int = setting(
        "SSE_PG_KEEP_EVENTS",
        10_000_000,
        "Number of newest events to keep; older ones are purged one partition at a time. 0 means no limit.",
        low=0,
        high=2**62,
    )
    keep_hours: float = setting(
        "SSE_PG_KEEP_HOURS",
        0.0,
        "A partition is purged when its newest event is older than this. 0 means no limit.",
        unit="h",
        low=0,
        high=1_000_000,
    )
    keep_keys_hours: float = setting(
        "SSE_PG_KEEP_KEYS_HOURS",
        24.0,
        "How long an idempotency key is remembered. 0 means forever.",
        unit="h",
        low=0,
        high=1_000_000,
    )
    partition_size: int = setting(
        "SSE_PG_PARTITION_SIZE", 1_000_000, "Number of ids in one partition of the log.", low=1, high=2**40
    )
    maintenance: float = setting(
        "SSE_PG_MAINTENANCE_SECONDS",
        60.0,
        "How often partitions are created and old ones purged. It happens more often while ids are used up quickly, "
        "and ten times less often while nothing is published and nobody needs the database.",
        unit="s",
        low=0.05,
        high=86400,
    )
    dashboard: str = setting(
        "SSE_PG_DASHBOARD",
        "on",
        "Whether the dashboard is served at /; if it is off, / answers 404.",
        choices=("on", "off"),
    )
    metrics: str = setting(
        "SSE_PG_METRICS",
        "auto",
        "Who may read /metrics. auto: if tokens are required, only holders of a token with observe, otherwise anybody. "
        "open: anybody. off: nobody; it answers 404.",
        choices=("auto", "open", "off"),
    )
    log_level: str = setting(
        "SSE_PG_LOG_LEVEL",
        "info",
        "Lowest severity of messages that are logged.",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: str = setting(
        "SSE_PG_LOG_FORMAT",
        "auto",
        "Format of log lines. auto: text on a terminal, JSON otherwise, and plain lines for people on standard "
        "output at the start. json: nothing but JSON, all of it on standard error.",
        choices=("auto", "text", "json"),
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str], **flags: Any) -> Settings:
        """Read the environment. Flags that are not None override it.

        Raises SettingError, which names the variable, its value and what is allowed.
        """
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        for spec in fields(cls):
            text = env.get(spec.metadata["env"], "")
            if flags.get(spec.name) is not None:
                text = str(flags[spec.name])
                text = text.lower() if isinstance(flags[spec.name], bool) else text
            if text:
                values[spec.name] = read(spec.metadata, hints[spec.name], text)
                names = ("database_url", "listen_database_url", "read_database_url")
                if spec.name in names and (spec.name, text) != NO_LISTEN:
                    require_connection_string(spec.metadata["env"], text)
        return cls(**values)

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        if self.token_secret is not None and len(self.token_secret.encode()) < MIN_SECRET_BYTES:
            raise SettingError(
                f"SSE_PG_TOKEN_SECRET has fewer than {MIN_SECRET_BYTES} bytes; openssl rand -base64 48 makes one"
            )
        if self.polls and self.read_database_url is not None:
            raise SettingError(
                "SSE_PG_LISTEN_DATABASE_URL=none and SSE_PG_READ_DATABASE_URL do not work together: a server that "
                "reads from a standby hears from the primary what concerns access, by LISTEN; name the primary without "
                "a pooler in SSE_PG_LISTEN_DATABASE_URL"
            )
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise SettingError(
                    f"SSE_PG_CORS_ORIGINS={origin!r}: allowed are origins, scheme://host or scheme://host:port, "
                    "in lower case and separated by commas"
                )
        if self.token_jwks_url is not None and not re.fullmatch(r"https?://[^\s/]+\S*", self.token_jwks_url):
            raise SettingError(f"SSE_PG_TOKEN_JWKS_URL={self.token_jwks_url!r}: allowed is an http or https URL")
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", self.token_cookie):
            raise SettingError(f"SSE_PG_TOKEN_COOKIE={self.token_cookie!r}: allowed is the name of a cookie")

    @property
    def requires_tokens(self) -> bool:
        """Whether every request needs a token."""
        return any((self.token_secret, self.token_secret_file, self.token_public_keys, self.token_jwks_url))

    @property
    def token_public_key_files(self) -> tuple[Path, ...]:
        """The files with public keys."""
        return tuple(Path(name.strip()) for name in (self.token_public_keys or "").split(",") if name.strip())

    @property
    def allowed_origins(self) -> frozenset[str]:
        """The origins whose pages may use this server from a browser."""
        return frozenset(name.strip() for name in (self.cors_origins or "").split(",") if name.strip())

    @property
    def polls(self) -> bool:
        """Whether no connection listens."""
        return ("listen_database_url", self.listen_database_url) == NO_LISTEN

    @property
    def idle_poll(self) -> float:
        """How often a server that polls reads the log if nothing has come for long, in seconds."""
        return IDLE_POLL_FACTOR * self.poll

    @property
    def listen_url(self) -> str | None:
        """The connection string of the LISTEN connection, if there is one."""
        return self.listen_database_url or self.database_url


def unknown(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with the prefix that are no settings, each with the setting that is meant, or "".

    Those that Kubernetes sets for a service with the name sse-pg, or one that begins with it, are not among them, nor
    is the one of this project's own tests.
    """
    known = {spec.metadata["env"].removeprefix(PREFIX): spec.metadata["env"] for spec in fields(Settings)}
    found = {}
    for name in sorted(env):
        if not name.startswith(PREFIX) or name in known.values() or _OF_A_SERVICE.fullmatch(name, len(PREFIX)):
            continue
        if name == OF_THE_TESTS:
            continue
        if not env[name].startswith(("tcp://", "udp://", "sctp://")):
            near = difflib.get_close_matches(name.removeprefix(PREFIX), known, 1, MIN_SIMILARITY)
            found[name] = known[near[0]] if near else ""
    return found


def advice(env: Mapping[str, str]) -> list[str]:
    """Return a line for each variable with the prefix that is no setting."""
    return [
        f"{name} is not a setting and has no effect; " + (f"did you mean {meant}?" if meant else SETTINGS_PAGE)
        for name, meant in unknown(env).items()
    ]


def require_no_lost_secret(settings: Settings, env: Mapping[str, str]) -> None:
    """Raise SettingError if tokens seem to be meant, but are not required because a variable has the wrong name.

    The server would be open to everybody. With SSE_PG_OPEN that is what the operator asks for.
    """
    if settings.requires_tokens or settings.open:
        return
    for name, meant in unknown(env).items():
        if meant in KEY_VARIABLES or (not meant and _LIKE_A_SECRET.search(name)):
            raise SettingError(
                f"{name} is not a setting, and no tokens are required without a secret or keys: did you mean "
                f"{meant or KEY_VARIABLES[0]}? If the server shall be open, remove the variable, or set "
                "SSE_PG_OPEN=true"
            )


def has_database(settings: Settings, env: Mapping[str, str]) -> bool:
    """Return whether a database is configured, by DATABASE_URL or libpq's own variables."""
    return settings.database_url is not None or any(env.get(name) for name in ("PGHOST", "PGSERVICE", "PGDATABASE"))
