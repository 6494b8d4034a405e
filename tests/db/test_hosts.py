"""Connection strings with several hosts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from sse_pg.db.hosts import Hosts
from sse_pg.db.tail_session import is_older


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGPORT", "PGTARGETSESSIONATTRS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("url", [None, "", "host=a", "postgresql://a:1/d", "host=a,b port=1,2,3"])
def test_one_host_is_left_to_libpq(url: str | None) -> None:
    assert Hosts(url).parameters == {}
    assert Hosts(url).count == 1


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        ("postgresql://a:1,b:2/d", {"host": "a,b", "port": "1,2", "target_session_attrs": "read-write"}),
        ("host=a,b port=1", {"host": "a,b", "port": "1,1", "target_session_attrs": "read-write"}),
        ("host=a,b target_session_attrs=any", {"host": "a,b"}),
        (
            "host=a,b hostaddr=::1,::2",
            {"host": "a,b", "hostaddr": "::1,::2", "target_session_attrs": "read-write"},
        ),
    ],
)
def test_several_hosts_are_tried_for_the_primary(url: str, parameters: dict[str, str]) -> None:
    assert Hosts(url).parameters == parameters


def test_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "a,b")
    assert Hosts("dbname=d").parameters["target_session_attrs"] == "read-write"
    assert Hosts("host=c").parameters == {}
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "primary")
    assert Hosts(None).parameters == {"host": "a,b"}


def test_the_host_that_was_right_comes_first() -> None:
    hosts = Hosts("host=a,b,c port=1,1,2")
    info: Any = SimpleNamespace(host="c", port=2)
    hosts.prefer(info)
    assert conninfo_to_dict("", **hosts.parameters)["host"] == "c,a,b"
    assert hosts.parameters["port"] == "2,1,1"
    hosts.avoid(info)
    assert hosts.parameters["host"] == "a,b,c"
    hosts.prefer(SimpleNamespace(host="a", port=2))  # type: ignore[arg-type]
    assert hosts.parameters["host"] == "a,b,c"


@pytest.mark.parametrize(
    ("here", "known", "older"),
    [
        ("1/00000001/5/6", "", False),
        ("1/00000001/5/6", "1/00000002/5/6", True),
        ("1/00000002/5/6", "1/00000001/5/6", False),
        ("1/0000000A/5/6", "1/0000000B/5/6", True),
        ("2/00000001/5/6", "1/00000002/5/6", False),
        ("1/00000001/5/7", "1/00000002/5/6", False),
        ("//5/6", "//5/6", False),
    ],
)
def test_which_log_is_older(here: str, known: str, older: bool) -> None:
    assert is_older(here, known) is older
