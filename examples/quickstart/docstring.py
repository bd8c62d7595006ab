"""A docstring taken apart: its name, its parameters, its plain sentences. The explainer's reading glasses."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tpt_megatron.records import Document

MARKUP = (
    (re.compile(r":[a-z:]+:`~?([^`]*)`"), r"\1"),  # :class:`name`
    (re.compile(r"`(\w+)'|``([^`]*)``|`([^`]*)`"), r"\1\2\3"),
    (re.compile(r"(?<![\w*])\*{1,2}(\w[\w.]*)\*{1,2}(?![\w*])"), r"\1"),  # *name*
)
# A full stop ends a sentence where white space and a capital, or a name, follow; not after an abbreviation.
SENTENCE_END = re.compile(
    r"(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.)(?<!cf\.)(?<!\(eg\.)(?<!a\.k\.a\.)(?<=[.!?])\s+(?=[\"'(]?[A-Za-z_])"
)
LIST_ITEM = re.compile(
    r"\s*(?:[-*+o]\s|\d+[.)]\s|>>>|\.\.\.|\.\. |[:@]\w|\w+(?:, ?\w+)*:(?: |$)|[\w., ]+? ?--? )"
)
OLD_SIGNATURE = re.compile(
    r"\"?(?:\w+\.)*\w+ ?\([^)]*\)+ *(?:(?:->|--|:|=) ?[\w \[\],.()]*)?$|\"?(?:\w+\.)*\w+\(.*->"
)
DESCRIPTION = re.compile(
    r"\s*(?:[-*]\s*|[:@]param (?:\w+ )?)?[*`]{0,2}(\w+)[*`]{0,2}(?: *\([^)]*\))? *(?::|--| - ) *(\S.*)"
)


@dataclass(frozen=True)
class Parameter:
    name: str
    default: str | None  # as source text; None: the caller must give it
    star: str = ""  # "*" or "**" where it collects what is left

    @property
    def required(self) -> bool:
        return self.default is None and not self.star


@dataclass(frozen=True)
class Docstring:
    """What a document says, as plain one-line strings without markup."""

    name: str  # without its owner; a module keeps its dots
    owner: str  # the class or module it belongs to; "" for a module
    kind: str  # module, class, function, method or property
    parameters: tuple[Parameter, ...] | None  # None where the first line shows no signature
    gist: str  # the first sentence, without its full stop
    sentences: tuple[str, ...]  # the other sentences in order; `is_whole` says which can be quoted alone
    described: Mapping[str, str]  # parameter -> what a list in the text says of it, without a full stop

    @property
    def own_words(self) -> frozenset[str]:
        """Words that are names here, whatever they mean in English; they keep their capitals."""
        names = {self.name, *self.owner.split("."), *self.name.split(".")}
        return frozenset(names | {p.name for p in self.parameters or ()})


def parse(document: Document) -> Docstring:
    """Take a document of corpus.py apart, whose `meta["kind"]` and form of the first line it relies on."""
    heading, _, body = document.text.partition("\n\n")
    kind = str(document.meta["kind"])
    owner, _, name = document.id.rpartition(".")
    if kind == "module":
        owner, name = "", document.id
    parameters = parse_parameters(heading)
    gist, *rest = list(sentences(body)) or [name]
    names = {p.name for p in parameters or ()}
    return Docstring(
        name, owner, kind, parameters, tidy_gist(gist, name),
        tuple(rest), descriptions(body, names),
    )  # fmt: skip


def parse_parameters(heading: str) -> tuple[Parameter, ...] | None:
    """The parameters that the first line of a document shows."""
    if "(" not in heading:
        return None
    source = "def f" + heading[heading.index("(") :].rstrip() + ": ..."
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + [ast.unparse(d) for d in given.defaults]
    found = [Parameter(a.arg, d) for a, d in zip(positional, defaults, strict=True)]
    found += [Parameter(given.vararg.arg, None, "*")] if given.vararg else []
    named = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    found += [Parameter(a.arg, ast.unparse(d) if d else None) for a, d in named]
    found += [Parameter(given.kwarg.arg, None, "**")] if given.kwarg else []
    return tuple(found)


def plain(text: str) -> str:
    """`text` on one line, without reStructuredText's marks."""
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def prose_blocks(body: str) -> Iterator[str]:
    """The paragraphs of a docstring, cut where a list, a table or code begins."""
    for block in re.split(r"\n\s*\n", body):
        lines: list[str] = []
        for line in block.splitlines():
            if line.startswith((" ", "\t")) or (LIST_ITEM.match(line) and (lines or not is_titled(line))):
                break
            if lines or not OLD_SIGNATURE.match(line):
                lines.append(line)
        if lines:
            yield plain("\n".join(lines))


def is_titled(line: str) -> bool:
    """`name - what it is`, the way in which many a module and widget opens."""
    return re.match(r"[\w./]+ ?(?:--?|:) \w", line) is not None


def sentences(body: str) -> Iterator[str]:
    for block in prose_blocks(body):
        yield from (s.strip() for s in SENTENCE_END.split(block) if s.strip())


def is_whole(sentence: str) -> bool:
    """Whether a sentence can be quoted alone: it ends, is short, and its brackets and quotes are closed."""
    words = sentence.split()
    balanced = sentence.count("(") == sentence.count(")") and sentence.count('"') % 2 == 0
    return (
        5 <= len(words) <= 26
        and sentence.endswith(".")
        and not sentence.endswith(("..", "e.g.", "i.e.", "etc.", "resp."))
        and balanced
        and sentence[0].isalpha()
        and not re.search(
            r"[=<>{}\[\]|\\~]{2}|>>>|::|://|: [A-Z]|\bI\b(?!/)|\bbelow\b|\babove\b|\bfollowing\b", sentence
        )
    )


def tidy_gist(sentence: str, name: str) -> str:
    """The first sentence without its full stop and without the name that some put before it."""
    last = re.escape(name.rpartition(".")[2])
    sentence = re.sub(rf"^(?:[\w.]*{last}(?:\.py)?) ?(?:--?|:) (?=\S)", "", sentence, flags=re.IGNORECASE)
    return sentence.removeprefix("+ ").partition(" --- ")[0].rstrip(".:! ")


def descriptions(body: str, names: set[str]) -> dict[str, str]:
    """What lists in the text say of each parameter: `name: what`, `name -- what`, `:param name: what`."""
    found: dict[str, str] = {}
    for line, following in zip(body.splitlines(), [*body.splitlines()[1:], ""], strict=True):
        match = DESCRIPTION.match(line)
        # A description that runs on into the next line would be quoted cut in half.
        indent, next_indent = (len(text) - len(text.lstrip()) for text in (line, following))
        runs_on = following.strip() and (next_indent > indent or not DESCRIPTION.match(following))
        if match and match[1] in names and (not runs_on or match[2].rstrip().endswith(".")):
            said = plain(match[2]).partition(". ")[0].rstrip(".;, ")
            if (
                2 <= len(said.split()) <= 16
                and said.count("(") == said.count(")")
                and said.count('"') % 2 == 0
            ):
                found.setdefault(match[1], said)
    return found
