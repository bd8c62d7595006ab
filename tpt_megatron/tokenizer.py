"""A Hugging Face fast tokenizer, opened so that text can never become a control id.

Both thinking/ and data/ need it and never import each other, so it stands on the floor below them.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from tpt_megatron.errors import ConfigError, InputError


class TextTokenizer:
    """Encodes plain text with every added token taken out, and control tokens by name.

    Qwen3 and DeepSeek add `</think>` as a token that is not "special", so all added tokens go
    (facts-data.md, 2b: a literal `<|endoftext|>` in a document became end-of-document elsewhere).
    """

    def __init__(self, name_or_path: str) -> None:
        from transformers import AutoTokenizer

        try:
            self.hf: Any = AutoTokenizer.from_pretrained(name_or_path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot open the tokenizer {name_or_path!r}: {str(error).splitlines()[0]}",
                fix="give a folder with tokenizer.json, or a hub name that this machine can reach",
            ) from error
        if not self.hf.is_fast:
            raise InputError(f"{name_or_path}: not a fast tokenizer", fix="it needs a tokenizer.json")
        self.name = name_or_path
        self._json: dict[str, Any] = json.loads(self.hf.backend_tokenizer.to_str())
        plain = {
            **self._json,
            "added_tokens": [],
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(plain))

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens counted."""
        return int(max(self.hf.get_vocab().values())) + 1

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's definition: equal exactly where the ids are."""
        return hashlib.sha256(json.dumps(self._json, sort_keys=True).encode()).hexdigest()

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; no control id can come out, whatever the text says."""
        return [e.ids for e in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_template(self, text: str) -> list[int]:
        """Ids of text that we wrote ourselves (a chat template's frame): control tokens are recognised."""
        ids: list[int] = self.hf.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.hf.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def control_id(self, token: str, key: str) -> int:
        """The id of the control token `token`, which the config key `key` names."""
        identity = self.hf.get_vocab().get(token)
        if identity is None:
            raise ConfigError(
                f"{key}: {token!r} is not a token of {self.name}",
                fix="name one that is, or add it to the tokenizer",
            )
        return int(identity)

    def control_ids(self) -> frozenset[int]:
        """All added ids: what plain text must never produce."""
        return frozenset(int(t["id"]) for t in self._json["added_tokens"])

    def files(self) -> list[Path]:
        """The tokenizer's files, where it is a folder: what an exported model needs beside its weights."""
        folder = Path(self.name)
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
        return [folder / n for n in names if (folder / n).is_file()]
