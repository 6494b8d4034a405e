"""A copy of the programs, for a system user that cannot reach the ones root has."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from sse_pg.embedded.account import Account
from sse_pg.embedded.binaries import Binaries
from sse_pg.embedded.program import version_of
from sse_pg.errors import EmbeddedError


def runnable(binaries: Binaries, account: Account, data_dir: Path) -> Binaries:
    """Return binaries that the user can run: these, or a copy of them in the data directory."""
    if account.output([str(binaries.bin / "initdb"), "--version"]):
        return binaries
    tree = binaries.bin.parent
    if not account.drop or not (tree / "share").is_dir():
        raise EmbeddedError(f"{binaries.bin / 'initdb'} does not run; install PostgreSQL again")
    copy = data_dir / f"postgres-binaries-{version_of(binaries.bin / 'postgres')}"
    bin_ = copy / tree.parent.name / tree.name / "bin"
    if not _same(binaries.bin / "postgres", bin_ / "postgres"):
        _copy_binaries(tree, copy)
    if not account.output([str(bin_ / "initdb"), "--version"]):
        raise EmbeddedError(f"{account.name} cannot run {bin_ / 'initdb'}; give another --data-dir")
    return Binaries(bin_, binaries.major, binaries.origin)


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        a, b = one.stat(), other.stat()
        return (a.st_size, int(a.st_mtime)) == (b.st_size, int(b.st_mtime))
    return False


def _copy_binaries(tree: Path, copy: Path) -> None:
    """Copy an installation; all of it is there under its name, or nothing."""
    new = Path(tempfile.mkdtemp(prefix=copy.name + ".new-", dir=copy.parent))
    package = new / tree.parent.name
    for part in ("bin", "lib", "lib64", "share"):
        if (tree / part).is_dir():
            shutil.copytree(tree / part, package / tree.name / part, symlinks=True)
    # A wheel's libraries lie beside its package (Linux) or in it (macOS); programs find them relatively.
    for libraries in (tree.parent.with_name(tree.parent.name + ".libs"), tree.parent / ".dylibs"):
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.relative_to(tree.parent.parent), symlinks=True)
    for place in (new, *new.rglob("*")):
        if not place.is_symlink():
            place.chmod(0o755 if place.stat().st_mode & 0o100 else 0o644)
    shutil.rmtree(copy, ignore_errors=True)
    new.rename(copy)
