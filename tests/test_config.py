"""The settings: what is read, what is refused and how it is said, and the files printed from them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from support.config_print import print_env, print_markdown
from support.process import CHECKOUT

from sse_pg.config import Settings, advice, has_database, require_no_lost_secret, unknown
from sse_pg.errors import SettingError

SPECS = {spec.metadata["env"]: spec for spec in fields(Settings)}
NUMBERS = {env: spec for env, spec in SPECS.items() if spec.metadata["low"] is not None}
CHOICES = {env: spec for env, spec in SPECS.items() if spec.metadata["choices"]}


def refused(env: str, value: str) -> str:
    with pytest.raises(SettingError) as caught:
        Settings.from_env({env: value})
    message = str(caught.value)
    assert "\n" not in message
    assert env in message
    assert repr(value) in message
    return message


def shown(number: float) -> str:
    """Return how a bound may be written: exactly, with or without separators, or in short."""
    return "(?:" + "|".join(map(re.escape, (f"{number:g}", f"{number:,}", str(number)))) + ")"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SSE_PG_POOLSIZE", "SSE_PG_POOL_SIZE"),
        ("SSE_PG_KEEP_EVENT", "SSE_PG_KEEP_EVENTS"),
        ("SSE_PG_PORT", "PORT"),
        ("SSE_PG_DATABASE_URL", "DATABASE_URL"),
        ("SSE_PG_SECRET", ""),
        ("SSE_PG_COLOUR", ""),
        ("SSE_PG_SERVICE", ""),
        ("SSE_PG_", ""),
    ],
)
def test_a_name_that_is_no_setting_is_reported(name: str, meant: str) -> None:
    assert unknown({name: "5"}) == {name: meant}
    (line,) = advice({name: "5"})
    assert line.startswith(f"{name} is not a setting and has no effect; ")
    assert line.endswith(f"did you mean {meant}?" if meant else "docs/settings.md lists the settings")


def test_other_names_are_not_reported() -> None:
    services = {
        "SSE_PG_PORT": "tcp://10.0.0.1:8080",
        "SSE_PG_SERVICE_HOST": "10.0.0.1",
        "SSE_PG_SERVICE_PORT": "8080",
        "SSE_PG_SERVICE_PORT_HTTP": "8080",
        "SSE_PG_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "SSE_PG_PORT_8080_TCP_PROTO": "tcp",
        "SSE_PG_PORT_8080_TCP_ADDR": "10.0.0.1",
        "SSE_PG_PORT_8080_TCP_PORT": "8080",
        "SSE_PG_TOKENS_SERVICE_HOST": "10.0.0.2",
    }
    assert unknown({**services, **dict.fromkeys(SPECS, "1"), "SSEPG_POOL_SIZE": "1"}) == {}


SECRET = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "name",
    [
        "SSE_PG_SECRET",
        "SSE_PG_JWT_SECRET",
        "SSE_PG_TOKEN_SECRETS",
        "SSE_PG_JWKS_URL",
        "SSE_PG_PUBLIC_KEY",
        "SSE_PG_KEY",
    ],
)
def test_a_secret_under_a_wrong_name(name: str) -> None:
    env = {name: SECRET}
    with pytest.raises(SettingError, match=f"^{name} is not a setting.*SSE_PG_TOKEN_") as caught:
        require_no_lost_secret(Settings(), env)
    assert SECRET not in str(caught.value)
    require_no_lost_secret(Settings(token_secret=SECRET), env)
    require_no_lost_secret(Settings(open=True), env)


@pytest.mark.parametrize("name", ["SSE_PG_KEEP_KEY_HOURS", "SSE_PG_COLOUR", "SSE_PG_TOKEN", "SSE_PG_MONKEYS"])
def test_a_name_that_is_not_like_a_secret(name: str) -> None:
    require_no_lost_secret(Settings(), {name: SECRET})


def test_defaults_are_what_the_class_says() -> None:
    assert Settings.from_env({}) == Settings()


def test_defaults_are_allowed() -> None:
    """Each default, read from its own line of .env.example, comes out the same."""
    env = dict(re.findall(r"^#([A-Z_]+)=(.+)$", print_env(), re.MULTILINE))
    assert len(env) > 20
    assert Settings.from_env(env) == Settings()


@pytest.mark.parametrize("env", NUMBERS)
def test_bounds(env: str) -> None:
    meta = NUMBERS[env].metadata
    low, high = meta["low"], meta["high"]
    scale = 1000 if meta["unit"] == "ms" else 1
    for number in (low, high):
        read = getattr(Settings.from_env({env: str(number)}), NUMBERS[env].name)
        assert read == pytest.approx(number / scale)
    for value in (str(low - 1), str(high + 1), "nan", "inf", "-inf", "x", "1,5", "5s", "٫", "1e999"):
        message = refused(env, value)
        assert re.search(f"{shown(low)} to {shown(high)}", message)
        assert message.endswith(meta["unit"])


@pytest.mark.parametrize("env", [env for env, spec in NUMBERS.items() if isinstance(spec.default, int)])
def test_whole_numbers(env: str) -> None:
    assert "whole number" in refused(env, "1.5")


@pytest.mark.parametrize("env", CHOICES)
def test_choices(env: str) -> None:
    choices = CHOICES[env].metadata["choices"]
    for choice in choices:
        read = getattr(Settings.from_env({env: choice}), CHOICES[env].name)
        assert (str(read).lower() if isinstance(read, bool) else read) == choice
    for value in ("x", choices[0].upper(), f" {choices[0]}"):
        message = refused(env, value)
        assert all(choice in message for choice in choices)


def test_every_setting_is_read_from_its_variable() -> None:
    given = {
        "HOST": "0.0.0.0",
        "PORT": "1",
        "DATABASE_URL": "postgresql://h/d",
        "SSE_PG_DATA_DIR": "/data",
        "SSE_PG_ORDER_WAIT_MS": "7.5",
        "SSE_PG_BELL": "always",
        "SSE_PG_RETRY_MS": "250",
    }
    read = Settings.from_env(given)
    assert (read.host, read.port, read.database_url, read.data_dir) == ("0.0.0.0", 1, "postgresql://h/d", Path("/data"))
    assert (read.order_wait, read.bell, read.retry) == (0.0075, "always", 0.25)
    assert read.listen_url == "postgresql://h/d"
    assert Settings(listen_database_url="x", database_url="y").listen_url == "x"


def test_a_server_that_polls_reads_from_no_standby() -> None:
    polls, standby = "SSE_PG_LISTEN_DATABASE_URL", "SSE_PG_READ_DATABASE_URL"
    with pytest.raises(SettingError, match=f"{polls}=none and {standby} do not work together"):
        Settings.from_env({polls: "none", standby: "postgresql://standby/d"})
    assert Settings.from_env({polls: "postgresql://primary/d", standby: "postgresql://standby/d"}).polls is False


def test_names_are_unique_and_contracted() -> None:
    assert len(SPECS) == len(fields(Settings))
    assert all(env in ("HOST", "PORT", "DATABASE_URL") or env.startswith("SSE_PG_") for env in SPECS)


def test_flags_win_and_are_checked() -> None:
    assert Settings.from_env({"PORT": "1"}, port=2).port == 2
    assert Settings.from_env({"PORT": "1"}, port=None).port == 1
    with pytest.raises(SettingError, match="PORT='70000'"):
        Settings.from_env({}, port=70000)


def test_an_empty_variable_is_none() -> None:
    assert Settings.from_env({"PORT": "", "DATABASE_URL": ""}) == Settings()


@pytest.mark.parametrize("name", ["PGHOST", "PGSERVICE", "PGDATABASE"])
def test_libpq_names_a_database(name: str) -> None:
    assert has_database(Settings(), {name: "x"})
    assert not has_database(Settings(), {name: "", "PGUSER": "x"})
    assert has_database(Settings(database_url="x"), {})


@pytest.mark.parametrize(("what", "file"), [("env", ".env.example"), ("markdown", "docs/settings.md")])
def test_files_are_printed_from_the_settings(what: str, file: str) -> None:
    """Print them again with: python -m support.config_print env (or markdown)."""
    done = subprocess.run(
        [sys.executable, "-m", "support.config_print", what],
        cwd=CHECKOUT / "tests",
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    assert done.stdout == (CHECKOUT / file).read_text(encoding="utf-8")
    assert done.stdout == (print_env() if what == "env" else print_markdown())


@pytest.mark.parametrize("env", SPECS)
def test_both_files_name_each_setting(env: str) -> None:
    meta = SPECS[env].metadata
    assert f"\n#{env}=" in print_env()
    row = next(line for line in print_markdown().splitlines() if line.startswith(f"| `{env}` |"))
    assert meta["help"] in row
    assert row.count("|") == 6


def test_only_one_variable_of_the_tests_is_not_reported() -> None:
    assert list(unknown({"SSE_PG_TEST_POSTGRES": "/bin", "SSE_PG_TEST_SECRET": "x"})) == ["SSE_PG_TEST_SECRET"]
