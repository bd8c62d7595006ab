"""Token ids of a dataset as text again, by the tokenizer that made them and by no other."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tpt_megatron.data.indexed import IndexedDataset, Integers
from tpt_megatron.errors import DamagedError, TptError
from tpt_megatron.tokenizer import TokenizerFacts, load_facts

# Control characters, which no page can hold, as the pictures that Unicode has for them.
PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}


@dataclass(frozen=True)
class Decoder:
    """Opens once what every decoding needs."""

    tokenizer: TokenizerFacts

    @cached_property
    def control_names(self) -> Mapping[int, str]:
        return {number: name for name, number in self.tokenizer.controls.items()}

    def text(self, ids: Integers) -> str:
        """`ids` are those of a dataset's document or thought; what no page can show becomes visible."""
        return self.tokenizer.decode(ids.tolist()).translate(PICTURES)

    def is_control(self, ids: Integers) -> NDArray[np.bool_]:
        controls = np.fromiter(self.control_names, np.int64, len(self.control_names))
        return np.isin(ids.astype(np.int64), controls)

    def read(self, dataset: IndexedDataset, start_token: int, count: int) -> Integers:
        """Tokens of `dataset`, [count]. Raises DamagedError for an id that the tokenizer does not have."""
        ids = dataset.read(start_token, count)
        if count and not 0 <= int(ids.min()) <= int(ids.max()) < self.tokenizer.vocab_size:
            raise DamagedError(
                f"{dataset.prefix}: an id outside the vocabulary",
                got=f"{ids.min()} to {ids.max()}", expected=f"0 to {self.tokenizer.vocab_size - 1}",
            )  # fmt: skip
        return ids


class Decoders:
    """Tokenizers by name, each opened once however many datasets it made: 6 s of CPU."""

    def __init__(self) -> None:
        self._opened: dict[str, Decoder | str] = {}

    def get(self, name: str, fingerprint: str | None) -> Decoder | str:
        """The decoder of a dataset, or the sentence that says why there is none."""
        if name not in self._opened:
            self._opened[name] = _open(name)
        found = self._opened[name]
        if isinstance(found, Decoder) and found.tokenizer.fingerprint != fingerprint:
            return (
                f"Not decoded: {name} is now another tokenizer than the one that made this dataset. "
                f"Its fingerprint is {found.tokenizer.fingerprint[:16]}, "
                f"the manifest's is {(fingerprint or 'none')[:16]}."
            )
        return found


def _open(name: str) -> Decoder | str:
    place = _on_this_machine(name)
    if place is None:
        return f"Not decoded: the tokenizer {name!r} is not on this machine, and a report downloads nothing."
    try:
        return Decoder(load_facts(place))
    except TptError as error:
        return f"Not decoded: {error}."


def _on_this_machine(name: str) -> str | None:
    """The file or folder of a tokenizer, that of a hub name in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if name and Path(name).exists():
        return name
    try:
        cached = try_to_load_from_cache(name, "tokenizer.json")
    except HFValidationError:  # not a name that the hub can have
        return None
    return str(Path(cached).parent) if isinstance(cached, str) else None
