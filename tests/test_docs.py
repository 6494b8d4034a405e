"""The pages under docs/: every link leads somewhere, nothing names a machine, and what start.md says is done."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from cli_support import CHECKOUT, process
from pages import Page, Reader, all_pages, syntax_errors

PAGES = [Page(path) for path in all_pages()]
START = Page("docs/start.md")
#: Paths that pages may print: of an example account, of the system, of a container.
_OF_EVERY_MACHINE = ("/home/you/",)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that the user PostgreSQL runs as gets to."""
    made = Path(tempfile.mkdtemp(prefix="sse-pg-test-", dir="/tmp")).resolve()
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def broken(page: Page, link: str) -> str:
    """What is wrong with a link of a page; nothing, if it leads somewhere. Other sites are not asked."""
    parts = urlsplit(link)
    if parts.scheme:
        return "" if parts.scheme in ("https", "mailto") else f"{link}: not https"
    if parts.path.startswith("/"):
        return f"{link}: an absolute path"
    target = (CHECKOUT / page.path).parent / unquote(parts.path) if parts.path else CHECKOUT / page.path
    if not target.exists() or not target.resolve().is_relative_to(CHECKOUT):
        return f"{link}: there is no such file"
    if parts.fragment and parts.fragment not in Page(str(target.resolve().relative_to(CHECKOUT))).anchors:
        return f"{link}: there is no such heading"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_the_links_lead_somewhere(page: Page) -> None:
    assert [found for link in page.links if (found := broken(page, link))] == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    page = Page("docs/README.md")
    assert broken(page, "start.md#1-install-and-start") == ""
    assert "no such heading" in broken(page, "start.md#nowhere")
    assert "no such file" in broken(page, "nowhere.md")
    assert "no such file" in broken(page, "../../outside.md")
    assert "absolute" in broken(page, "/docs/start.md")
    assert "not https" in broken(page, "http://example.com/")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_no_page_names_a_machine(page: Page) -> None:
    named = re.findall(r"(?<![\w.~:/-])/(?:home|root|work|tmp|Users)/[^\s`'\"]*", page.text)
    assert [path for path in named if not path.startswith(_OF_EVERY_MACHINE)] == []


def test_the_index_has_every_page() -> None:
    index = Page("docs/README.md")
    linked = {((CHECKOUT / "docs") / link.partition("#")[0]).resolve() for link in index.links}
    pages = set((CHECKOUT / "docs").glob("*.md")) - {CHECKOUT / "docs" / "README.md"}
    assert sorted(str(path) for path in pages - linked) == []


@pytest.mark.parametrize(
    ("path", "block"),
    [(page.path, text) for page in PAGES for kind, text in page.blocks if kind == "sh"],
    ids=lambda value: value if value.endswith(".md") else "block",
)
def test_what_is_for_the_reader_s_machine_is_shell(path: str, block: str) -> None:
    assert syntax_errors(block) == "", path


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl on this machine")
def test_the_first_half_hour(home: Path) -> None:
    data = home / "data"
    with process("serve", "--port", "0", SSE_PG_DATA_DIR=str(data)) as server:
        assert len(Reader.of(server, data).follow(START, server)) == 3
        assert server.end() == 0


@pytest.mark.parametrize(
    ("path", "kind", "block"),
    [(page.path, kind, text) for page in PAGES for kind, text in page.blocks if kind in ("python", "js")],
    ids=lambda value: value if value.endswith((".md", "js", "python")) else "block",
)
def test_every_snippet_can_be_read_by_its_language(path: str, kind: str, block: str) -> None:
    if kind == "python":
        compile(block, path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        return
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    done = subprocess.run([node, "--check", "--input-type=module", "-"], input=block, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
