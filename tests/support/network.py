"""Machines on a network of the test's own: a network namespace each, with one cable to a router.

Nothing has a name on the machine that runs the test. A namespace lives as long as a process that waits for this one's
pipe, so nothing is left behind, even if the test is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000
ROUTER = "router"


class Network:
    """The machines, by name. Their addresses exist only inside."""

    def __init__(self, *names: str) -> None:
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._numbers = {name: number for number, name in enumerate(names, 1)}
        try:
            for name in (ROUTER, *names):
                self._holders[name] = self._hold()
            with self.at(ROUTER):
                Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            for name in names:
                self._plug_in(name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the namespaces. They end with the last process in them."""
        for holder in self._holders.values():
            holder.communicate()

    def address(self, name: str) -> str:
        """Return the address of a machine."""
        return f"10.77.{self._numbers[name]}.2"

    @contextlib.contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Be on a machine: what this thread opens and starts in the block is there."""
        with open("/proc/thread-self/ns/net") as here, open(f"/proc/{self._holders[name].pid}/ns/net") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def cut(self, source: str, target: str, *, both: bool = True) -> None:
        """Drop, from now on, every packet from one machine to another, and with ``both`` the other way, too.

        Nobody is told: no reset and no unreachable comes back, as with a cable that is pulled somewhere in between.
        """
        self._rules("add", source, target, both=both)

    def join(self, source: str, target: str, *, both: bool = True) -> None:
        """Undo a cut."""
        self._rules("del", source, target, both=both)

    def vanish(self, name: str) -> None:
        """Cut a machine from all others."""
        for way in ("from", "to"):
            self._ip(ROUTER, "rule", "add", way, self.address(name), "blackhole")

    def _rules(self, change: str, source: str, target: str, *, both: bool) -> None:
        ways = [(source, target), (target, source)][: 1 + both]
        for one, other in ways:
            self._ip(ROUTER, "rule", change, "from", self.address(one), "to", self.address(other), "blackhole")

    def _hold(self) -> subprocess.Popen[bytes]:
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout
        assert holder.stdout.read(1), "no namespace"
        return holder

    def _plug_in(self, name: str) -> None:
        number, pid = self._numbers[name], str(self._holders[name].pid)
        cable = f"to-{number}"
        self._ip(ROUTER, "link", "add", cable, "type", "veth", "peer", "name", "cable", "netns", pid)
        self._ip(ROUTER, "addr", "add", f"10.77.{number}.1/24", "dev", cable)
        self._ip(ROUTER, "link", "set", cable, "up")
        self._ip(name, "addr", "add", f"{self.address(name)}/24", "dev", "cable")
        for device in ("lo", "cable"):
            self._ip(name, "link", "set", device, "up")
        self._ip(name, "route", "add", "default", "via", f"10.77.{number}.1")

    def _ip(self, name: str, *words: str) -> None:
        with self.at(name):
            subprocess.run(["ip", *words], check=True, capture_output=True)


def _enter(namespace: int) -> None:
    # os.setns() comes with Python 3.12.
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def network(*names: str) -> Iterator[Network]:
    """Machines for a test, or skip it, with the reason."""
    for program in ("unshare", "ip"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; Debian's packages are util-linux and iproute2")
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces")
    try:
        made = Network(*names)
    except (OSError, AssertionError, subprocess.CalledProcessError) as error:
        reason = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else error
        pytest.skip(f"network namespaces cannot be made here: {reason}")
    try:
        yield made
    finally:
        made.close()
