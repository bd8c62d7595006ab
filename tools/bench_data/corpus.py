"""The corpus of the benchmark, and a 32k byte-level BPE (GPT-2's regex) that is trained on it.

`python corpus.py FOLDER --megabytes 450 150 30 1` writes FOLDER/450.jsonl, its beginnings 150.jsonl, 30.jsonl
and 1.jsonl, FOLDER/tokenizer and FOLDER/about.json. By default the corpus is the English that every
installation has: the docstrings of the installed packages, taken apart into sentences and put together again
at random, in documents of log-normal length. Its sentences recur, which flatters an encoder's cache: compare
with `--corpus FILE.jsonl`, a real one, of which the first distinct documents are taken.

The same packages (or file) give the same bytes. No document has a special token's name in it, since peers
make that name the token: where they differ from us on purpose, equal bytes would show nothing.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END, SPECIAL = "<|endoftext|>", ("<|endoftext|>", "<think>", "</think>")
VOCABULARY = 32_000
TRAINING_MB = 10  # of text: 10 s of one core
POOL_CHARACTERS = 12 * 10**6  # of docstrings: 30 s of one core to read
SHORTEST, LONGEST = 300, 32_000  # characters of a document
MEAN_LOG, SPREAD_LOG = 8.2, 1.0  # of its length: the median is 3,600 characters, the mean about 6,000
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\n")
NAMED_SPECIAL = re.compile(r"<\|.*?\|>|</?think>")


def docstrings(folder: Path, characters: int = POOL_CHARACTERS) -> Iterator[str]:
    """The first docstrings of the Python files under `folder`, in the order of their paths."""
    size = 0
    for path in sorted(folder.rglob("*.py")):
        try:
            with warnings.catch_warnings(action="ignore"):  # other people's escape sequences
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, RecursionError, OSError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (
                text := ast.get_docstring(node)
            ):
                size += len(text)
                if size > characters:
                    return
                yield text


def sentences(texts: Iterable[str]) -> list[str]:
    """The distinct sentences of `texts` that are over 20 characters that name no special token, sorted."""
    parts = {part for text in texts for part in SENTENCE_END.split(text) if len(part) > 20}
    return sorted(part for part in parts if not NAMED_SPECIAL.search(part))


def documents(pool: list[str], seed: int) -> Iterator[str]:
    """Documents without end: sentences drawn from `pool`, until the drawn length is reached."""
    drawn = random.Random(seed)
    while True:
        length = min(LONGEST, max(SHORTEST, drawn.lognormvariate(MEAN_LOG, SPREAD_LOG)))
        parts: list[str] = []
        size = 0
        while size < length:
            parts.append(drawn.choice(pool))
            size += len(parts[-1]) + 1
        yield " ".join(parts)


def rows_of(path: Path) -> Iterator[str]:
    """The texts of a JSONL file with a column "text"."""
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)["text"]


def keep(texts: Iterable[str]) -> Iterator[str]:
    """The distinct texts that are not empty and name no special token."""
    seen: set[bytes] = set()
    for text in texts:
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if text and digest not in seen and not NAMED_SPECIAL.search(text):
            seen.add(digest)
            yield text


def write_rows(texts: Iterable[str], path: Path, size: int) -> int:
    """Write {"id", "text"} until the file has `size` bytes; how many rows that took."""
    written = rows = 0
    with path.open("wb") as file:
        for text in texts:
            row = {"id": f"d{rows}", "text": text}
            written += file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            rows += 1
            if written >= size:
                return rows
    raise SystemExit(f"corpus: {path.name} needs {size / 1e6:.0f} MB of documents, found {written / 1e6:.0f}")


def write_beginning(whole: Path, path: Path, size: int) -> None:
    """The first rows of `whole`, as many as reach `size` bytes."""
    written = 0
    with whole.open("rb") as source, path.open("wb") as target:
        while written < size and (line := source.readline()):
            written += target.write(line)


def train_tokenizer(texts: Iterable[str], folder: Path, vocabulary: int = VOCABULARY) -> None:
    """A byte-level BPE in Hugging Face's files; its special tokens are the ids 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def text_megabytes(path: Path) -> float:
    """UTF-8 bytes of the documents of a file, in 10^6: what every rate here counts."""
    return sum(len(text.encode()) for text in rows_of(path)) / 1e6


def build(folder: Path, megabytes: list[int], real: Path | None) -> None:
    """The files of a corpus made on the spot, or of a real one."""
    if real is None:
        pool = sentences(docstrings(Path(sysconfig.get_path("purelib"))))
        texts = documents(pool, seed=0)
        kind = f"{len(pool)} sentences ({sum(map(len, pool)) / 1e6:.0f} MB) of the installed packages'"
        kind += " docstrings, put together at random: each recurs"
    else:
        texts, kind = rows_of(real), f"the first distinct documents of {real}"
    build_files(folder, [size * 10**6 for size in megabytes], texts, kind)


def build_files(
    folder: Path, sizes: list[int], texts: Iterable[str], kind: str, vocabulary: int = VOCABULARY
) -> None:
    """One file of each size in bytes, named by its MB; then the tokenizer, and about.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "about.json").unlink(missing_ok=True)
    files = {size: folder / f"{file_name(size)}.jsonl" for size in sorted(sizes, reverse=True)}
    whole, *shorter = files
    rows = write_rows(keep(texts), files[whole], whole)
    for size in shorter:
        write_beginning(files[whole], files[size], size)
    write_beginning(files[whole], folder / "training.jsonl", TRAINING_MB * 10**6)
    train_tokenizer(rows_of(folder / "training.jsonl"), folder / "tokenizer", vocabulary)
    texts_mb = {file_name(size): text_megabytes(path) for size, path in files.items()}
    about = {"kind": kind, "rows": rows, "text_megabytes": texts_mb}
    (folder / "about.json.new").write_text(json.dumps(about))
    os.replace(folder / "about.json.new", folder / "about.json")


def file_name(size: int) -> str:
    """150000000 is "150"; a test's few bytes keep their number."""
    return str(size // 10**6 if size % 10**6 == 0 else size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, nargs="+", required=True, help="of JSONL")
    parser.add_argument("--corpus", type=Path, help='JSONL with a column "text"')
    options = parser.parse_args()
    build(options.folder, options.megabytes, options.corpus)


if __name__ == "__main__":
    main()
