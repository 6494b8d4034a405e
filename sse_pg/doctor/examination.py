"""What the checks of one run of the doctor share."""

from __future__ import annotations

from dataclasses import dataclass

from sse_pg.config import Settings
from sse_pg.doctor.session import ReadOnlySession


@dataclass(frozen=True)
class Examination:
    """The one argument of every check."""

    session: ReadOnlySession
    settings: Settings
    old_s: float
    """Age in seconds from which an open transaction that has published counts as old."""
