"""The job that asks a generator about every document: resumable, with every row accounted for.

OUTPUT/job.json             which job this is; another one is refused
OUTPUT/journal/             finished answers of chunks that are not complete yet
OUTPUT/part-00000.parquet   a complete chunk, in the order of the corpus
OUTPUT/quarantine/rows.jsonl    rows that got no trajectory, and why
OUTPUT/manifest.json        written last: without it the job is not done
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import xxhash

from tpt_megatron.artifact import MANIFEST_SUFFIX, TEMPORARY
from tpt_megatron.config.schema import ThinkingConfig
from tpt_megatron.errors import ConfigError
from tpt_megatron.records import BadRow, Document, Trajectory
from tpt_megatron.slots import resolve
from tpt_megatron.thinking.chunk import Chunk, Numbered, Rejected
from tpt_megatron.thinking.engines import ENGINES, Engine
from tpt_megatron.thinking.identity import check_same, create, describe, exclusive
from tpt_megatron.thinking.ledger import Ledger
from tpt_megatron.thinking.prompt import PromptEncoder, load_prompt
from tpt_megatron.thinking.request import Completion, Request, request_key, request_seed, sampling
from tpt_megatron.thinking.summary import ThinkSummary as ThinkSummary  # part of this interface
from tpt_megatron.thinking.summary import finish, finished
from tpt_megatron.tokenizer import TextTokenizer

SAMPLE = 0  # one trajectory a document
SEEN_BYTES = 16  # of a document's id in the set that finds duplicates


def think(
    documents: Iterable[Document | BadRow], config: ThinkingConfig, progress: Callable[[int, int], None]
) -> ThinkSummary:
    """Write one trajectory per document to `config.output`, going on where an earlier run was stopped.

    `progress` gets the documents settled and the thinking tokens so far, those of earlier runs counted.
    A finished job returns its summary at once. Duplicate ids are found by a set of 16-byte hashes in
    memory, about 100 MB a million documents.

    Raises ConfigError for settings that cannot be or that are not those of the job in the folder,
    InputError for a corpus that changed under the job, DamagedError for files that did.
    """
    for key in ("model", "output"):
        if not getattr(config, key):
            raise ConfigError(f"thinking.{key} is not set", fix=f"give thinking.{key}=...")
    start = time.monotonic()
    folder = Path(config.output)
    prompt, tokenizer = load_prompt(config.prompt), TextTokenizer(config.model)
    settings = describe(config, prompt, tokenizer)
    check_same(folder / "job.json", settings)
    if (folder / MANIFEST_SUFFIX).exists():
        return finished(folder)
    engine: Engine = resolve(config.engine, ENGINES, "thinking.engine")(config, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    create(folder / "job.json", {**settings, "revision": engine.revision})
    with exclusive(folder / "job.json"):
        if (folder / MANIFEST_SUFFIX).exists():  # another process finished it while this one got ready
            return finished(folder)
        for torn in (*folder.glob(f"{TEMPORARY}*"), *folder.glob(f"quarantine/{TEMPORARY}*")):
            torn.unlink()
        job = Job(folder, config, engine, PromptEncoder(tokenizer, prompt, config), progress)
        try:
            job.run(documents)
        finally:
            job.close()
        job.finish(time.monotonic() - start)
    return finished(folder)


class Job:
    """One pass over the corpus: sends what is missing to the engine and settles what comes back."""

    def __init__(
        self,
        folder: Path,
        config: ThinkingConfig,
        engine: Engine,
        encoder: PromptEncoder,
        progress: Callable[[int, int], None],
    ) -> None:
        self.folder, self.config, self.engine, self.encoder = folder, config, engine, encoder
        self.progress = progress
        self.ledger = Ledger()
        self._parts: list[Path] = []
        self._open: list[Chunk] = []
        self._waiting: dict[str, tuple[Chunk, int, Request]] = {}

    def run(self, rows: Iterable[Document | BadRow]) -> None:
        """Settle every row. Raises ConfigError for an engine that does not answer each request once."""
        for completion in self.engine.generate(self._requests(rows)):
            if completion.key not in self._waiting:
                raise ConfigError(f"thinking.engine: {self.config.engine} answered what it was not asked")
            chunk, index, request = self._waiting.pop(completion.key)
            chunk.journal.append(
                {
                    "key": completion.key,
                    "output_ids": completion.output_ids,
                    "finish_reason": completion.finish_reason,
                    "seed_honored": completion.seed_honored,
                }
            )
            chunk.journal.sync()
            self._settle(chunk, index, self._outcome(request, completion))
        if self._waiting:
            raise ConfigError(
                f"thinking.engine: {self.config.engine} left {len(self._waiting)} requests unanswered"
            )

    def finish(self, seconds: float) -> None:
        """Write the quarantine and the manifest of a job of which every row is settled."""
        assert self.ledger.counts["pending"] == 0, self.ledger.counts
        self.ledger.write_quarantine(self.folder / "quarantine" / "rows.jsonl")
        about = {
            **self.ledger.about(),
            "generator": self.engine.generator,
            "revision": self.engine.revision,
            "prompt": self.encoder.prompt.label,
            "sampling": dict(sampling(self.config)),
            "seconds": round(seconds, 3),
        }
        finish(self.folder, self._parts, about)

    def close(self) -> None:
        for chunk in self._open:
            chunk.close()

    def _requests(self, rows: Iterable[Document | BadRow]) -> Iterator[Request]:
        """The requests that no earlier run has answered; what is answered is settled on the way."""
        for chunk in self._chunks(rows):
            self._parts.append(chunk.path)
            if chunk.path.exists():
                for tally in chunk.published():
                    self.ledger.add(tally)
                self._report()
                continue
            self._open.append(chunk)
            answered = {record["key"]: record for record in chunk.journal.records}
            for index, numbered in enumerate(chunk.documents):
                request = self._request(numbered.document)
                if isinstance(request, Rejected):
                    self._settle(chunk, index, request)
                elif record := answered.get(request.key):
                    ids = tuple(record["output_ids"])
                    completion = Completion(request.key, ids, record["finish_reason"], record["seed_honored"])
                    self._settle(chunk, index, self._outcome(request, completion))
                else:
                    self._waiting[request.key] = (chunk, index, request)
                    yield request

    def _chunks(self, rows: Iterable[Document | BadRow]) -> Iterator[Chunk]:
        """The acceptable documents, `documents_per_chunk` at a time; the rest goes to quarantine."""
        seen: set[bytes] = set()
        batch: list[Numbered] = []
        number = 0
        for position, row in enumerate(rows, start=1):
            self.ledger.documents_in += 1
            if isinstance(row, BadRow):
                self.ledger.refuse(position, row.reason, bad=row)
                continue
            if (reason := _unusable(row, seen)) is not None:
                self.ledger.refuse(position, reason, id=row.id)
                continue
            batch.append(Numbered(position, row))
            if len(batch) == self.config.documents_per_chunk:
                yield Chunk(self.folder, number, batch)
                number, batch = number + 1, []
        if batch:
            yield Chunk(self.folder, number, batch)

    def _request(self, document: Document) -> Request | Rejected:
        encoded = self.encoder.encode(document, SAMPLE)
        if len(encoded.ids) >= self.engine.max_context:
            room = f"the generator's context of {self.engine.max_context}"
            return Rejected(f"a prompt of {len(encoded.ids)} tokens leaves no room in {room}")
        prompt_hash = self.encoder.prompt.hash
        engine, config = self.engine, self.config
        return Request(
            key=request_key(document, SAMPLE, prompt_hash, engine.generator, engine.revision, config),
            document=document,
            sample=SAMPLE,
            prompt_ids=encoded.ids,
            max_new_tokens=config.max_new_tokens,
            seed=request_seed(config.seed, document.id, SAMPLE),
            document_tokens=encoded.document_tokens,
            truncated=encoded.truncated,
        )

    def _outcome(self, request: Request, completion: Completion) -> Trajectory | Rejected:
        """The row of an answer. The generator may open the thought itself: that tag is not part of it."""
        stopped = completion.finish_reason == "stop"
        ids = completion.output_ids[:-1] if stopped else completion.output_ids
        text = self.encoder.tokenizer.decode(ids)
        if text.lstrip().startswith(self.config.think_open):
            text = text.lstrip().removeprefix(self.config.think_open)
        thinking = text.strip("\n")
        if not thinking.strip():
            return Rejected("the generator's thought is empty")
        document = request.document
        return Trajectory(
            id=document.id,
            sample=request.sample,
            text=document.text,
            thinking=thinking,
            finish_reason=completion.finish_reason,
            prompt=self.encoder.prompt.label,
            generator=self.engine.generator,
            revision=self.engine.revision,
            seed=request.seed,
            seed_honored=completion.seed_honored,
            document_tokens=request.document_tokens,
            thinking_tokens=len(ids),
            truncated=request.truncated,
            source=document.source,
            meta=json.dumps(dict(document.meta), sort_keys=True),
        )

    def _settle(self, chunk: Chunk, index: int, outcome: Trajectory | Rejected) -> None:
        self.ledger.add(chunk.place(index, outcome))
        if chunk.complete:
            chunk.publish()
            self._open.remove(chunk)
        self._report()

    def _report(self) -> None:
        self.progress(self.ledger.settled, self.ledger.thinking_tokens)


def _unusable(document: Document, seen: set[bytes]) -> str | None:
    """Why a document cannot be asked about, None where it can; its id then joins `seen`."""
    if not document.text.strip():
        return "the text is empty"
    try:
        identity = xxhash.xxh3_128_digest(document.id.encode())
        (document.text + document.source).encode()
    except UnicodeEncodeError as error:
        return f"not valid Unicode: {error.reason} at character {error.start}"
    assert len(identity) == SEEN_BYTES
    if identity in seen:
        return f"duplicate id {document.id!r}"
    seen.add(identity)
    return None
