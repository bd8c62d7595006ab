"""A training run as its folder tells it: the resolved config and one line of metrics per step."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tpt_megatron.config.load import resolved
from tpt_megatron.config.schema import Config
from tpt_megatron.errors import DamagedError, InputError

METRICS = "metrics.jsonl"
CONFIG = "config.json"
COLUMNS = (
    "step", "consumed_tokens", "loss", "document_loss", "document_tokens", "thinking_loss",
    "thinking_tokens", "learning_rate", "gradient_norm", "seconds",
)  # fmt: skip

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One run. `metrics[column]` is [steps]; losses are in nats, `seconds` and tokens are per step."""

    name: str
    config: Config
    metrics: dict[str, Column]

    @property
    def steps(self) -> int:
        return int(self.metrics["step"][-1])

    @property
    def tokens(self) -> int:
        return int(self.metrics["consumed_tokens"][-1])

    @property
    def tokens_per_second(self) -> float | None:
        """Over all steps but the first, which compiles the kernels; None for a run of one step."""
        tokens, seconds = self.metrics["consumed_tokens"], self.metrics["seconds"][1:].sum()
        return float((tokens[-1] - tokens[0]) / seconds) if seconds > 0 else None

    @property
    def first_loss(self) -> float:
        return float(self.metrics["loss"][0])

    @property
    def last_loss(self) -> float:
        return float(self.metrics["loss"][-1])

    def consumed(self, points: int) -> Column:
        """Consumed tokens at the end of each of at most `points` groups of consecutive steps."""
        starts = self._starts(points)
        ends = np.append(starts[1:], len(self.metrics["step"])) - 1
        tokens: Column = self.metrics["consumed_tokens"][ends]
        return tokens

    def mean_loss(self, part: str, points: int) -> Column:
        """Nats a token of the tokens of a group of steps; `part` is "all", "document" or "thinking".

        NaN for a group without a token of that part.
        """
        parts = ("document", "thinking") if part == "all" else (part,)
        nats = self._sums([f"{name}_loss" for name in parts], points)
        tokens = self._sums([f"{name}_tokens" for name in parts], points)
        mean: Column = np.divide(nats, tokens, out=np.full(len(tokens), np.nan), where=tokens > 0)
        return mean

    def largest(self, column: str, points: int) -> Column:
        """The largest value of a group of steps, so that no spike is lost."""
        return np.maximum.reduceat(self.metrics[column], self._starts(points))

    def _sums(self, columns: list[str], points: int) -> Column:
        starts = self._starts(points)
        sums = [np.add.reduceat(self.metrics[column], starts) for column in columns]
        return np.asarray(np.sum(sums, axis=0))

    def _starts(self, points: int) -> NDArray[np.int64]:
        steps = len(self.metrics["step"])
        groups = min(steps, points)
        return np.arange(groups) * steps // groups


def read_run(metrics: Path, name: str) -> Run:
    """The run whose log is `metrics`.

    Raises InputError where no step is logged or its config.json is missing, DamagedError for a line that is
    no step. The last line is forgiven: a kill, or a run that writes while this reads, tears it.
    """
    lines = metrics.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append([float(row[column]) for column in COLUMNS])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise DamagedError(
                f"{metrics}: line {number} is not a step ({type(error).__name__}: {error})",
                expected=f"JSON with {', '.join(COLUMNS)}",
            ) from error
    if not rows:
        raise InputError(f"{metrics}: no finished step yet", fix="report again when the run has made one")
    table = np.array(rows).T
    return Run(name, resolved(metrics.with_name(CONFIG)), dict(zip(COLUMNS, table, strict=True)))
