"""A short torture of a published table, and proof that its check notices faults."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from torture.balances import Plan, balances

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("torture"), pytest.mark.oldest]

PROGRAMS = os.environ.get("SSE_PG_TEST_POSTGRES")


@pytest.mark.parametrize("nested", [False, True])
def test_readers_are_equal_to_the_table(nested: bool) -> None:
    plan = Plan(random.randrange(10**6), seconds=8, fault_pause=1.0, nested=nested, postgres_bin=PROGRAMS)
    report = asyncio.run(balances(plan))
    assert report.faults == 0, (plan, report)
    assert report.snapshots >= plan.readers
    assert min(report.kinds.values()) > 100


def test_the_check_sees_events_that_are_not_published() -> None:
    sabotage = "ALTER TABLE balances DISABLE TRIGGER sse_pg_delete"
    plan = Plan(1, seconds=4, fault_pause=1000, catch_up=2, sabotage=sabotage, postgres_bin=PROGRAMS)
    report = asyncio.run(balances(plan))
    assert report.different > 0  # a surprise comes only if a deleted row is inserted again in time
