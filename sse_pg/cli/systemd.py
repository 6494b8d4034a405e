"""What ``sse-pg serve`` says to systemd: that it listens (``Type=notify``)."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send a state such as ``READY=1`` to the service manager, if one waits for it. Raises OSError if it cannot.

    The protocol is that of sd_notify(3): one datagram to the socket that NOTIFY_SOCKET names. An ``@`` stands for a
    name that is not in the file system.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        address = "\0" + path[1:] if path.startswith("@") else path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
