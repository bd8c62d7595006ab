"""Reports of many compilations, each made in a process of its own: LLVM aborts on some errors."""

import multiprocessing
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import IO, Any

from compilation import Compilation
from report import Report, failed, report, said


def reports(compilations: Sequence[Compilation], *, jobs: int) -> Iterator[tuple[int, Report]]:
    """(index of the compilation, report) in the order in which they end, `jobs` at a time.

    The processes are forked, so that kernels need no pickling and torch is imported once; the caller has
    compiled nothing itself, as LLVM's threads would not survive.
    """
    context = multiprocessing.get_context("fork")
    waiting = deque(range(len(compilations)))
    running: dict[Any, tuple[int, Any, IO[bytes]]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            index = waiting.popleft()
            output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed where its process has ended)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(compilations[index], sender, output.fileno()))
            process.start()
            sender.close()
            running[receiver] = (index, process, output)
        for ready in wait(list(running)):
            index, process, output = running.pop(ready)
            with output:
                yield index, _received(ready, process, output, compilations[index])


def _work(compilation: Compilation, sender: Connection, output: int) -> None:
    os.dup2(output, 1)  # triton prints the whole module where a pass or ptxas fails
    os.dup2(output, 2)
    sender.send(report(compilation))


def _received(receiver: Any, process: Any, output: IO[bytes], compilation: Compilation) -> Report:
    try:
        made: Report | None = receiver.recv()
    except EOFError:
        made = None
    receiver.close()
    process.join()
    if made is not None and made.facts is not None:
        return made
    problem = f"the compiler died with exit code {process.exitcode}"
    if made is not None:
        problem = made.breaches[0].removeprefix(f"{compilation}: ")
    output.seek(0)
    detail = said(output.read().decode(errors="replace"))
    return failed(compilation, f"{problem} ({detail})" if detail and detail not in problem else problem)
