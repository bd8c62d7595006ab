"""Where tasks run: in this process, in processes of this machine, or as actors of a Ray cluster.

Each place makes its own worker with `make()`, once, and hands it one task at a time. Tasks and results are
small: tokens never travel between processes (pickling them costs as much as making them).
"""

import multiprocessing as mp
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

from tpt_megatron.errors import InputError, TptError

Worker = Callable[[Any], Any]


def run_tasks(make: Callable[[], Worker], tasks: Iterable[Any], workers: int, executor: str) -> Iterator[Any]:
    """The results of `tasks`, as they come. `make` and what it returns travel by pickle.

    Raises what a worker raised, and InputError where one died (killed, out of memory).
    """
    if executor == "ray":
        return _on_ray(make, tasks, workers)
    return _here(make, tasks) if workers == 1 else _in_processes(make, tasks, workers)


def _here(make: Callable[[], Worker], tasks: Iterable[Any]) -> Iterator[Any]:
    worker: Worker | None = None
    for task in tasks:
        worker = worker or make()
        yield worker(task)


def _in_processes(make: Callable[[], Worker], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
    """Spawned, not forked: a fork of a process with threads hangs (tokenizers#187)."""
    context = mp.get_context("spawn")
    processes: dict[Connection, BaseProcess] = {}
    waiting = iter(tasks)
    try:
        for task in islice(waiting, workers):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_serve, args=(theirs, make), daemon=True)
            process.start()
            theirs.close()
            processes[ours] = process
            ours.send(task)
        busy = set(processes)
        while busy:
            for connection in cast(list[Connection], wait(list(busy))):
                yield _receive(connection, processes[connection])
                try:
                    connection.send(next(waiting))
                except StopIteration:
                    busy.remove(connection)
                    connection.close()
    finally:
        for connection, process in processes.items():
            connection.close()
            process.terminate()
            process.join()


def _receive(connection: Connection, process: BaseProcess) -> Any:
    try:
        result = connection.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        raise InputError(
            f"a worker process died with exit code {process.exitcode}",
            fix="-9 is most often the out-of-memory killer: set fewer data.workers; run the command again",
        ) from None
    if isinstance(result, BaseException):
        raise result
    return result


def _serve(connection: Connection, make: Callable[[], Worker]) -> None:
    """The life of a worker process: it ends with the pipe, that is, with its parent."""
    try:
        worker = make()
        while True:
            connection.send(worker(connection.recv()))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except (TptError, OSError) as error:
        connection.send(error)


def _on_ray(make: Callable[[], Worker], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
    """`workers` actors of one CPU each, on the cluster that RAY_ADDRESS names or on this machine."""
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "data.executor=ray: Ray is not installed", fix="pip install 'tpt-megatron[ray]'"
        ) from error
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        actor = ray.remote(num_cpus=1, max_restarts=2, max_task_retries=2)(_Actor)
        pool: Any = ray.util.ActorPool([actor.remote(make, os.getcwd()) for _ in range(workers)])
        for result in pool.map_unordered(lambda one, task: one.run.remote(task), list(tasks)):
            if isinstance(result, TptError):
                raise result
            yield result
    finally:
        if started:
            ray.shutdown()


class _Actor:
    """A worker as a Ray actor; a task runs again elsewhere when its node dies, which pieces allow."""

    def __init__(self, make: Callable[[], Worker], folder: str) -> None:
        os.chdir(folder)  # the driver's, which relative paths start from; Ray starts actors elsewhere
        self._worker = make()

    def run(self, task: Any) -> Any:
        try:
            return self._worker(task)
        except TptError as error:  # as a value, because Ray wraps what is raised in a type of its own
            return error
