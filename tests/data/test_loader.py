"""Prefetching: same items, bounded, errors and ends as without it, no thread left."""

import gc
import threading
import time
from collections.abc import Iterator
from itertools import islice

import pytest

from tpt_megatron.data.loader import prefetch


class Spoiled(Exception):
    pass


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert threads() == []


def counting(made: list[int], stop: int, spoil: int | None = None) -> Iterator[int]:
    for number in range(stop):
        if number == spoil:
            raise Spoiled
        made.append(number)
        yield number


def settled(made: list[int]) -> int:
    """How many items were made once nobody makes more."""
    count = -1
    while count != len(made):
        count = len(made)
        time.sleep(0.05)
    return count


@pytest.mark.parametrize("ahead", [0, 1, 2, 7])
@pytest.mark.parametrize("stop", [0, 1, 50])
def test_the_same_items(ahead: int, stop: int) -> None:
    assert list(prefetch(counting([], stop), ahead)) == list(range(stop))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_as_many_ahead_as_asked_for(ahead: int) -> None:
    made: list[int] = []
    items = prefetch(counting(made, 50), ahead)
    for taken in (1, 2, 3):
        next(items)
        assert settled(made) == taken + ahead
    items.close()
    assert settled(made) <= 3 + ahead + 1


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_comes_after_the_items_before_it(ahead: int) -> None:
    items = prefetch(counting([], 9, spoil=4), ahead)
    assert list(islice(items, 4)) == [0, 1, 2, 3]
    with pytest.raises(Spoiled):
        next(items)
    with pytest.raises(StopIteration):
        next(items)


def test_items_are_made_while_the_last_one_is_in_use() -> None:
    """The maker is another thread, and it does not wait to be asked."""
    made: list[int] = []
    items = prefetch(counting(made, 9), 2)
    next(items)
    assert settled(made) == 3
    assert len(threads()) == 1
    items.close()


def test_dropped_or_never_started_it_leaves_nothing() -> None:
    started, untouched = prefetch(counting([], 9), 2), prefetch(counting([], 9), 2)
    next(started)
    assert len(threads()) == 1
    del started, untouched
    gc.collect()
    assert threads() == []
