"""Words for the explainer: which open a docstring, which have a simpler one, how a sentence takes them in."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

# Imperatives that open docstrings; "its job is to <verb> ..." is right for each of them.
VERBS = frozenset(
    """
    abort accept acquire add adjust adopt advance alter append apply arrange ask assert associate attach
    attempt authenticate begin bind block break build byte-compile cache calculate call cancel cast change
    check choose clean clear close collapse collect combine compare compile compress compute configure
    connect construct control convert copy count create decide declare decode decompress decrement define
    delegate delete dequeue describe deserialize destroy detach determine disable disassemble discard
    dispatch display divide do draw drop dump emit enable encode enqueue ensure enter escape evaluate
    execute exit expand extend extract fail feed fetch fill find finish flash flush fold force format
    generate get give guess handle hash hide identify ignore implement import include increment indicate
    initialize initiate insert inspect install instantiate instruct interpret invoke issue iterate join
    kill launch let list load locate lock log look lookup make manage map mark merge modify move multiply
    open override pack parse pass perform place pop prepare print process produce prompt provide pull push
    put quantize query quote raise re-raise read rebuild recalculate receive record redirect reformat
    register release reload remove rename reopen repeat replace report represent request reset resize
    resolve restore resume retrieve return reveal reverse rotate round route run save scan schedule search
    see seek select send separate serialize set setup shift show shuffle shut signal skip sort specify
    split start stop store subtract summarize support suspend switch take tell test toggle tokenize
    transfer transform translate traverse truncate try turn unbind undo unescape unpack unquote unregister
    unset update upgrade upload use validate verify wait wake walk withdraw wrap write yield
    """.split()  # noqa: SIM905  # a list literal would be 200 lines
)
# Simpler words of the same grammar. A word in quotes, in a dotted name or beside a bracket is left alone.
SIMPLER = {
    "specified": "given", "retrieve": "get", "retrieves": "gets", "obtain": "get", "invoke": "call",
    "invoked": "called", "invokes": "calls", "terminate": "end", "terminates": "ends", "terminated": "ended",
    "construct": "build", "constructs": "builds", "constructed": "built", "instantiate": "make",
    "corresponding": "matching", "prior to": "before", "in order to": "to", "subsequent": "later",
    "additional": "extra", "modify": "change", "modifies": "changes", "modified": "changed",
    "determine": "find out", "determines": "finds out", "contains": "holds", "requires": "needs",
    "attempt to": "try to", "via": "through", "omitted": "left out", "execute": "run",
    "executes": "runs", "executed": "run", "performs": "does", "whether or not": "whether",
    "associated with": "tied to", "equivalent to": "the same as", "e.g.": "for example",
    "i.e.": "that is", "initialize": "set up", "initializes": "sets up", "initialized": "set up",
    "consists of": "is made of", "identical to": "the same as",
    "until": "till", "sufficient": "enough", "purpose": "aim", "entire": "whole",
}  # fmt: skip
SIMPLER_WORD = re.compile(
    r"(?<![\w.'\"`/(-])("
    + "|".join(sorted(map(re.escape, SIMPLER), key=len, reverse=True))
    + r")(?![\w('\"=/-]|\.\w)"
)
PROPER_NAMES = frozenset(
    {"None", "True", "False", "Python", "Unix", "Posix", "Windows", "Tk", "Tcl", "Tix", "Ttk", "Unicode"}
    | {"Decimal", "Boolean", "Mac", "Linux", "Java", "English"}
)


def simplify(text: str) -> str:
    """`text` in simpler words; none is replaced after an article that would no longer fit it."""

    def replace(match: re.Match[str]) -> str:
        new = SIMPLER[match[1]]
        before = text[: match.start()].split()
        article = before[-1].lower() if before else ""
        fits = article not in ("a", "an") or (article == "an") == (new[0] in "aeiou")
        return new if fits and (article, match[1]) != ("for", "e.g.") else match[1]

    return SIMPLER_WORD.sub(replace, text)


def lower_first(text: str, names: frozenset[str]) -> str:
    """`text` to go on inside a sentence: its first letter small, unless that word is a name."""
    word = text.split()[0].strip(",.;:'\"()")
    ordinary = re.fullmatch(r"[A-Z][a-z]+(?:-[a-z]+)?|A", word) and word not in PROPER_NAMES | names
    return text[0].lower() + text[1:] if ordinary else text


def third_person(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x", "o", "z")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


def quoted(text: str) -> str:
    return f'"{text}"' if '"' not in text else f"'{text}'"


def listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


@dataclass(frozen=True)
class Pick:
    """Choices for one document: the same document always gets the same ones."""

    document_id: str

    def __call__(self, options: Sequence[str], label: str) -> str:
        """One of `options`; `label` names the choice, so that choices do not move together."""
        return options[xxhash.xxh3_64_intdigest(f"{self.document_id}|{label}".encode()) % len(options)]
