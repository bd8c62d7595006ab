"""The run's log: one JSON line a step, whole lines only, continued after a restart."""

import json
from pathlib import Path
from typing import Any


class MetricsLog:
    """`metrics.jsonl` of a run. Reopened at a step, it forgets the lines of later steps, which run again."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        self._file = open(path, "w", buffering=1)  # noqa: SIM115 (lives as long as the run)
        for line in kept:
            self.write(line)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a last line torn by a kill is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
