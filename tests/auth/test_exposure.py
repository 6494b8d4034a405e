"""Where a server without tokens may listen, on the command line too."""

from __future__ import annotations

import pytest
from support.process import one_line, process, run
from support.tokens import SECRET

from sse_pg.auth import exposure
from sse_pg.config import Settings
from sse_pg.errors import SettingError


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1"])
def test_loopback_is_open_and_says_so(host: str) -> None:
    assert "open: no tokens" in str(exposure.check(Settings(host=host)))
    assert exposure.check(Settings(host=host, token_secret=SECRET)) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "2001:db8::1"])
def test_elsewhere_something_has_to_be_said(host: str) -> None:
    with pytest.raises(SettingError, match=r"SSE_PG_TOKEN_SECRET.*--open"):
        exposure.check(Settings(host=host))
    assert "everybody who can reach" in str(exposure.check(Settings(host=host, open=True)))
    assert exposure.check(Settings(host=host, open=True, token_jwks_url="https://id.example/keys")) is None


def test_serve_refuses_before_it_does_anything(empty_database_url: str) -> None:
    done = run("serve", "--host", "0.0.0.0", "--port", "0", DATABASE_URL=empty_database_url)
    assert "SSE_PG_TOKEN_SECRET" in one_line(done)
    assert done.stdout == ""


def test_serve_says_that_it_is_open(database_url: str) -> None:
    with process("serve", PORT="0", DATABASE_URL=database_url) as server:
        server.url()
        server.line("^open: no tokens are required; everybody on this machine")
        assert server.end() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_with_a_secret(database_url: str, workers: str) -> None:
    with process(
        "serve", PORT="0", DATABASE_URL=database_url, SSE_PG_TOKEN_SECRET=SECRET, SSE_PG_WORKERS=workers
    ) as server:
        url = server.url()
        made = run("token", "--user", "7", "--publish", "a", "--subscribe", "a,b", SSE_PG_TOKEN_SECRET=SECRET)
        with process("tail", "a", "--from", "0", "--url", url, SSE_PG_TOKEN=made.stdout.strip()) as tail:
            assert run("publish", "a", "1", DATABASE_URL=database_url).returncode == 0
            tail.line('"data":1')
        assert "401" in one_line(run("tail", "a", "--url", url))
        assert not any("open:" in line for line in server.out)
        assert server.end() == 0
        assert not any(SECRET in line or made.stdout.strip() in line for line in server.out + server.err)
