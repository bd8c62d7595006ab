"""Runs `pack` in forked processes with a fault at one of its writes, syncs and renames; or as it is.

    pack_worker.py faults FACTS CORPUS FOLDER raise|crash    a JSON line for every point
    pack_worker.py run FACTS CORPUS PREFIX WORKERS           one run, to be killed from outside

FACTS is a pickled TokenizerFacts, so that no run waits for transformers.
"""

import builtins
import errno
import json
import os
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tpt_megatron.artifact import find_manifests, verify_manifest
from tpt_megatron.config.schema import CorpusConfig, DataConfig
from tpt_megatron.data import blocks, pack, packer
from tpt_megatron.errors import TptError

CRASHED = 9


class Faults:
    """Counts the points at which something reaches the disk; at number `fatal` it fails there."""

    def __init__(self, fatal: int, crash: bool) -> None:
        self.fatal, self.crash, self.count, self.what = fatal, crash, 0, ""

    def point(self, what: str) -> bool:
        self.count += 1
        self.what = what if self.count == self.fatal else self.what
        return self.count == self.fatal

    def fail(self) -> None:
        if self.crash:
            os._exit(CRASHED)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.what)

    def install(self) -> None:
        real_open = builtins.open
        builtins.open = lambda *a, **k: self._wrap(real_open(*a, **k))  # type: ignore[assignment]
        for name in ("fsync", "replace", "rename", "pwrite"):
            setattr(os, name, partial(self._call, name, getattr(os, name)))

    def _call(self, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        if self.point(f"before {name}"):
            self.fail()
        result = real(*arguments)
        if name in ("replace", "rename") and self.point(f"after {name}"):
            self.fail()
        return result

    def _wrap(self, file: Any) -> Any:
        return Torn(file, self) if file.writable() else file


class Torn:
    """A file whose fatal write stops half-way."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def write(self, data: Any) -> Any:
        if self._faults.point(f"write to {self._file.name}"):
            view = memoryview(data.encode() if isinstance(data, str) else data).cast("B")
            self._file.write(bytes(view[: len(view) // 2]))
            self._file.flush()
            self._faults.fail()
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Torn":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def settings(facts: Path, corpus: Path, prefix: Path, workers: int) -> tuple[DataConfig, CorpusConfig]:
    tokenizer = pickle.loads(facts.read_bytes())
    pack.load_facts = lambda name: tokenizer
    pack.plan_blocks = partial(blocks.plan_blocks, block_bytes=2000)
    packer.PIECE_BYTES = 3000
    data = DataConfig(tokenizer="t", output=str(prefix), style="none", workers=workers, encoder="huggingface")
    return data, CorpusConfig(paths=(str(corpus),))


def forked(action: Callable[[], int]) -> int:
    """The exit code of `action` in a process of its own, on which no thread of ours was ever started."""
    if not (child := os.fork()):
        code = 1
        try:
            code = action()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def attempt(data: DataConfig, corpus: CorpusConfig, faults: Faults | None, log: Path) -> int:
    if faults:
        faults.install()
    try:
        pack.pack(data, corpus, lambda rows: None)
    except TptError as error:
        os.write(os.open(log, os.O_WRONLY | os.O_CREAT), str(error).encode())
        return error.exit_code
    finally:
        if faults:
            os.write(os.open(f"{log}.count", os.O_WRONLY | os.O_CREAT), str(faults.count).encode())
    return 0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in sorted(folder.iterdir())}


def all_faults(facts: Path, corpus: Path, folder: Path, mode: str) -> None:
    folder.mkdir()
    whole = folder / "whole" / "x"
    code = forked(lambda: attempt(*settings(facts, corpus, whole, 1), Faults(0, False), folder / "log"))
    assert code == 0, (folder / "log").read_text()
    expected = contents(whole.parent)
    points = int((folder / "log.count").read_text())
    for fatal in range(1, points + 1):
        prefix, log = folder / str(fatal) / "x", folder / f"{fatal}.log"
        data = settings(facts, corpus, prefix, 1)
        faults = Faults(fatal, mode == "crash")
        first = forked(lambda data=data, faults=faults, log=log: attempt(*data, faults, log))  # type: ignore[misc]
        sound = [verify_manifest(path).kind for path in find_manifests(prefix)]
        second = forked(lambda data=data, log=log: attempt(*data, None, log))  # type: ignore[misc]
        line = {
            "point": fatal,
            "first": first,
            "error": log.read_text() if log.exists() else "",
            "finished": sound,
            "second": second,
            "same": contents(prefix.parent) == expected,
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    verb, facts, corpus, target, last = sys.argv[1:]
    if verb == "faults":
        all_faults(Path(facts), Path(corpus), Path(target), last)
    else:
        data = settings(Path(facts), Path(corpus), Path(target), int(last))
        print(pack.pack(*data, lambda rows: None).tokens)


if __name__ == "__main__":
    main()
