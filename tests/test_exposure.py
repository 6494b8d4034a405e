"""Where a server without tokens may listen, on the command line too."""

from __future__ import annotations

import jwt
import pytest
from access_support import SECRET
from cli_support import one_line, process, run

from sse_pg import exposure
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
    assert "whoever reaches" in str(exposure.check(Settings(host=host, open=True)))
    assert exposure.check(Settings(host=host, open=True, token_jwks_url="https://id.example/keys")) is None


def test_serve_refuses_before_it_does_anything(empty_database_url: str) -> None:
    done = run("serve", "--host", "0.0.0.0", "--port", "0", DATABASE_URL=empty_database_url)
    assert "SSE_PG_TOKEN_SECRET" in one_line(done)
    assert done.stdout == ""


def test_serve_says_that_it_is_open(database_url: str) -> None:
    with process("serve", PORT="0", DATABASE_URL=database_url) as server:
        server.url()
        server.line("^open: no tokens are asked for; whoever is on this machine")
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


def test_token_prints_a_token_and_nothing_else() -> None:
    words = ("--publish", "orders.*", "--publish", "news", "--subscribe", "a, b", "--act-for", "g-*", "--observe")
    done = run("token", "--user", "7", *words, "--ttl", "15m", SSE_PG_TOKEN_SECRET=SECRET, SSE_PG_TOKEN_AUDIENCE="bus")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    claims = jwt.decode(done.stdout.strip(), SECRET, algorithms=["HS256"], audience="bus")
    assert claims["exp"] - claims["iat"] == 900
    assert (claims["sub"], claims["sse_pg"]) == (
        "7",
        {"publish": ["orders.*", "news"], "subscribe": ["a", "b"], "actFor": ["g-*"], "observe": True},
    )


@pytest.mark.parametrize("ttl", ["0", "x", "-1", "1w", "1.5h", "99999999999"])
def test_token_with_a_time_that_is_none(ttl: str) -> None:
    one_line(run("token", "--user", "7", "--ttl", ttl, SSE_PG_TOKEN_SECRET=SECRET), 2)


@pytest.mark.parametrize("option", ["--publish", "--subscribe"])
def test_token_for_a_channel_that_cannot_be(option: str) -> None:
    line = one_line(run("token", "--user", "7", option, "or ders.*", SSE_PG_TOKEN_SECRET=SECRET), 2)
    assert "'or ders.*'" in line
    assert "white space" in line


def test_token_without_a_secret() -> None:
    assert "SSE_PG_TOKEN_SECRET" in one_line(run("token", "--user", "7"))
    assert "hush" not in one_line(run("token", "--user", "7", SSE_PG_TOKEN_SECRET="hush"))
    one_line(run("token", "--user", "a\nb", SSE_PG_TOKEN_SECRET=SECRET), 2)
