"""Every loss op with its vocabulary split over 1, 2 and 4 gloo ranks equals the unsplit one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("split_worker.py")


@pytest.fixture(scope="module")
def output() -> str:
    """Of one world of 4 ranks for all sizes of group: a start costs 10 s."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    done = subprocess.run(
        [*launcher, str(WORKER)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_split_equals_whole(ranks, output):
    for rank in range(ranks):
        assert output.count(f"rank {rank} of {ranks} agrees") == 4 // ranks, output
