"""A port that several processes listen on, each with a socket of its own.

Linux spreads the connections over the sockets (SO_REUSEPORT); other systems may give one of them nearly all.
"""

from __future__ import annotations

import errno
import socket
from types import TracebackType
from typing import Any, Self

from sse_pg.errors import CannotListen
from sse_pg.http.connections import BACKLOG

#: Errors of an address that this machine does not have. Another address of the same host name may work.
_NO_SUCH_ADDRESS = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class SharedPort:
    """Reserves an address with sockets that do not listen, so that the port stays ours while workers come and go.

    Port 0 picks a free port. Raises CannotListen if the address cannot be used.
    """

    def __init__(self, host: str, port: int) -> None:
        self._held: list[socket.socket] = []
        try:
            self._hold(host, port)
        except OSError as error:
            self.close()
            raise CannotListen(host, port, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def listen(self) -> list[socket.socket]:
        """Return new listening sockets, one for each address of the host."""
        made: list[socket.socket] = []
        try:
            for held in self._held:
                made.append(_bind(held.family, held.getsockname(), shared=True))
                made[-1].listen(BACKLOG)
        except OSError:
            for each in made:
                each.close()
            raise
        return made

    def close(self) -> None:
        """Release the port."""
        for held in self._held:
            held.close()

    def _hold(self, host: str, port: int) -> None:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        missing: OSError | None = None
        for family, address in dict.fromkeys((each[0], each[4]) for each in found):
            place = (address[0], self._held[0].getsockname()[1] if self._held else port, *address[2:])
            try:
                if place[1]:
                    # Another bus that shares its port would let us share it too, so try to have it alone first.
                    _bind(family, place, shared=False).close()
                self._held.append(_bind(family, place, shared=True))
            except OSError as error:
                if error.errno not in _NO_SUCH_ADDRESS:
                    raise
                missing = error
        if missing is not None and not self._held:
            raise missing


def _bind(family: int, address: Any, *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made
