"""The quickstart's corpus: the documentation that every Python brings along, one document a docstring.

The standard library is parsed, never imported. Three disjoint splits come out: `generator.jsonl` to train the
generator of thoughts on, `train.jsonl` to think about, `heldout.jsonl` to measure on.
"""

import argparse
import ast
import copy
import inspect
import json
import platform
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from tpt_megatron.artifact import manifest_of_files, write_manifest, write_text
from tpt_megatron.errors import InputError
from tpt_megatron.records import Document

MIN_DOCUMENTS = 1000
MIN_WORDS, MAX_WORDS = 20, 180  # of the whole text, its first line included
MIN_BODY_WORDS = 12  # of the docstring: a long signature over one short line gives no food for thought
MIN_PROSE = 0.6  # share of the docstring's words that are plain English words: tables and doctests have less

# Not documentation of the library: tests, demos, other people's packages, generated tables.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "site-packages", "dist-packages"}
    | {"ensurepip", "__phello__", "__pycache__", "lib-dynload"}
)
# Modules written in Python behind a public name; the library itself documents them under that name.
PUBLIC_MODULES: Mapping[str, str] = {
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "_threading_local": "threading",
    "_weakrefset": "weakref",
}
PLAIN_WORD = re.compile(r"[(\"']?[A-Za-z][a-z]*(?:[-'][a-z]+)*[)\"']?[.,;:!?]?")


@dataclass(frozen=True)
class Splits:
    """How many documents each named split takes; the generator's split is the rest."""

    train: int = 600
    heldout: int = 100


def source_files(library: Path) -> Iterator[tuple[str, Path]]:
    """Every module of the library as (public dotted name, file), sorted by path."""
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts) or not all(p.isidentifier() for p in parts):
            continue
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        name = ".".join([PUBLIC_MODULES.get(parts[0], parts[0]), *parts[1:]])
        if is_public(name):
            yield name, path


def is_public(name: str) -> bool:
    """No part of the dotted name is private; names such as `__enter__` are documented, so public."""
    return not any(
        p.startswith("_") and not (p.startswith("__") and p.endswith("__")) for p in name.split(".")
    )


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef, kind: str) -> str:
    """`(a, b=1) -> int` on one line, without `self` where the caller does not pass it."""
    arguments = copy.deepcopy(node.args)
    decorators = {ast.unparse(d) for d in node.decorator_list}
    if kind == "method" and "staticmethod" not in decorators:
        first = arguments.posonlyargs or arguments.args
        del first[:1]
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(arguments)}){result}"


