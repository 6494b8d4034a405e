"""A short failover under load, and proof that its checker notices faults."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from torture.failover import FailoverPlan, fail_over

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("torture"), pytest.mark.oldest]

PROGRAMS = os.environ.get("SSE_PG_TEST_POSTGRES")


@pytest.mark.parametrize("synchronous", [True, False])
def test_the_streams_outlive_a_failover(synchronous: bool) -> None:
    """One server reads from the primary, and one from the standby that is promoted."""
    seed = random.randrange(10**6)
    plan = FailoverPlan(seed, synchronous, seconds=4, standbys=1, postgres_bin=PROGRAMS)
    report = asyncio.run(fail_over(plan))
    assert report.faults == 0, report
    assert report.events > 200
    assert report.delivered > report.events
    assert report.gaps == 0 if synchronous else report.announced > 0


def test_the_checker_sees_ids_that_are_handed_out_twice() -> None:
    plan = FailoverPlan(
        1,
        synchronous=False,
        seconds=3,
        catch_up=3,
        sabotage="CREATE OR REPLACE FUNCTION sse_pg.must_jump() RETURNS boolean LANGUAGE sql AS 'SELECT false'",
        postgres_bin=PROGRAMS,
    )
    assert asyncio.run(fail_over(plan)).reused > 0
