"""A short torture of a published table, and proof that its check notices faults."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from torture.balances import Follower, Plan, Report, balances

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


def test_the_check_sees_an_event_whose_old_row_is_another() -> None:
    report = Report()
    follower = Follower(0, 1, "", [], report, exact=True)
    one, two, three = ({"id": 7, "amount": amount} for amount in (1, 2, 3))
    follower._apply("INSERT", {"table": "balances", "new": one})
    follower._apply("UPDATE", {"table": "balances", "old": one, "new": two})
    assert (report.surprises, follower.state) == (0, {7: two})
    follower._apply("UPDATE", {"table": "balances", "old": one, "new": three})
    assert (report.surprises, follower.state) == (1, {7: three})
    follower._apply("DELETE", {"table": "balances", "old": three})
    follower._apply("DELETE", {"table": "balances", "old": three})
    assert (report.surprises, follower.state) == (2, {})
