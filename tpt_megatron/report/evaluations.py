"""Held-out losses of one model, as `tpt eval` left them."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpt_megatron.artifact import read_manifest, verify_manifest
from tpt_megatron.errors import InputError

KIND = "evaluation"
EVALUATION = "evaluation.json"
PARTS = ("document", "thinking", "all")


@dataclass(frozen=True)
class Score:
    """Mean loss in nats over `tokens` tokens; None where there are none."""

    loss: float | None
    tokens: int

    @property
    def perplexity(self) -> float | None:
        if self.loss is None:
            return None
        return math.exp(self.loss) if self.loss < 700 else math.inf  # exp(710) overflows


@dataclass(frozen=True)
class Evaluation:
    """`scores[dataset][part]`, part one of PARTS."""

    name: str
    model: str
    scores: dict[str, dict[str, Score]]


def read_evaluation(path: Path, name: str) -> Evaluation:
    """The evaluation of the manifest at `path`, its checksums verified.

    Raises DamagedError for changed bytes, InputError for a file of another form.
    """
    read_manifest(path, KIND)
    verify_manifest(path)
    file = path.with_name(EVALUATION)
    try:
        body = json.loads(file.read_bytes())
        scores = {str(dataset): _scores(row) for dataset, row in body["datasets"].items()}
        return Evaluation(name, str(body["model"]), scores)
    except FileNotFoundError:
        raise InputError(f"{path}: an evaluation without {EVALUATION}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not an evaluation ({type(error).__name__}: {error})") from error


def _scores(row: dict[str, Any]) -> dict[str, Score]:
    prefixes = {"document": "document_", "thinking": "thinking_", "all": ""}
    return {part: _score(row[f"{prefixes[part]}loss"], row[f"{prefixes[part]}tokens"]) for part in PARTS}


def _score(loss: float | None, tokens: int) -> Score:
    return Score(None if loss is None else float(loss), int(tokens))
