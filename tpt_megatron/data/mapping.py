"""Files that are mapped to be read here and there."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def map_for_random_reads(path: Path, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
    """The whole file, not empty, mapped; the kernel does not read ahead of each page that is touched, which
    would make 22 times the useful bytes."""
    mapped = np.memmap(path, dtype=dtype, mode="r")
    memory: Any = mapped.base
    assert isinstance(memory, mmap.mmap)
    memory.madvise(mmap.MADV_RANDOM)
    return np.asarray(mapped)
