"""Install the clients once per list of versions, outside the checkout."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NODE = (20, 18)
"""The oldest Node.js that every client of package.json accepts."""
COMMAND_TIMEOUT_S = 100


@cache
def node() -> tuple[str, Path]:
    """Return the program and the node_modules directory; skip the test where either is not to be had."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        pytest.skip("node and npm are not installed")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(map(int, said.removeprefix("v").split(".")[:2])) < NODE:
        pytest.skip(f"the clients need Node.js {NODE[0]}.{NODE[1]}, this is {said}")

    def fill(directory: Path) -> None:
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(HERE / name, directory)
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=20000"]
        _run([npm, "ci", *options], directory)

    return program, _installed("npm", ("package.json", "package-lock.json"), said, fill) / "node_modules"


@cache
def python() -> Path:
    """Return the interpreter that has the clients of requirements.txt; skip the test where it is not to be had."""

    def fill(directory: Path) -> None:
        venv.create(directory / "venv", with_pip=True)
        pip = [str(directory / "venv/bin/python"), "-m", "pip", "--retries", "1", "--disable-pip-version-check"]
        _run([*pip, "install", "--quiet", "--requirement", str(HERE / "requirements.txt")], directory)

    return _installed("python", ("requirements.txt",), sys.executable + sys.version, fill) / "venv/bin/python"


def _installed(kind: str, lists: tuple[str, ...], platform: str, fill: Callable[[Path], None]) -> Path:
    """Return the directory for these lists of versions; the first test to need it fills it, the others wait."""
    digest = hashlib.sha256(platform.encode())
    for name in lists:
        digest.update((HERE / name).read_bytes())
    cache_directory = Path(tempfile.gettempdir()) / f"sse-pg-clients-{os.getuid()}"
    cache_directory.mkdir(mode=0o700, exist_ok=True)
    if cache_directory.stat().st_uid != os.getuid():
        pytest.fail(f"{cache_directory} belongs to somebody else")
    target = cache_directory / f"{kind}-{digest.hexdigest()[:16]}"
    with (cache_directory / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "complete").exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            try:
                fill(target)
            except (subprocess.SubprocessError, OSError) as error:
                pytest.skip(f"the clients cannot be installed: {_why(error)}")
            (target / "complete").touch()
    return target


def _run(command: list[str], directory: Path) -> None:
    subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True, timeout=COMMAND_TIMEOUT_S)


def _why(error: Exception) -> str:
    said = getattr(error, "stderr", None) or str(error)
    return (said if isinstance(said, str) else said.decode(errors="replace")).strip()[-500:]
