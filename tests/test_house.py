"""The house: who may import whom, SQL stands in files, the core does no input or output."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sse_pg.db.queries import statements

PACKAGE = Path(__file__).parent.parent / "sse_pg"
#: Every module, by its path below the package without ``.py``: ``tail`` of ``delivery`` is ``delivery/tail``.
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
#: What a room imports of the others; docs/architecture.md says what each is for. A room is a folder, or a file beside
#: the folders. Everybody may import from his own room.
MAY_IMPORT = {
    "version": "",
    "logs": "",
    "either": "",
    "heap": "",
    "watched_task": "",
    "errors": "",
    "setting": "errors",
    "config": "errors setting",
    "core": "errors",
    "client": "errors version db",  # db for consume() alone, which imports it when it connects
    "embedded": "errors version",
    "db": "errors version config core",
    "delivery": "errors core db",
    "auth": "errors config core db delivery",
    "http": "errors config core db delivery auth",
    "bus": "config watched_task db delivery auth http",
    "doctor": "errors version config core db auth client",
    "api": "errors version logs core db delivery auth http bus",
    "app": "config http bus api",
    "server": "errors config either heap http bus app",
    "workers": "errors logs config either core db http api app server",
    "testing": "config db http client app server embedded",
    "cli": "*",
    "__init__": "version config app",
    "__main__": "cli",
}
#: Statements are no part of the bus where they make the database that it lives in.
MAY_HOLD_SQL = {"embedded/postgres"}
SQL = re.compile(
    r"\b(SELECT\s|INSERT INTO\b|UPDATE\s+\S+\s+SET\b|DELETE FROM\b|TRUNCATE\s|COPY\s+\S+\s+(FROM|TO)\b|"
    r"(CREATE|ALTER|DROP)\s+(TABLE|DATABASE|SCHEMA|FUNCTION|TRIGGER|INDEX|ROLE)\b|GRANT\s|LISTEN\s+sse|NOTIFY\s+sse|"
    r"pg_notify|pg_advisory\w*|SET\s+LOCAL\b)"
)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def room(module: str) -> str:
    return module.partition("/")[0]


def imports(module: str) -> set[str]:
    """Return the full names of what a module imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def needs(module: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    paths = {name.removeprefix("sse_pg.").replace(".", "/") for name in imports(module) if name.startswith("sse_pg.")}
    return {path if path in MODULES else f"{path}/__init__" for path in paths} & set(MODULES)


def test_every_room_is_in_the_table() -> None:
    assert {room(module) for module in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_in_the_table(module: str) -> None:
    here = room(module)
    allowed = MAY_IMPORT[here]
    if allowed != "*":
        assert {room(other) for other in needs(module)} - {here} <= set(allowed.split())


def test_no_circles() -> None:
    left = {module: needs(module) for module in MODULES}
    while free := [module for module in left if not left[module] & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"these import each other: {sorted(left)}"


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) == "core"])
def test_the_core_is_pure(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(module)}
    assert not roots & {"asyncio", "aiohttp", "psycopg", "psycopg_pool", "socket", "time", "os", "threading"}


@pytest.mark.parametrize(
    "module", [module for module in MODULES if room(module) in {"core", "db", "delivery", "embedded"}]
)
def test_http_stays_above(module: str) -> None:
    assert "aiohttp" not in {name.split(".")[0] for name in imports(module)}


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) not in {"db", "doctor"}])
def test_statements_are_asked_for_in_two_rooms(module: str) -> None:
    assert not {name for name in imports(module) if name.startswith("sse_pg.db.queries")}


@pytest.mark.parametrize(
    "package", sorted({path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*/__init__.py")})
)
def test_a_room_has_a_docstring_and_no_code(package: str) -> None:
    body = tree(f"{package}/__init__").body
    assert ast.get_docstring(tree(f"{package}/__init__"))
    assert len(body) == 1 or package in {"client", "embedded"}


def texts(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the text constants of a module, parts of f-strings included, without the docstrings.

    A string that stands as a statement of its own is a docstring of what is above it.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if isinstance(child, ast.Constant) and isinstance(child.value, str | bytes):
            text = child.value if isinstance(child.value, str) else child.value.decode("latin-1")
            yield child.lineno, text
        yield from texts(child)


@pytest.mark.parametrize("module", [module for module in MODULES if module not in MAY_HOLD_SQL])
def test_no_sql_in_python(module: str) -> None:
    for line, text in texts(tree(module)):
        assert not SQL.search(text), f"sse_pg/{module}.py:{line} holds SQL; sql/queries/ is its place: {text!r}"


def test_sql_is_recognised() -> None:
    source = '"""SELECT in a docstring"""\nx = "SELECT 1"\ny = f"DELETE FROM {x}"\nz = b"LISTEN sse_pg"\n'
    assert [line for line, text in texts(ast.parse(source)) if SQL.search(text)] == [2, 3, 4]


def test_every_query_is_used_and_exists() -> None:
    used = {text for module in MODULES for _, text in texts(tree(module))}
    unused = statements().keys() - used
    assert not unused, f"nobody asks for {sorted(unused)}"
    asked = {
        node.args[0].value
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "query"
        if node.args and isinstance(node.args[0], ast.Constant)
    }
    assert len(asked) > 10
    assert asked <= statements().keys(), f"there is no {sorted(asked - statements().keys())}"
