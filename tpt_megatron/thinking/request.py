"""One question to a generator, and its answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tpt_megatron.config.schema import ThinkingConfig
from tpt_megatron.records import Document, stable_hash

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate, and what its row needs besides the answer.

    An engine reads `key`, `prompt_ids`, `max_new_tokens` and `seed`.
    """

    key: str  # request_key: equal exactly where the answer may be reused
    document: Document
    sample: int
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int  # request_seed: in [0, 2**63)
    document_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to the request with this key.

    `output_ids` are the generated ids as they came: with `finish_reason` "stop" the last of them is the
    stop token (the end of the thought or of the sequence), with "length" none of them is.
    """

    key: str
    output_ids: tuple[int, ...]
    finish_reason: FinishReason
    seed_honored: bool  # False: the engine sampled with a seed of its own


def sampling(config: ThinkingConfig) -> Mapping[str, str | int | float]:
    """The settings that change what a generator answers to a prompt, under their config keys."""
    return {
        "thinking.think_open": config.think_open,
        "thinking.think_close": config.think_close,
        "thinking.max_document_tokens": config.max_document_tokens,
        "thinking.max_new_tokens": config.max_new_tokens,
        "thinking.temperature": config.temperature,
        "thinking.top_p": config.top_p,
        "thinking.seed": config.seed,
    }


def request_seed(seed: int, id: str, sample: int) -> int:
    """The seed of one sample of one document: 63 bits, so that it fits the `seed` column."""
    return int(stable_hash("request seed", seed, id, sample)[:16], 16) >> 1


def request_key(
    document: Document, sample: int, prompt_hash: str, generator: str, revision: str, config: ThinkingConfig
) -> str:
    """SHA-256 over all that determines an answer; an answer is reused only under the same key."""
    return stable_hash(
        document.id, sample, document.text, prompt_hash, generator, revision, dict(sampling(config))
    )
