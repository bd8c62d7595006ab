"""Prefetching: a thread makes the next items while the last one is in use.

Its only state is the iterator, so where a run stands is still the number of samples that it consumed.
"""

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class _Failed:
    error: BaseException


class _Ended:
    pass


def prefetch[T](items: Iterator[T], ahead: int) -> Generator[T]:
    """The same items in the same order, up to `ahead` of them made before they are asked for.

    An error of `items` is raised here, after the items before it. Closing the iterator, or dropping it,
    ends the thread. With `ahead` 0 there is no thread.
    """
    if ahead < 1:
        yield from items
        return
    made: queue.SimpleQueue[T | _Failed | _Ended] = queue.SimpleQueue()
    free, stop = threading.Semaphore(ahead), threading.Event()
    thread = threading.Thread(target=_make, args=(items, made, free, stop), name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := made.get(), _Ended):
            if isinstance(item, _Failed):
                raise item.error
            free.release()
            yield item
    finally:
        stop.set()
        free.release()
        thread.join()


def _make[T](
    items: Iterator[T],
    made: "queue.SimpleQueue[T | _Failed | _Ended]",
    free: threading.Semaphore,
    stop: threading.Event,
) -> None:
    try:
        while True:
            free.acquire()
            if stop.is_set():
                return
            made.put(next(items))
    except StopIteration:
        made.put(_Ended())
    except BaseException as error:  # noqa: BLE001 - raised again where the items are consumed
        made.put(_Failed(error))
