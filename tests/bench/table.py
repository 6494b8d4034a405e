"""Results: rounds of numbers by name, their medians, the table that is printed and kept."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """Return a percentile of values that are sorted."""
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


class Rounds:
    """What was measured, by name, one number a round."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, value: float) -> None:
        """Keep the number of a round."""
        self.values[name].append(value)

    def median(self, name: str) -> float:
        """Return the median over the rounds."""
        return median(self.values[name])

    def ratio(self, above: str, below: str) -> float:
        """Return the median of the ratios round by round: what disturbs a round disturbs both."""
        pairs = zip(self.values[above], self.values[below], strict=False)
        return median(a / b if b else float("inf") for a, b in pairs)


@dataclass
class Row:
    """One line of a table: what, how much, and against what it is to be held."""

    what: str
    value: str
    target: str = ""
    held: bool | None = None


@dataclass
class Result:
    """What one benchmark found."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, object] = field(default_factory=dict)
    """Numbers for the plots."""

    def add(self, what: str, value: str, target: str = "", held: bool | None = None) -> None:
        """Add a line."""
        self.rows.append(Row(what, value, target, held))

    def text(self) -> str:
        """Return the table for a terminal, which is Markdown as well."""
        lines = [f"### {self.title}", "", "| what | measured | target | |", "|---|---|---|---|"]
        verdict = {True: "held", False: "**missed**", None: ""}
        lines += [f"| {row.what} | {row.value} | {row.target} | {verdict[row.held]} |" for row in self.rows]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def save(self, directory: Path) -> None:
        """Keep the numbers."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=1))
