"""A rule-based explainer: a thought of 40 to 90 words about one docstring, in the voice of pairs.jsonl.

Every statement comes from the document: from its first line (parameters, defaults) or from a sentence that it
holds, said in simpler words. What the rules add is only the reader's own attitude ("I must plan for it").
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpus import read_documents
from docstring import Docstring, Parameter, parse
from restate import DEMONSTRATIVE, EASY_TO_MISS, notes, restate_gist
from wording import Pick, listing, lower_first, simplify

from tpt_megatron.records import Document

MIN_WORDS, MAX_WORDS = 40, 90
AIMS = ("58", "64", "70", "76", "82")  # words: from there on a thought takes no more details
ENOUGH_WORDS = 52  # from there on it takes no more closing sentences

OPENINGS = {
    "module": ("What is in {name}?", "Let me see what {name} is for.", "So this is the module {name}."),
    "class": ("What is {name}?", "Let me see what {name} is for.", "So this is {name}."),
    "property": ("What does {name} tell me?", "Let me see what {name} is.", "So I look at {name}."),
    "function": ("What does {name} do?", "Let me see what {name} says.", "So this is {name}."),
    "method": ("What does {name} do?", "Let me see what {name} says.", "So this is {name}."),
    "__init__": ("What does __init__ do in {owner}?", "So this is __init__, which sets up {owner}."),
}
CLOSINGS = (
    "I rely on what the text says and on nothing more.",
    "If I need more than this, I would have to read the source or try it out.",
    "The words of the text are all I have to go by, so I stay close to them.",
)
TESTS = (
    "Before I use it, I would try it once on a small case.",
    "I would test it on a small case before I trust my reading.",
    "A small test of my own would show me if I have read it right.",
)


def explain(document: Document) -> str:
    """A thought of MIN_WORDS to MAX_WORDS words: a pure function of the document's id, kind and text."""
    doc, pick = parse(document), Pick(document.id)
    aim = int(pick(AIMS, "aim"))
    parts = [opening(doc, pick), restate_gist(doc, pick)]
    details = list(notes(doc, pick))
    signature = [*parameter_sentences(doc, pick), *described_sentences(doc, pick)]
    leans_on_gist = bool(doc.sentences) and DEMONSTRATIVE.match(doc.sentences[0]) is not None
    if not leans_on_gist and pick(["signature", "details"], "order") == "signature":
        middle = signature + details
    else:
        middle = details[:1] + signature[:1] + details[1:] + signature[1:]
    grow(parts, middle, aim)
    grow(parts, closing_sentences(doc, pick), ENOUGH_WORDS)
    return " ".join(parts)


def grow(parts: list[str], candidates: Sequence[str] | Iterator[str], aim: int) -> None:
    """Append the candidates that still fit, until the thought has `aim` words."""
    for candidate in candidates:
        said = any(part.endswith(EASY_TO_MISS) for part in parts)  # once is enough
        part = candidate.removesuffix(EASY_TO_MISS) if said else candidate
        if count_words(parts) < aim and count_words([*parts, part]) <= MAX_WORDS:
            parts.append(part)


def count_words(parts: Sequence[str]) -> int:
    return sum(len(part.split()) for part in parts)


def opening(doc: Docstring, pick: Pick) -> str:
    """The first words, which name what the thought is about."""
    shapes = OPENINGS["__init__" if doc.name == "__init__" else doc.kind]
    return pick(shapes, "opening").format(name=doc.name, owner=doc.owner.rpartition(".")[2])


def parameter_sentences(doc: Docstring, pick: Pick) -> Iterator[str]:
    """What the signature says: what I must give, what may be left out, what is collected."""
    if doc.parameters is None:
        return
    required = [p.name for p in doc.parameters if p.required]
    optional = [p for p in doc.parameters if p.default is not None]
    if not doc.parameters and doc.kind != "class":
        shapes = ["It takes no arguments.", "I pass it nothing.", "It is called with empty brackets."]
        yield pick(shapes, "none")
    elif 1 <= len(required) <= 4:
        call = "To make one I pass {}." if doc.kind == "class" else "I must pass {}."
        yield pick([call, "It needs {} from me.", "I hand it {}."], "required").format(listing(required))
    elif required:
        yield f"It needs {len(required)} values, from {required[0]} to {required[-1]}."
    if optional:
        yield optional_sentence(optional, pick)
    for parameter in doc.parameters:
        if parameter.star == "*":
            yield f"Any number of further values is collected in {parameter.name}."
        elif parameter.star == "**":
            yield f"Other keywords are collected in {parameter.name}."


def optional_sentence(optional: Sequence[Parameter], pick: Pick) -> str:
    first, names = optional[0], [p.name for p in optional]
    assert first.default is not None
    if len(names) > 4:
        return f"Besides, {len(names)} values, such as {names[0]} and {names[1]}, have defaults."
    if len(names) > 1:
        shapes = ["I may leave out {}.", "There are defaults for {}.", "Not all is needed: I can skip {}."]
        return pick(shapes, "some").format(listing(names))
    if len(first.default) > 16 or " " in first.default or first.default.startswith("_"):
        return f"I may leave out {first.name}, since it has a default."
    shapes = [
        "I may leave out {0}, and then it is {1}.",
        "If I do not give {0}, it is {1}.",
        "By default {0} is {1}.",
    ]
    return pick(shapes, "optional").format(first.name, first.default)


def described_sentences(doc: Docstring, pick: Pick) -> Iterator[str]:
    """What the text's own list says of two parameters at most."""
    for name, said in list(doc.described.items())[:2]:
        shapes = ["For {0} it says: {1}.", "As to {0}: {1}.", "The list explains {0}: {1}."]
        yield pick(shapes, name).format(name, simplify(lower_first(said, doc.own_words)))


def closing_sentences(doc: Docstring, pick: Pick) -> Iterator[str]:
    """For a text that gives little: where the thing lives, what its name says, and what I make of it."""
    owner = doc.owner.rpartition(".")[2]
    if doc.kind in ("method", "property"):
        yield pick([f"It belongs to {owner}, so I look for it there.", f"I find it on {owner}."], "owner")
    elif doc.owner:
        yield pick([f"It lives in the module {doc.owner}.", f"I import it from {doc.owner}."], "owner")
    words = [w.lower() for w in re.findall(r"[A-Z]?[a-z]{2,}|[A-Z]{2,}(?![a-z])", doc.name)]
    if len(words) > 1 and not doc.name.startswith("__"):
        shape = pick(["The name holds a hint: {}.", "I can read the name as words: {}."], "words")
        yield shape.format(listing(words))
    if doc.parameters and not any(p.required for p in doc.parameters):
        yield "Nothing in the first line has to be given, so the shortest call passes nothing at all."
    yield pick(CLOSINGS, "close")
    yield pick(TESTS, "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", type=Path, help="JSON lines that corpus.py wrote")
    parser.add_argument("--limit", type=int, default=5, help="documents to show")
    arguments = parser.parse_args()
    for document in read_documents(arguments.documents)[: arguments.limit]:
        print(f"{document.text}\n\n    {explain(document)}\n")


if __name__ == "__main__":
    main()
