"""Tasks give the same results wherever they run, and a worker's end is told."""

import os
import signal
from functools import partial

import pytest

from tpt_megatron.data.executor import run_tasks
from tpt_megatron.errors import ConfigError, InputError


class Squarer:
    """Counts its tasks, so a test sees that a worker is made once."""

    def __init__(self, bad: int = -1, kill: int = -1) -> None:
        self.bad, self.kill, self.seen = bad, kill, 0

    def __call__(self, task: int) -> tuple[int, int, int]:
        self.seen += 1
        if task == self.bad:
            raise ConfigError("data.shard", got=task)
        if task == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return task * task, os.getpid(), self.seen


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_those_of_the_tasks(workers: int) -> None:
    results = list(run_tasks(Squarer, iter(range(7)), workers, "local"))
    assert sorted(result[0] for result in results) == [task * task for task in range(7)]
    processes = {process for _, process, _ in results}
    assert len(processes) <= workers
    assert (os.getpid() in processes) == (workers == 1)
    assert sum(max(s for _, p, s in results if p == process) for process in processes) == 7


def test_no_task_is_no_result() -> None:
    assert list(run_tasks(Squarer, [], 2, "local")) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_workers_error_is_raised_here(workers: int) -> None:
    with pytest.raises(ConfigError, match=r"data\.shard, got 3"):
        list(run_tasks(partial(Squarer, bad=3), range(7), workers, "local"))


def test_a_killed_worker_is_named() -> None:
    with pytest.raises(InputError, match=r"exit code -9.*run the command again"):
        list(run_tasks(partial(Squarer, kill=3), range(7), 2, "local"))


def test_without_ray_its_need_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'tpt-megatron\[ray\]'"):
        next(run_tasks(Squarer, range(3), 1, "ray"))
