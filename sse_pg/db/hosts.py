"""Connection strings that name several servers, of which one is the primary: host=a,b."""

from __future__ import annotations

import os
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

#: The parameters that have an element for each host, and the variables that stand in for them.
_LISTS = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT"}


class Hosts:
    """The hosts of a connection string, in the order in which they are tried.

    libpq's default takes the first host that answers, a standby too. Here it is the first that can be written to,
    unless ``target_session_attrs`` says otherwise. The host that was right last comes first: a host that is switched
    off takes the whole time limit of an attempt, for each connection again.
    """

    def __init__(self, url: str | None) -> None:
        """Take a connection string that libpq accepts."""
        info: dict[str, Any] = conninfo_to_dict(url or "")
        found = {name: str(info.get(name) or os.environ.get(variable) or "") for name, variable in _LISTS.items()}
        lists = {name: text.split(",") for name, text in found.items() if text}
        count = max(len(lists.get("host", ())), len(lists.get("hostaddr", ())))
        if len(lists.get("port", ())) == 1:
            lists["port"] *= count
        # Lists of different lengths are an error, which libpq reports.
        is_valid = count > 1 and all(len(elements) == count for elements in lists.values())
        self._each = (
            [dict(zip(lists, one, strict=True)) for one in zip(*lists.values(), strict=True)] if is_valid else []
        )
        attributes = info.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS")
        self._attributes = {} if attributes else {"target_session_attrs": "read-write"}

    @classmethod
    def as_given(cls) -> Hosts:
        """Leave the hosts to libpq, as for standbys: any of them will do."""
        hosts = cls("")
        hosts._each = []
        return hosts

    @property
    def count(self) -> int:
        """The number of hosts."""
        return max(1, len(self._each))

    @property
    def one_by_one(self) -> list[dict[str, Any]]:
        """For each host, what to pass to a connection besides the connection string, so that it leads only there.

        Empty if the connection string names one host.
        """
        return [{**one, "target_session_attrs": "any"} for one in self._each]

    @property
    def parameters(self) -> dict[str, Any]:
        """What to pass to a connection besides the connection string; nothing if that names one host."""
        if not self._each:
            return {}
        return {**{name: ",".join(one[name] for one in self._each) for name in self._each[0]}, **self._attributes}

    def prefer(self, info: psycopg.ConnectionInfo) -> None:
        """Try the host of this connection first from now on."""
        self._each.sort(key=lambda one: not _is(one, info))

    def avoid(self, info: psycopg.ConnectionInfo) -> None:
        """Try the host of this connection last from now on."""
        self._each.sort(key=lambda one: _is(one, info))


def _is(one: dict[str, str], info: psycopg.ConnectionInfo) -> bool:
    return info.host in (one.get("host"), one.get("hostaddr")) and str(info.port) == (one.get("port") or "5432")


def parameters(url: str | None) -> dict[str, Any]:
    """Return what to pass besides a connection string for a single connection, so that it leads to the primary."""
    return Hosts(url).parameters
