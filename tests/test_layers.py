"""The house: imports run in one direction, SQL stands in files, the core does no input or output."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from sse_pg.queries import statements

PACKAGE = Path(__file__).parent.parent / "sse_pg"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))

#: From the bottom up. A module imports from lines above its own; within a line only where a * makes a family.
#: A new module gets its place here.
LAYERS = [
    "answer version",
    "errors event finding identity logs metric openapi queries ranges",
    "cursor database migrate problem setting sse_parser",
    "config",
    "config_print",
    "embedded_*",
    "embedded",
    "connections limits",
    "client_*",
    "client fields frontier publisher store token_keys wire",
    "exposure meter publish_body ring stream tail_meter tail_reads token_jwks waiters",
    "look takeover",
    "check_*",
    "doctor",
    "authorizer hub tokens",
    "access followers maintenance presence pulse",
    "control",
    "bell",
    "tail",
    "replay",
    "bus",
    "cors readings",
    "api_*",
    "app",
    "__init__",  # the names that others import; it loads what is below when it is asked for
    "roll_call server shared_port",
    "worker",
    "worker_process",
    "worker_place",
    "workers",
    "cli_*",
    "cli",
    "__main__",
]
#: Statements are no part of the bus where they make the database that it lives in.
MAY_HOLD_SQL = {"embedded"}
SQL = re.compile(
    r"\b(SELECT\s|INSERT INTO\b|UPDATE\s+\S+\s+SET\b|DELETE FROM\b|TRUNCATE\s|COPY\s+\S+\s+(FROM|TO)\b|"
    r"(CREATE|ALTER|DROP)\s+(TABLE|DATABASE|SCHEMA|FUNCTION|TRIGGER|INDEX|ROLE)\b|GRANT\s|LISTEN\s+sse|NOTIFY\s+sse|"
    r"pg_notify|pg_advisory\w*|SET\s+LOCAL\b)"
)


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


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
    parts = {name.split(".")[1] for name in imports(module) if name.startswith("sse_pg.")}
    return parts & set(MODULES)


def layer(module: str) -> int:
    for place, names in enumerate(LAYERS):
        if module in names.split():
            return place
    families = [place for place, names in enumerate(LAYERS) if any(fnmatch(module, name) for name in names.split())]
    assert len(families) == 1, f"give sse_pg/{module}.py its place in LAYERS"
    return families[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module: str) -> None:
    for other in needs(module):
        family = "*" in LAYERS[layer(module)]
        assert layer(other) < layer(module) or (family and layer(other) == layer(module)), (
            f"{module} imports {other}, which stands above it"
        )


def test_no_cycles() -> None:
    left = {module: needs(module) for module in MODULES}
    while free := [module for module in left if not left[module] & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"these import each other: {sorted(left)}"


def test_every_layer_is_there() -> None:
    for name in " ".join(LAYERS).split():
        assert any(fnmatch(module, name) for module in MODULES), f"there is no {name}"


#: Modules that can be tried without anything around them.
CORE = ["ranges", "cursor", "frontier", "event", "wire", "ring", "meter", "metric", "tail_meter", "sse_parser"]


@pytest.mark.parametrize("module", CORE)
def test_the_core_does_no_input_or_output(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(module)}
    assert not roots & {"asyncio", "aiohttp", "psycopg", "psycopg_pool", "socket", "time", "os", "threading"}


def test_the_client_stands_alone() -> None:
    family = {module for module in MODULES if module.startswith("client")}
    assert len(family) > 1
    for module in family:
        assert needs(module) - family <= {"errors", "sse_parser", "version"}


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
