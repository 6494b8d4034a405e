"""The files that list the settings: ``python -m support.config_print env|markdown``; a test compares them."""

from __future__ import annotations

import sys
from dataclasses import fields

from sse_pg.config import Settings
from sse_pg.setting import bounds, shown


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