def title(name: str, kind: str, node: ast.AST) -> str:
    """The first line of a document: what it is about, as a caller would write it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"property {name}" if kind == "property" else name + signature(node, kind)
    if isinstance(node, ast.ClassDef):
        makers = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        return f"class {name}" + (signature(makers[0], "method") if makers else "")
    return f"module {name}"


def kind_of(node: ast.AST, inside_class: bool) -> str:
    if isinstance(node, ast.Module):
        return "module"
    if isinstance(node, ast.ClassDef):
        return "class"
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    decorators = {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}
    if decorators & {"property", "cached_property", "setter", "deleter"}:
        return "property"
    return "method" if inside_class else "function"


def definitions(
    node: ast.AST, name: str, inside_class: bool = False
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, bool]]:
    """Public functions and classes under `node` in source order, also those behind an `if` or a `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            qualified = f"{name}.{child.name}"
            if is_public(child.name):
                yield qualified, child, inside_class
                if isinstance(child, ast.ClassDef):
                    yield from definitions(child, qualified, inside_class=True)
        elif isinstance(child, ast.If | ast.Try):
            yield from definitions(child, name, inside_class)


def module_documents(name: str, path: Path) -> Iterator[Document]:
    """One document for each docstring of the module that reads as English prose."""
    tree = ast.parse(path.read_bytes(), filename=str(path))
    nodes = [(name, tree, False), *definitions(tree, name)]
    for qualified, node, inside_class in nodes:
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None:
            continue
        kind = kind_of(node, inside_class)
        text = f"{title(qualified, kind, node)}\n\n{inspect.cleandoc(docstring).strip()}"
        if is_prose(text):
            yield Document(qualified, text, "stdlib", {"module": name, "kind": kind})


def is_prose(text: str) -> bool:
    """Whether a document is mostly plain ASCII English, and of a length worth a thought."""
    words = text.partition("\n\n")[2].split()
    enough = len(words) >= MIN_BODY_WORDS and MIN_WORDS <= len(text.split()) <= MAX_WORDS
    if not enough or not text.isascii():
        return False
    return sum(PLAIN_WORD.fullmatch(w) is not None for w in words) >= MIN_PROSE * len(words)


def collect(library: Path) -> list[Document]:
    """All documents of the library, each id and each docstring once (the first wins).

    Raises InputError below MIN_DOCUMENTS: then the library was stripped of its docstrings or its sources.
    """
    documents: dict[str, Document] = {}
    bodies: set[str] = set()
    for name, path in source_files(library):
        for document in module_documents(name, path):
            body = " ".join(document.text.partition("\n\n")[2].lower().split())
            if document.id not in documents and body not in bodies:
                documents[document.id] = document
                bodies.add(body)
    if len(documents) < MIN_DOCUMENTS:
        raise InputError(
            f"{library}: too few docstrings in this Python's standard library",
            got=len(documents), expected=f"at least {MIN_DOCUMENTS}",
            fix="use a Python 3.12 whose standard library is installed as .py files",
        )  # fmt: skip
    return list(documents.values())


def split(documents: Sequence[Document], splits: Splits) -> dict[str, list[Document]]:
    """Disjoint splits in an order that depends on the ids alone.

    Raises InputError where the named splits leave the generator less than half of the documents.
    """
    if splits.train + splits.heldout > len(documents) // 2:
        raise InputError(
            "the splits leave too little to train the generator on",
            got=f"{splits.train} + {splits.heldout} of {len(documents)} documents",
            expected="at most half of them", fix="lower --train or --heldout",
        )  # fmt: skip
    order = sorted(documents, key=lambda d: (xxhash.xxh3_128_hexdigest(d.id.encode()), d.id))
    held, train = splits.heldout, splits.heldout + splits.train
    return {"heldout": order[:held], "train": order[held:train], "generator": order[train:]}


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """Write JSON lines `{"id", "text", "source", "meta"}` atomically."""
    rows = ({"id": d.id, "text": d.text, "source": d.source, "meta": dict(d.meta)} for d in documents)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_documents(path: Path) -> list[Document]:
    """The documents that `write_documents` wrote."""
    return [Document(**json.loads(line)) for line in path.read_text().splitlines()]


def write_corpus(output: Path, splits: Splits) -> dict[str, int]:
    """Write the three splits and the manifest into `output`; the number of documents of each split."""
    parts = split(collect(Path(sysconfig.get_path("stdlib"))), splits)
    for name, documents in parts.items():
        write_documents(output / f"{name}.jsonl", documents)
    counts = {name: len(documents) for name, documents in parts.items()}
    about = {"counts": {**counts, "documents": sum(counts.values())}, "python": platform.python_version()}
    write_manifest(output / "manifest.json", manifest_of_files(output, "corpus", about))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder for the three splits and their manifest")
    parser.add_argument("--train", type=int, default=Splits.train, help="documents to think about")
    parser.add_argument("--heldout", type=int, default=Splits.heldout, help="documents to measure on")
    arguments = parser.parse_args()
    counts = write_corpus(arguments.output, Splits(arguments.train, arguments.heldout))
    print(
        f"corpus: {', '.join(f'{n} {count}' for n, count in counts.items())} documents -> {arguments.output}"
    )


if __name__ == "__main__":
    main()
