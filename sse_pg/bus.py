"""The parts of one server, put together: which object holds which."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial

from psycopg.conninfo import make_conninfo

from sse_pg.auth.authorizer import Authorizer
from sse_pg.auth.control import Control
from sse_pg.auth.digests import Digests
from sse_pg.auth.disconnects import Disconnects
from sse_pg.auth.followers import Followers
from sse_pg.auth.holds import Holds
from sse_pg.config import Settings
from sse_pg.db.connection import Connection
from sse_pg.db.demand import Demand
from sse_pg.db.hosts import Hosts
from sse_pg.db.maintenance import Maintenance
from sse_pg.db.pool import Pool, make_pool, make_standby_pool
from sse_pg.db.publisher import Publisher
from sse_pg.db.registry import Registry, server_identity
from sse_pg.db.standby_session import copy_identity
from sse_pg.db.standby_store import StandbyStore
from sse_pg.db.store import Store
from sse_pg.db.tail_session import log_after
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.erasures import Erasures
from sse_pg.delivery.heartbeat import Heartbeat
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.listening_tail import ListeningTail
from sse_pg.delivery.pooled_tail import PooledTail
from sse_pg.delivery.primary_link import PrimaryLink
from sse_pg.delivery.replay import Replay
from sse_pg.delivery.standby_tail import StandbyTail
from sse_pg.delivery.stream_answers import StreamAnswers
from sse_pg.delivery.tail import Tail
from sse_pg.http.access import Access
from sse_pg.http.limits import Limits
from sse_pg.watched_task import WatchedTask, end_all

log = logging.getLogger(__name__)

#: Time without a request or stream after which /readyz relies on the tail's last look at the database.
QUIET_AFTER_S = 30.0
#: Time that attempts to connect get when the server stops.
POOL_CLOSE_TIMEOUT_S = 1.0


class Bus:
    """Everything between the HTTP handlers and the database."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = Limits(settings)
        self.demand = Demand(settings.let_go_after, streams=lambda: len(self.hub.streams))
        behind_pooler = settings.listen_database_url is not None
        self.pool = make_pool(
            settings.database_url,
            settings.pool_size,
            settings.pool_timeout,
            behind_pooler=behind_pooler,
            demand=self.demand,
        )
        self.store = Store(self.pool)
        self.read_store = self.store
        """Where the log is read: at the primary, or at a standby."""
        self.publisher = Publisher(self.pool, self.changed_here)
        self.hub = Hub(settings.ring_events, settings.ring_bytes, settings.stream_buffer // 4, settings.unread)
        # Questions about open streams do not wait for a connection behind requests.
        self.tail_pool = make_pool(settings.database_url, 1, settings.pool_timeout, keep=0, behind_pooler=behind_pooler)
        tail_store = Store(self.tail_pool)
        digests, holds = Digests(), Holds(self.hub)
        self.authorizer = Authorizer(
            self.store, tail_store, holds, digests, seconds=settings.authorize_cache, timeout=settings.authorize_timeout
        )
        self.followers = Followers(self.hub, tail_store, self.authorizer, holds, digests)
        self.access = Access(settings, self.authorizer)
        self.registry = Registry(
            self.store,
            *server_identity(settings.server_name),
            streams=lambda: len(self.hub.streams),
            position=lambda: self.hub.position,
            polls=settings.polls,
        )
        self.read_pools: list[Pool] = []
        """Pools of connections to standbys: for requests, and a single one to the standby that the tail reads."""
        self.link: PrimaryLink | None = None
        """The connection to the primary if the tail has none."""
        self.tail: Tail
        if settings.read_database_url is not None:
            url, timeout = settings.read_database_url, settings.pool_timeout
            self.read_pools = [
                make_standby_pool(url, settings.pool_size, timeout, self.demand),
                make_standby_pool(url, 1, timeout),
            ]
            self.read_store = StandbyStore(self.read_pools[0])
            log_store: Store = StandbyStore(self.read_pools[1])
        else:
            log_store = tail_store
        self.erasures = Erasures(self.hub, log_store, digests.of)
        disconnects = Disconnects(self.hub, digests)
        answers = StreamAnswers(self.hub, self.tail_pool, lambda: self.registry.server_id)
        control = Control(log_store, digests, self.followers, self.authorizer, disconnects, self.erasures, answers)
        if settings.read_database_url is not None:
            self.tail = StandbyTail(
                settings.read_database_url,
                self.hub,
                control,
                self.demand,
                order_wait=settings.order_wait,
                poll=settings.poll,
                written=tail_store.written,
                confirm=tail_store.confirm_epochs,
                on_connect=self._on_standby,
                on_rest=_nothing,
                rest=self._rest,
            )
            self.link = PrimaryLink(
                settings.listen_url,
                control,
                self.demand,
                self.tail,
                server_id=lambda: self.registry.server_id,
                on_connect=self._on_primary,
                on_rest=self.registry.let_go,
            )
            self.replay = Replay(self.hub, self.read_store, self.tail, settings.replay_page, primary=self.store)
        else:
            self.tail = self._make_tail(control)
            self.replay = Replay(self.hub, self.store, self.tail, settings.replay_page)
        self.heartbeat = Heartbeat(self.hub, settings.heartbeat, settings.position_refresh)
        self.maintenance = Maintenance(self.pool, settings, lambda: self.tail.meter.last_id)
        self._newest_log = ""
        """The identity of the log that this server follows, or has followed before it came to rest."""
        self.draining = False
        self.leaving = False
        """Whether each connection ends with its next response: true before the server drains or hands over its port."""
        self.refused_requests: Counter[str] = Counter()
        """Refused requests, by the limit that was reached, or by the status 401 or 403."""
        self.cursors: Counter[str] = Counter()
        """Streams that have begun, by the kind of their cursor: none, known, lost, malformed."""
        self.tasks = [
            WatchedTask("tail", self.tail.run),
            WatchedTask("registry", self.registry.run),
            WatchedTask("heartbeat", self.heartbeat.run),
            WatchedTask("maintenance", self.maintenance.run),
            WatchedTask("sweeper", self.hub.sweeper.run),
            WatchedTask("erasures", partial(self.erasures.run, self.replay, self.tail)),
            WatchedTask("stream answers", answers.run),
        ]
        if self.link is not None:
            self.tasks.append(WatchedTask("primary", self.link.run))

    def _make_tail(self, control: Control) -> Tail:
        settings = self.settings
        if settings.polls:
            return PooledTail(
                settings.database_url,
                self.hub,
                control,
                self.demand,
                order_wait=settings.order_wait,
                poll=settings.poll,
                idle_poll=settings.idle_poll,
                quiet=settings.safety_read,
                server_id=lambda: self.registry.server_id,
                on_connect=self._on_connect,
                on_rest=self.registry.let_go,
                rest=self._rest,
            )
        return ListeningTail(
            settings.listen_url,
            self.hub,
            control,
            self.demand,
            order_wait=settings.order_wait,
            poll=settings.poll,
            safety_read=settings.safety_read,
            masked=settings.bell == "masked",
            on_connect=self._on_connect,
            on_rest=self.registry.let_go,
            rest=self._rest,
        )

    def changed_here(self) -> None:
        """Note that a request of this server has changed something that its tail follows: it looks at once."""
        if self.settings.polls:  # otherwise a notification comes
            self.tail.attend()

    async def start(self) -> None:
        """Start to follow the log. Does not wait for the database."""
        for pool in self._pools:
            await pool.open(wait=False)
        for task in self.tasks:
            task.start()

    @property
    def _pools(self) -> list[Pool]:
        return [self.pool, self.tail_pool, *self.read_pools]

    async def _on_connect(self, conn: Connection) -> None:
        """Register this server on a new LISTEN connection; the pools must lead to the same log as it does."""
        await self._lead_to(conn, self.tail.hosts)
        await self.erasures.begin()
        await self.registry.register(conn)

    async def _lead_to(self, conn: Connection, hosts_of_conn: Hosts) -> None:
        """Let the pools lead to the log of a new connection to the primary. An old primary is refused."""
        here = await log_after(conn, self._newest_log, hosts_of_conn)
        for hosts in (hosts_of_conn, self.pool.hosts, self.tail_pool.hosts):
            hosts.prefer(conn.info)
        self.pool.log_identity = self.tail_pool.log_identity = self._newest_log = here

    async def _on_primary(self, conn: Connection) -> None:
        """Do the same on a new connection to the primary, for a server that reads from a standby."""
        assert self.link is not None
        await self._lead_to(conn, self.link.hosts)
        await self.registry.register(conn)

    async def _on_standby(self, conn: Connection) -> None:
        """Look for deletions at the standby that the tail reads: another may show them earlier than the events."""
        requests, beside = self.read_pools
        requests.log_identity = beside.log_identity = await copy_identity(conn)
        beside.conninfo = make_conninfo(
            self.settings.read_database_url or "", host=conn.info.host, hostaddr="", port=conn.info.port
        )
        await beside.drain()
        await self.erasures.begin()

    async def _rest(self) -> None:
        """Let go of the database, and return when somebody needs it."""
        log.info("nobody needs the database: all connections are closed until somebody does")
        self.authorizer.revoked(None, None)  # what is revoked from now on is not heard
        self.hub.begin(self.hub.position)  # nor what is erased, so no event stays in memory
        self.replay.forget()
        for pool in self._pools:
            pool.log_identity = None
            await pool.let_go()
        await self.demand.until_needed()
        log.info("the database is needed again")
        for pool in self._pools:
            await pool.come_back()

    async def end_streams(self, seconds: float) -> None:
        """End every stream, spread over ``seconds``, so that the clients do not all reconnect at the same moment."""
        self.draining = self.leaving = True
        streams = list(self.hub.streams)
        for ended, stream in enumerate(streams, 1):
            stream.end(EndReason.DRAIN)
            if ended < len(streams):
                await asyncio.sleep(seconds / len(streams))

    async def stop(self) -> None:
        """Publish what is waiting, then close the connections to the database."""
        async with AsyncExitStack() as last_first:  # a step that fails does not keep the others from being taken
            last_first.push_async_callback(self._close_pools)
            if self.link.connected.is_set() if self.link is not None else self.tail.listening.is_set():
                # Otherwise the row stays until it is swept: stopping does not wait for the database.
                last_first.push_async_callback(self.registry.unregister)
            last_first.push_async_callback(self.access.close)
            last_first.push_async_callback(self.followers.close)
            last_first.push_async_callback(self.authorizer.close)
            last_first.push_async_callback(end_all, self.tasks)
            last_first.push_async_callback(self.publisher.close)

    async def _close_pools(self) -> None:
        await asyncio.gather(*(pool.close(POOL_CLOSE_TIMEOUT_S) for pool in self._pools))

    def why_not_ready(self) -> str | None:
        """Return why this server cannot serve now, or None if it can. At rest it can: it comes back by itself."""
        if self.draining:
            return "the server is stopping"
        if not self.demand.is_away and not self.tail.listening.is_set():
            return self.tail.last_error
        if self.link is not None and self.link.is_left_behind:
            return f"the standby has replayed nothing for {self.link.stuck_s:.0f} s, and other servers have more"
        return next((task.failure for task in self.tasks if task.failure is not None), None)

    @property
    def is_quiet(self) -> bool:
        """Whether nobody has needed the database for some time. The tail still looks at it, unless it is at rest."""
        return self.demand.idle_s >= QUIET_AFTER_S


async def _nothing(_conn: Connection) -> None:
    """Do nothing: the registry is on the primary."""
