"""The files that list the settings: ``python -m support.config_print env|markdown``; a test compares them."""

from __future__ import annotations

import sys
from dataclasses import fields

from sse_pg.config import Settings
from sse_pg.setting import bounds, shown

UNKNOWN = """\
A variable whose name begins with `SSE_PG_` and that is not in this table has no effect. Every command says so at the
start: `serve` in its log, `doctor` as a finding, the others on standard error. If its name is like that of a secret,
such as `SSE_PG_SECRET`, and nothing else makes the server require tokens, `serve` does not start: the server would be
open although tokens seem to be meant. `SSE_PG_OPEN=true` starts it. Variables that Kubernetes sets for a service with
the name sse-pg are not reported."""


def print_env() -> str:
    """Return the text of ``.env.example``."""
    lines = ["# Settings of sse-pg. Each line shows the default; remove the # to change it.", ""]
    for spec in fields(Settings):
        meta = spec.metadata
        unit = f" [{meta['unit']}]" if meta["unit"] else ""
        lines += [f"# {meta['help']}{unit}", f"#{meta['env']}={shown(meta, spec.default)}", ""]
    return "\n".join(lines)


def print_markdown() -> str:
    """Return the text of ``docs/settings.md``."""
    lines = [
        "# Settings",
        "",
        "All settings are environment variables. The flags that `sse-pg serve --help` lists take precedence over them.",
        "",
        UNKNOWN,
        "",
        "| variable | default | unit | allowed | meaning |",
        "|---|---|---|---|---|",
    ]
    for spec in fields(Settings):
        meta = spec.metadata
        allowed = ", ".join(meta["choices"]) or bounds(meta)
        default = shown(meta, spec.default)
        lines.append(
            f"| `{meta['env']}` | {f'`{default}`' if default else ''} | {meta['unit']} | {allowed} | {meta['help']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(print_markdown() if "markdown" in sys.argv[1:] else print_env())
