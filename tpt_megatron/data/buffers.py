"""Memory for batches, used again as soon as nothing refers to the batch that had it.

A batch of 64 samples is 7 MB, which the allocator hands back to the system each time; the page faults of
fresh memory then cost 5 times as much as making the samples (27 faults a sample, 2 to 4 us each).
"""

import sys
import threading

import numpy as np
import numpy.typing as npt

MAX_BLOCKS = 16

Block = npt.NDArray[np.uint8]


class Buffers:
    """Blocks of memory for several threads; one is free when no array is a view of it any more."""

    def __init__(self) -> None:
        self._blocks: list[Block] = [np.empty(0, dtype=np.uint8)]
        self._lock = threading.Lock()
        # What Python itself counts differs from version to version: it is seen on a block without views.
        self._own_references = self._references(0)
        self._blocks.clear()

    def take(self, num_bytes: int) -> Block:
        """Bytes to write, [num_bytes], with what is left of an earlier batch in them."""
        with self._lock:
            sizes = [block.nbytes for block in self._blocks]
            free = [i for i in range(len(sizes)) if self._references(i) == self._own_references]
            for index in free:
                if num_bytes <= sizes[index] <= 2 * num_bytes:
                    return self._blocks[index][:num_bytes]
            if len(sizes) == MAX_BLOCKS and free:
                del self._blocks[free[0]]
            block = np.empty(num_bytes, dtype=np.uint8)
            if len(self._blocks) < MAX_BLOCKS:
                self._blocks.append(block)
            return block[:]

    def _references(self, index: int) -> int:
        return sys.getrefcount(self._blocks[index])
