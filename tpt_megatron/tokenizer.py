"""A tokenizer, opened so that text can never become a control id.

Both thinking/ and data/ need it and never import each other, so it stands on the floor below them.
`TokenizerFacts` is what a worker needs, pickles, and never imports transformers (which costs 558 MB and 6 s
of CPU); `load_facts` reads it in a child process that has ended when it returns.
"""

import hashlib
import importlib
import json
import logging
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import tokenizers

from tpt_megatron.errors import ConfigError, InputError, TptError

BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")  # what byte fallback spells unknown characters with
# Without torch transformers takes 2 s of CPU to import instead of 6; tokenizers do not need it.
CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); sys.modules['torch'] = None;"
    "from tpt_megatron.tokenizer import print_facts; print_facts(sys.argv[2])"
)


def is_control(piece: str) -> bool:
    """Whether an added token marks something, rather than being a letter, a byte or a run of spaces.

    The last three stay within a text's reach where the model itself knows them: Gemma adds line breaks and
    runs of spaces, and without them a line break would become a byte.
    """
    blank = piece.replace("▁", " ").isspace()
    return len(piece) > 1 and not blank and not BYTE_PIECE.fullmatch(piece)


class Backend(Protocol):
    """One library's way of opening a definition."""

    plain_definition: bytes  # the definition with control tokens out of a text's reach

    @property
    def controls(self) -> Mapping[str, int]: ...
    def ordinary_ids(self) -> set[int]: ...
    def token_id(self, token: str) -> int | None: ...
    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]: ...
    def encode_template(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class TokenizerFacts:
    """All about a tokenizer that packing needs; the library that encodes is opened at its first use.

    Encodes plain text with every added token taken out, and control tokens by name. Qwen3 and DeepSeek add
    `</think>` as a token that is not "special", so all added tokens go.
    """

    name: str
    kind: Literal["huggingface", "sentencepiece"]
    definition: bytes = field(repr=False)  # tokenizer.json, or a SentencePiece model
    eos_token: str | None
    bos_token: str | None
    chat_template: str | None = field(repr=False)
    vocab_size: int  # one more than the largest id, added tokens counted
    fingerprint: str  # SHA-256 of the definition: equal exactly where the ids are

    @cached_property
    def backend(self) -> Backend:
        return HuggingFace(self.definition) if self.kind == "huggingface" else SentencePiece(self.definition)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the facts, not what was opened from them."""
        return {part.name: self.__dict__[part.name] for part in fields(TokenizerFacts)}

    @property
    def plain_definition(self) -> bytes:
        """The definition that knows no added token, and spells those of its model in no text's letters."""
        return self.backend.plain_definition

    @cached_property
    def ordinary_ids(self) -> frozenset[int]:
        """What plain text may encode to; the unknown token among them, where the model has one."""
        return frozenset(self.backend.ordinary_ids())

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; no control id can come out, whatever the text says."""
        return self.backend.encode_plain(texts)

    def encode_template(self, text: str) -> list[int]:
        """Ids of text that we wrote ourselves (a chat template's frame): control tokens are recognised."""
        return self.backend.encode_template(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(ids)

    def control_id(self, token: str, key: str) -> int:
        """The id of the control token `token`, which the config key `key` names."""
        identity = self.backend.token_id(token)
        if identity is None:
            raise ConfigError(
                f"{key}: {token!r} is not a token of {self.name}",
                fix="name one that is, or add it to the tokenizer",
            )
        return identity

    @property
    def controls(self) -> Mapping[str, int]:
        """Control tokens by name: what plain text must never produce."""
        return self.backend.controls

    def control_ids(self) -> frozenset[int]:
        return frozenset(self.controls.values())

    def files(self) -> list[Path]:
        """The tokenizer's files, where it is a folder: what an exported model needs beside its weights."""
        folder = Path(self.name)
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
        return [folder / n for n in names if (folder / n).is_file()]


class TextTokenizer(TokenizerFacts):
    """The same with transformers' own tokenizer as `hf`, for those who hold transformers anyway."""

    def __init__(self, name_or_path: str) -> None:
        self.hf: Any = open_huggingface(name_or_path)
        super().__init__(**facts_of(self.hf, name_or_path).__getstate__())


def open_huggingface(name_or_path: str) -> Any:
    """transformers' fast tokenizer of a folder or hub name; InputError where there is none."""
    from transformers import AutoTokenizer

    try:
        opened = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot open the tokenizer {name_or_path!r}: {str(error).splitlines()[0]}",
            fix="give a folder with tokenizer.json, or a hub name that this machine can reach",
        ) from error
    if not opened.is_fast:
        raise InputError(f"{name_or_path}: not a fast tokenizer", fix="it needs a tokenizer.json")
    return opened


def facts_of(hf: Any, name: str) -> TokenizerFacts:
    # Cutting and padding are the caller's matter, and would make equal tokenizers look different.
    body = {**json.loads(hf.backend_tokenizer.to_str()), "truncation": None, "padding": None}
    template = hf.chat_template
    return TokenizerFacts(
        name=name,
        kind="huggingface",
        definition=json.dumps(body).encode(),
        eos_token=hf.eos_token,
        bos_token=hf.bos_token,
        chat_template=template.get("default") if isinstance(template, dict) else template,
        vocab_size=max(hf.get_vocab().values()) + 1,
        fingerprint=hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest(),
    )


def load_facts(name: str) -> TokenizerFacts:
    """The facts of a SentencePiece model (a file NAME.model), or of what transformers opens as `name`.

    Raises InputError where neither can be opened.
    """
    if name.endswith(".model"):
        return _sentencepiece_facts(name)
    command = [sys.executable, "-c", CHILD, json.dumps(sys.path), name]
    child = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if child.returncode:
        raise InputError(
            f"cannot open the tokenizer {name!r}: the process that opens it ended with {child.returncode}",
            fix="its message stands above",
        )
    result: TokenizerFacts | TptError = pickle.loads(child.stdout)
    if isinstance(result, TptError):
        raise result
    return result


def print_facts(name: str) -> None:
    """What the child of `load_facts` does: the facts of `name`, or the error, pickled to standard output."""
    with redirect_stdout(sys.stderr):  # what libraries print must not stand among the facts
        logging.disable(logging.WARNING)  # transformers misses torch
        importlib.import_module("transformers")
        logging.disable(logging.NOTSET)
        try:
            result: TokenizerFacts | TptError = facts_of(open_huggingface(name), name)
        except TptError as error:
            result = error
    sys.stdout.buffer.write(pickle.dumps(result))


def _sentencepiece_facts(path: str) -> TokenizerFacts:
    try:
        definition = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot open the tokenizer {path!r}: {error.strerror}") from error
    try:
        backend = SentencePiece(definition)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: not a SentencePiece model", got=str(error).splitlines()[0]) from error
    library = backend.full
    ends = [library.id_to_piece(i) if i >= 0 else None for i in (library.eos_id(), library.bos_id())]
    return TokenizerFacts(
        name=path,
        kind="sentencepiece",
        definition=definition,
        eos_token=ends[0],
        bos_token=ends[1],
        chat_template=None,
        vocab_size=library.get_piece_size(),
        fingerprint=hashlib.sha256(definition).hexdigest(),
    )


def _unspeakable(identity: int, definition: bytes) -> str:
    """A name for a control piece that no document spells by accident, and none can before it is known."""
    return f"\uffff{hashlib.sha256(definition).hexdigest()}-{identity}\uffff"


class HuggingFace:
    """A definition in the format of the `tokenizers` library."""

    def __init__(self, definition: bytes) -> None:
        body = {**json.loads(definition), "truncation": None, "padding": None}
        if body["model"].get("dropout"):
            raise InputError("the tokenizer's model has dropout, so a text has no ids of its own")
        self._full = tokenizers.Tokenizer.from_str(json.dumps(body))
        self._added = {token["content"]: int(token["id"]) for token in body["added_tokens"]}
        self.controls = {name: number for name, number in self._added.items() if is_control(name)}
        model = _without(body["model"], self.controls, definition)
        plain = {**body, "added_tokens": [], "post_processor": None, "model": model}
        self.plain_definition = json.dumps(plain).encode()
        self.plain = tokenizers.Tokenizer.from_str(self.plain_definition.decode())

    def ordinary_ids(self) -> set[int]:
        unknown = self.plain.token_to_id(_unknown_token(json.loads(self.plain_definition)["model"]) or "")
        out = set(self.plain.get_vocab().values()) - set(self.controls.values())
        return out if unknown is None else out | {unknown}

    def token_id(self, token: str) -> int | None:
        return self._full.token_to_id(token)

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self.plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_template(self, text: str) -> list[int]:
        return list(self._full.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self._full.decode(list(ids), skip_special_tokens=False)


def _unknown_token(model: Mapping[str, Any]) -> str | None:
    if model["type"] == "Unigram":
        return None if model.get("unk_id") is None else str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _without(model: dict[str, Any], controls: Mapping[str, int], definition: bytes) -> dict[str, Any]:
    """`model` with its control pieces renamed: Unigram matches any piece, `</s>` in a text included.

    BPE needs it where merges lead to one; WordPiece and WordLevel where a whole word is one.
    """
    names = {control: _unspeakable(identity, definition) for control, identity in controls.items()}
    vocab = model["vocab"]
    if isinstance(vocab, list):
        return {**model, "vocab": [[names.get(piece, piece), score] for piece, score in vocab]}
    out = {**model, "vocab": {names.get(piece, piece): number for piece, number in vocab.items()}}
    if out.get("unk_token") in names:
        out["unk_token"] = names[out["unk_token"]]
    if merges := model.get("merges"):
        prefix = len(model.get("continuing_subword_prefix") or "")
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        out["merges"] = [
            [a, b] for a, b in pairs if not (a in names or b in names or a + b[prefix:] in names)
        ]
    return out


class SentencePiece:
    """A SentencePiece model. Its library never makes a control piece from text, but any user-defined one."""

    def __init__(self, definition: bytes) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
            from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
        except ModuleNotFoundError as error:
            raise InputError(
                f"a SentencePiece model needs the package {error.name}", fix="install sentencepiece, protobuf"
            ) from error
        self.full = SentencePieceProcessor(model_proto=definition)
        proto = ModelProto.FromString(definition)
        kinds = ModelProto.SentencePiece
        marks = (kinds.CONTROL, kinds.UNKNOWN)
        self.controls: dict[str, int] = {}
        for identity, piece in enumerate(proto.pieces):
            if piece.type in marks or (piece.type == kinds.USER_DEFINED and is_control(piece.piece)):
                self.controls[piece.piece] = identity
                piece.piece = _unspeakable(identity, definition)
                piece.type = kinds.UNKNOWN if piece.type == kinds.UNKNOWN else kinds.CONTROL
        self.plain_definition: bytes = proto.SerializeToString()
        self.plain = SentencePieceProcessor(model_proto=self.plain_definition)
        names = sorted(self.controls, key=len, reverse=True)  # the longest first, as the library matches
        self._frame = re.compile("(" + "|".join(map(re.escape, names)) + ")")

    def ordinary_ids(self) -> set[int]:
        return set(range(self.full.get_piece_size())) - set(self.controls.values()) | {self.full.unk_id()}

    def token_id(self, token: str) -> int | None:
        identity = int(self.full.piece_to_id(token))
        return identity if self.full.id_to_piece(identity) == token else None

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.plain.encode(list(texts), out_type=int)
        return ids

    def encode_template(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in filter(None, self._frame.split(text)):
            ids += [self.controls[piece]] if piece in self.controls else self.encode_plain([piece])[0]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.full.decode(list(ids))
        return text
