"""From parsed rows to the columns of a RowBatch: many at once where all are sound, else one by one.

The two ways give the same rows; the second also says what is wrong with a bad one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import xxhash

from tpt_megatron.config.schema import CorpusConfig
from tpt_megatron.data.rows import Messages, RowBatch
from tpt_megatron.data.where import BadCellError, Where, at_path
from tpt_megatron.records import Document, text_id

ROLES = frozenset({"system", "user", "assistant", "tool"})
NO_META: Mapping[str, Any] = {}  # shared by all rows where nobody reads metadata; not to be written to


class Taken(NamedTuple):
    """A good row."""

    document: Document
    messages: Messages | None  # of a conversation, whose text is ""


class Picker:
    """Takes the columns that the corpus names out of parsed rows."""

    def __init__(
        self, corpus: CorpusConfig, style: str, *, metadata: bool | Sequence[str], json_able: bool = True
    ) -> None:
        self.where = Where(corpus.where)
        self.chat = style == "chat"
        self.content_key = corpus.messages_key if self.chat else corpus.text_key
        self.id_key, self.source_key, self.source = corpus.id_key, corpus.source_key, corpus.source
        self._json_able = json_able
        self._metadata = metadata is True or bool(metadata)
        self._kept = None if isinstance(metadata, bool) else frozenset(metadata)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns it reads, dotted where nested; None for all."""
        if self._metadata and self._kept is None:
            return None
        kept = sorted(self._kept or ())
        names = (self.content_key, self.id_key, self.source_key, *self.where.columns, *kept)
        return tuple(dict.fromkeys(name for name in names if name))

    def many(self, rows: list[Any], batch: RowBatch) -> bool:
        """Add `rows` to `batch`; False, and nothing added, where one of them is not plainly sound."""
        count = len(rows)
        try:
            if self.where:
                if not set(map(type, rows)) <= {dict}:  # no row, and not one that is left out
                    return False
                rows = [row for row in rows if self.where.passes(row)]
            contents = [row[self.content_key] for row in rows]
            ids = [row.get(self.id_key) for row in rows]
            sources = self._sources(rows)
            messages = [read_messages(content) for content in contents] if self.chat else None
        except (KeyError, TypeError, AttributeError, BadCellError):
            return False
        if sources is None or (messages is None and not _are_texts(contents)):
            return False
        if (names := _identities(ids, contents if messages is None else messages)) is None:
            return False
        metas = self._metas(rows)
        if metas is None:
            return False
        batch.ids += names
        batch.texts += contents if messages is None else [""] * len(rows)
        batch.sources += sources
        batch.metas += metas
        if messages is not None:
            assert batch.messages is not None
            batch.messages += messages
        batch.left_out += count - len(rows)
        return True

    def _sources(self, rows: list[Any]) -> list[str] | None:
        if not self.source_key:
            return [self.source] * len(rows)
        sources = [row.get(self.source_key) for row in rows]
        if set(map(type, sources)) <= {str, type(None)}:
            return [self.source if source is None else source for source in sources]
        return None

    def _metas(self, rows: list[Any]) -> list[Mapping[str, Any]] | None:
        if not self._metadata:
            return [NO_META] * len(rows)
        metas: list[Mapping[str, Any]] = [self._meta(row) for row in rows]
        try:
            return metas if self._json_able else _json_able(metas)
        except TypeError:
            return None

    def _meta(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What is in the row beside what has a column of its own; of that only what is asked for."""
        if self._kept is not None:
            cells = ((name, at_path(row, name)) for name in sorted(self._kept))
            return {name: cell for name, cell in cells if cell is not None}
        return {name: cell for name, cell in row.items() if name not in (self.content_key, self.id_key)}

    def one(self, row: Any) -> Taken | None:
        """The row, or None where `corpus.where` leaves it out.

        Raises BadCellError with the reason why it is no row.
        """
        if not isinstance(row, dict):
            raise BadCellError(f"a JSON {type(row).__name__}, not an object")
        if self.where and not self.where.passes(row):
            return None
        content = row.get(self.content_key)
        messages = None
        if self.chat:
            messages = read_messages(content)
        elif not isinstance(content, str):
            raise BadCellError(f"{self.content_key!r} holds no text but {type(content).__name__}")
        elif not content:
            raise BadCellError(f"{self.content_key!r} is empty")
        identity = row.get(self.id_key)
        if (names := _identities([identity], [content if messages is None else messages])) is None:
            raise BadCellError(f"{self.id_key!r} is no id: {identity!r:.80}")
        if (sources := self._sources([row])) is None:
            raise BadCellError(f"{self.source_key!r} names no source: {row[self.source_key]!r:.80}")
        if (metas := self._metas([row])) is None:
            raise BadCellError("its other columns hold what JSON cannot")
        text = str(content) if messages is None else ""
        return Taken(Document(names[0], text, sources[0], metas[0]), messages)


def _are_texts(contents: list[Any]) -> bool:
    return set(map(type, contents)) <= {str} and all(contents)


def _identities(ids: list[Any], contents: list[Any]) -> list[str] | None:
    """The rows' ids as text, those that are missing made of the content; None where one is no id."""
    kinds = set(map(type, ids))
    if not kinds <= {str, int, type(None)} or "" in ids:
        return None
    if kinds <= {str}:
        return ids
    make = text_id if contents and isinstance(contents[0], str) else messages_id
    return [make(content) if name is None else str(name) for name, content in zip(ids, contents, strict=True)]


def messages_id(messages: Messages) -> str:
    """The id of a conversation that brings none: xxh3-128 of its JSON with sorted keys, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(orjson.dumps(messages, option=orjson.OPT_SORT_KEYS))


def read_messages(cell: Any) -> list[dict[str, str]]:
    """The turns of a conversation, their roles and contents and nothing else of them.

    Raises BadCellError for what is no list of {"role", "content"} with at least one turn.
    """
    if not isinstance(cell, list) or not cell:
        raise BadCellError(f"no list of messages but {type(cell).__name__}" if cell else "no messages")
    messages = []
    for number, turn in enumerate(cell, start=1):
        if not isinstance(turn, dict):
            raise BadCellError(f"message {number} is no object but {type(turn).__name__}")
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or role not in ROLES:
            raise BadCellError(
                f"message {number} has the role {role!r:.40}, not one of {', '.join(sorted(ROLES))}"
            )
        if not isinstance(content, str):
            raise BadCellError(f"message {number} holds no text but {type(content).__name__}")
        messages.append({"role": role, "content": content})
    return messages


def _json_able(metas: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Parquet holds types that JSON lacks (dates, decimals, bytes): those become text."""
    plain: list[Mapping[str, Any]] = orjson.loads(orjson.dumps(metas, default=str))
    return plain
