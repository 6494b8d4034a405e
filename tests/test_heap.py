"""What the garbage collector looks at while streams come and go."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from sse_pg.heap import LOOKS_LEFT, STREAMS_PER_FREEZE, Heap


@pytest.fixture
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("thawed")
def test_it_freezes_while_a_crowd_comes_and_looks_again_when_it_has_gone() -> None:
    streams = 0
    heap = Heap(lambda: streams)
    heap.look()
    assert gc.get_freeze_count() == 0
    streams = STREAMS_PER_FREEZE
    heap.look()
    frozen = gc.get_freeze_count()
    assert frozen > 0
    more = [[number] for number in range(100)]
    heap.look()
    assert gc.get_freeze_count() <= frozen, "few streams have opened since"
    streams *= 2
    heap.look()
    assert gc.get_freeze_count() >= frozen + len(more)
    circle: list[object] = []
    circle.append(circle)
    streams = 10
    for _ in range(LOOKS_LEFT - 1):
        heap.look()
    streams = STREAMS_PER_FREEZE
    heap.look()
    streams = 10
    gc.freeze()
    del circle
    gc.collect()
    garbage = sum(1 for each in _frozen() if each and each[0] is each)
    assert garbage == 1
    for _ in range(LOOKS_LEFT):
        heap.look()
    assert not any(each and each[0] is each for each in _frozen())
    assert gc.get_freeze_count() > 0


def _frozen() -> list[list[object]]:
    """Return the lists that exist, frozen or not; the collector lists none that are frozen."""
    gc.unfreeze()
    found = [each for each in gc.get_objects() if type(each) is list]
    gc.freeze()
    return found
