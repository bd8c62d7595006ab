"""Filters: which rows `tpt pack` leaves out, each counted under the name of the first filter that drops it.

A filter is a function of a row and `data.filter`; True keeps the row. A filter about thoughts keeps rows
that have none. CPU per MB of the text that it looks at, as a multiple of tokenizing (3.8 ms in the same run,
by gigatoken; documents of 6 kB):

    finish_reason, document_length, thinking_length, refusal  under 0.05
    unclosed_tag 0.3    prompt_leakage 2.4    compression_ratio 3.2    ngram_loop 12
    language 24, of documents of 6 kB (500 characters of each are looked at)

and 0.1 for the rows themselves, where there is any filter.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpt_megatron.config.schema import FilterConfig
from tpt_megatron.data.languages import check_language
from tpt_megatron.data.rows import RowBatch
from tpt_megatron.errors import ConfigError
from tpt_megatron.slots import resolve


@dataclass(frozen=True, slots=True)
class Row:
    """What a filter sees of a document or trajectory."""

    id: str
    text: str  # of a conversation: its messages' contents, a blank line between
    thinking: str | None  # None: the row has no thought; "" is an empty thought
    finish_reason: str | None  # None: not generated
    source: str
    meta: Mapping[str, Any]  # the row's other columns


type Filter = Callable[[Row, FilterConfig], bool]

FILTERS = {
    "finish_reason": "tpt_megatron.data.filters:finish_reason",
    "document_length": "tpt_megatron.data.filters:document_length",
    "thinking_length": "tpt_megatron.data.filters:thinking_length",
    "unclosed_tag": "tpt_megatron.data.phrases:unclosed_tag",
    "refusal": "tpt_megatron.data.phrases:refusal",
    "prompt_leakage": "tpt_megatron.data.phrases:prompt_leakage",
    "ngram_loop": "tpt_megatron.data.loops:ngram_loop",
    "compression_ratio": "tpt_megatron.data.loops:compression_ratio",
    "language": "tpt_megatron.data.languages:language",
}
# The keys that one filter alone reads; a filter of a fork's own may read any.
KEYS = {
    "document_length": ("min_document_characters", "max_document_characters"),
    "thinking_length": ("min_thinking_characters", "max_thinking_characters"),
    "unclosed_tag": ("think_tags",),
    "ngram_loop": ("ngram_words", "max_ngram_share"),
    "compression_ratio": ("min_compression_ratio",),
    "language": ("languages",),
}


def open_filters(config: FilterConfig) -> list[tuple[str, Filter]]:
    """The filters of `data.filter.names` by name, in that order, the order in which they look at a row.

    Raises ConfigError, naming the key, for an unknown name, a name given twice, a key that no named filter
    reads, a length filter without bounds or with crossed ones, and a language or library that is missing.
    """
    names = config.names
    if len(set(names)) < len(names):
        raise ConfigError("data.filter.names names a filter twice", got=list(names))
    opened = [(name, resolve(name, FILTERS, "data.filter.names")) for name in names]
    if all(name in FILTERS for name in names):
        _check_keys(config)
    for what in ("document", "thinking"):
        _check_bounds(config, what)
    if "language" in names:
        check_language(config.languages)
    return opened


def _check_keys(config: FilterConfig) -> None:
    default = FilterConfig()
    for name, keys in KEYS.items():
        for key in keys:
            if name not in config.names and getattr(config, key) != getattr(default, key):
                raise ConfigError(
                    f"data.filter.{key} is set, but the filter that reads it is off",
                    got=f"data.filter.names={list(config.names)}", fix=f"name {name!r} there",
                )  # fmt: skip


def _check_bounds(config: FilterConfig, what: str) -> None:
    low, high = getattr(config, f"min_{what}_characters"), getattr(config, f"max_{what}_characters")
    keys = f"data.filter.min_{what}_characters and max_{what}_characters"
    if f"{what}_length" in config.names and not low and high is None:
        raise ConfigError(f"{keys}: the filter {what}_length has no bound", fix="set one of the two")
    if high is not None and low > high:
        raise ConfigError(f"{keys}: no row is within", got=f"{low} and {high}", expected="min <= max")


def apply_filters(
    batch: RowBatch, filters: Sequence[tuple[str, Filter]], config: FilterConfig
) -> tuple[RowBatch, Counter[str]]:
    """The rows that every filter keeps, and how many each one dropped; the first to drop a row counts it.

    batch.rows = kept.rows + dropped.total(): bad rows and those left out earlier go along. `batch` itself
    comes back where nothing was dropped.
    """
    dropped: Counter[str] = Counter()
    if not filters:
        return batch, dropped
    kept = []
    for place in range(len(batch)):
        row = _row(batch, place)
        for name, keeps in filters:
            if not keeps(row, config):
                dropped[name] += 1
                break
        else:
            kept.append(place)
    if not dropped:
        return batch, dropped
    selected = batch.select(kept)
    selected.bad, selected.left_out = batch.bad, batch.left_out
    return selected, dropped


def _row(batch: RowBatch, place: int) -> Row:
    text = batch.texts[place]
    if batch.messages is not None:
        contents = (message.get("content") for message in batch.messages[place])
        text = "\n\n".join(content for content in contents if isinstance(content, str))
    return Row(
        batch.ids[place],
        text,
        None if batch.thoughts is None else batch.thoughts[place],
        None if batch.finish_reasons is None else batch.finish_reasons[place],
        batch.sources[place],
        batch.metas[place],
    )


def finish_reason(row: Row, config: FilterConfig) -> bool:
    """Drops thoughts that were cut at the generator's limit."""
    return row.finish_reason != "length"


def document_length(row: Row, config: FilterConfig) -> bool:
    """Drops documents outside of min_document_characters to max_document_characters, both included."""
    return _within(row.text, config.min_document_characters, config.max_document_characters)


def thinking_length(row: Row, config: FilterConfig) -> bool:
    """Drops thoughts outside of min_thinking_characters to max_thinking_characters, both included."""
    low, high = config.min_thinking_characters, config.max_thinking_characters
    return row.thinking is None or _within(row.thinking, low, high)


def _within(text: str, low: int, high: int | None) -> bool:
    return low <= len(text) and (high is None or len(text) <= high)
