"""The event loop of a server: what comes from streams is served last, so that a crowd that leaves holds nobody up."""

from __future__ import annotations

import asyncio
import select
import selectors
from collections import ChainMap
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

#: Events of streams in one turn of the event loop: nearly always a client that has left, some 30 µs each.
MAX_STREAM_EVENTS = 64


class ServerSelector(selectors.BaseSelector):
    """Two selectors in one: that of the streams is asked for a few events at a time, the other for all.

    Both are epoll. The kernel lists the events in the order in which they came, so without this a request waits until
    the ends of ten thousand streams are dealt with, all in one turn of the event loop.
    """

    def __init__(self) -> None:
        self._front = selectors.EpollSelector()
        self._streams = select.epoll()
        self._stream_keys: dict[int, selectors.SelectorKey] = {}
        self._map = ChainMap[Any, selectors.SelectorKey](self._stream_keys, self._front.get_map())  # type: ignore[arg-type]
        self._front.register(self._streams.fileno(), selectors.EVENT_READ)

    def serve_last(self, fd: int) -> None:
        """Serve a connection after all that are not streams."""
        if fd in self._front.get_map():
            key = self._stream_keys[fd] = self._front.unregister(fd)
            self._streams.register(fd, _mask(key.events))

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Wait for events, not as a stream."""
        return self._front.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Wait for nothing."""
        key = self._stream_keys.pop(_fd(fileobj), None)
        if key is None:
            return self._front.unregister(fileobj)
        self._streams.unregister(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Wait for other events."""
        key = self._stream_keys.get(_fd(fileobj))
        if key is None:
            return self._front.modify(fileobj, events, data)
        if events != key.events:
            self._streams.modify(key.fd, _mask(events))
        key = self._stream_keys[key.fd] = key._replace(events=events, data=data)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait until there are events; return them."""
        ready = self._front.select(timeout)
        streams = self._streams.fileno()
        if all(key.fd != streams for key, _ in ready):
            return ready
        ready = [each for each in ready if each[0].fd != streams]
        for fd, event in self._streams.poll(0, MAX_STREAM_EVENTS):
            key = self._stream_keys[fd]
            ready.append((key, _events(event) & key.events))
        return ready

    def close(self) -> None:
        """Close both."""
        self._streams.close()
        self._front.close()
        self._stream_keys.clear()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return what is waited for."""
        return self._map


class ServerLoop(asyncio.SelectorEventLoop):
    """The event loop of a server."""

    def __init__(self) -> None:
        self._server_selector = ServerSelector()
        super().__init__(self._server_selector)

    def serve_last(self, fd: int) -> None:
        """Serve a connection after all that are not streams, because it is a stream from now on."""
        self._server_selector.serve_last(fd)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a server in an event loop of its own. On systems without epoll it is the usual one."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = ServerLoop if hasattr(select, "epoll") else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def _fd(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def _mask(events: int) -> int:
    return (select.EPOLLIN if events & selectors.EVENT_READ else 0) | (
        select.EPOLLOUT if events & selectors.EVENT_WRITE else 0
    )


def _events(event: int) -> int:
    """Return what an event of epoll means. An error or a hang-up is one for readers as well as for writers."""
    return (selectors.EVENT_WRITE if event & ~select.EPOLLIN else 0) | (
        selectors.EVENT_READ if event & ~select.EPOLLOUT else 0
    )
