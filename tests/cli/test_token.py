"""``sse-pg token`` as a process: the token it prints, and what it refuses."""

from __future__ import annotations

import jwt
import pytest
from support.process import one_line, run
from support.tokens import SECRET


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
def test_token_with_an_invalid_ttl(ttl: str) -> None:
    one_line(run("token", "--user", "7", "--ttl", ttl, SSE_PG_TOKEN_SECRET=SECRET), 2)


@pytest.mark.parametrize("option", ["--publish", "--subscribe"])
def test_token_for_an_invalid_channel(option: str) -> None:
    line = one_line(run("token", "--user", "7", option, "or ders.*", SSE_PG_TOKEN_SECRET=SECRET), 2)
    assert "'or ders.*'" in line
    assert "white space" in line


def test_token_without_a_secret() -> None:
    assert "SSE_PG_TOKEN_SECRET" in one_line(run("token", "--user", "7"))
    assert "hush" not in one_line(run("token", "--user", "7", SSE_PG_TOKEN_SECRET="hush"))
    for words in (("--user", "a\nb"), ("--user", "\udcff"), ("--user", "7", "--act-for", "\udcff")):
        one_line(run("token", *words, SSE_PG_TOKEN_SECRET=SECRET), 2)
