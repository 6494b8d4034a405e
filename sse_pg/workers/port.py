"""A port that several processes listen on, each with a socket of its own.

Linux spreads the connections over the sockets (SO_REUSEPORT); other systems may give one of them nearly all.
"""

from __future__ import annotations

import errno
import socket
from types import TracebackType
from typing import Any, Self

from sse_pg.errors import CannotListen

#: Connections that wait on each socket to be accepted.
BACKLOG = 1024
#: An address of a name that this machine does not have; another one of the same name may do.
_NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class SharedPort:
    """Holds an address with sockets that do not listen, so that the port stays ours whoever of us listens on it.

    Port 0 takes a free one. Raises CannotListen when the address cannot be had.
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
        """Return new sockets that listen, one for each address of the host."""
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
        """Give the port up."""
        for held in self._held:
            held.close()

    def _hold(self, host: str, port: int) -> None:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        missing: OSError | None = None
        for family, address in dict.fromkeys((each[0], each[4]) for each in found):
            place = (address[0], self._held[0].getsockname()[1] if self._held else port, *address[2:])
            try:
                if place[1]:
                    # Sharing must be asked for by all, but another bus that shares its port would let us in.
                    _bind(family, place, shared=False).close()
                self._held.append(_bind(family, place, shared=True))
            except OSError as error:
                if error.errno not in _NOT_HERE:
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
