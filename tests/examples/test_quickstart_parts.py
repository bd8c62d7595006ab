"""The quickstart's own parts: corpus, explainer, pairs and tokenizer, run as scripts and in process."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tpt_megatron.artifact import read_manifest, verify_manifest
from tpt_megatron.config.schema import DataConfig, ThinkingConfig
from tpt_megatron.data.compose import build_recipe, compose
from tpt_megatron.errors import InputError
from tpt_megatron.records import TRAJECTORY_SCHEMA, Document
from tpt_megatron.thinking.prompt import PromptEncoder, load_prompt
from tpt_megatron.tokenizer import TextTokenizer

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
sys.path.insert(0, str(QUICKSTART))

import corpus  # noqa: E402
import docstring  # noqa: E402
import explain  # noqa: E402
import pairs  # noqa: E402
import tokenizer  # noqa: E402

SPLITS = ("generator", "train", "heldout")
WRAP = Document(
    "textwrap.shorten",
    "textwrap.shorten(text, width, **kwargs)\n\n"
    "Collapse and truncate the given text to fit in the given width.\n\n"
    "The text first has its whitespace collapsed.  If it then fits in\n"
    "the *width*, it is returned as is.  Otherwise, as many words\n"
    "as possible are joined and then the placeholder is appended.",
    "stdlib",
    {"module": "textwrap", "kind": "function"},
)
SENDFILE = Document(
    "asyncio.base_events.BaseEventLoop.sendfile",
    "asyncio.base_events.BaseEventLoop.sendfile(transport, file, offset=0, count=None, *, "
    "fallback=True)\n\nSend a file to transport.\n\nReturn the total number of bytes which were sent.\n\n"
    "Raise SendfileNotAvailableError if the system does not support\nsendfile syscall and fallback "
    "is False.",
    "stdlib",
    {"module": "asyncio.base_events", "kind": "method"},
)
COMPLEX = Document(
    "numbers.Complex",
    "class numbers.Complex\n\nComplex defines the operations that work on the builtin complex type.\n\n"
    "In short, those are: a conversion to complex, .real, .imag, +, -,\n*, /, **, abs(), ==, and !=.",
    "stdlib",
    {"module": "numbers", "kind": "class"},
)


def script(name: str, *arguments: object) -> str:
    command = [sys.executable, str(QUICKSTART / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the three scripts write, each from its command line."""
    folder = tmp_path_factory.mktemp("scripted")
    script("corpus", folder / "corpus")
    script("tokenizer", folder / "corpus", folder / "tokenizer")
    script("pairs", folder / "corpus", folder / "pairs", "--tokenizer", folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same once more, in this process, whose string hashes are seeded otherwise."""
    folder = tmp_path_factory.mktemp("in_process")
    corpus.write_corpus(folder / "corpus", corpus.Splits())
    tokenizer.write_tokenizer(folder / "corpus", pairs.PAIRS, folder / "tokenizer", 2048)
    documents = corpus.read_documents(folder / "corpus" / "generator.jsonl")
    both = [*pairs.pairs_by_hand(pairs.PAIRS), *pairs.pairs_by_rules(documents)]
    text_tokenizer = TextTokenizer(str(folder / "tokenizer"))
    pairs.write_trajectories(folder / "pairs", pairs.trajectories(both, 8, text_tokenizer))
    return folder


@pytest.fixture(scope="module")
def documents(scripted: Path) -> dict[str, list[Document]]:
    return {name: corpus.read_documents(scripted / "corpus" / f"{name}.jsonl") for name in SPLITS}


@pytest.fixture(scope="module")
def everything(documents: dict[str, list[Document]]) -> list[Document]:
    return [document for name in SPLITS for document in documents[name]]


@pytest.fixture(scope="module")
def rows(scripted: Path) -> list[dict[str, object]]:
    return pq.read_table(scripted / "pairs" / "part-00000.parquet").to_pylist()


@pytest.fixture(scope="module")
def text_tokenizer(scripted: Path) -> TextTokenizer:
    return TextTokenizer(str(scripted / "tokenizer"))


def body(text: str) -> str:
    return " ".join(text.partition("\n\n")[2].lower().split())


@pytest.mark.parametrize(
    "name",
    [
        *(f"corpus/{name}.jsonl" for name in SPLITS),
        *("corpus/manifest.json", "tokenizer/tokenizer.json", "tokenizer/manifest.json"),
        *("pairs/part-00000.parquet", "pairs/manifest.json"),
    ],
)
def test_two_runs_write_the_same_bytes(scripted: Path, in_process: Path, name: str) -> None:
    assert (scripted / name).read_bytes() == (in_process / name).read_bytes()


@pytest.mark.parametrize("kind", ["corpus", "tokenizer"])
def test_manifest_covers_the_folder(scripted: Path, kind: str) -> None:
    manifest = verify_manifest(scripted / kind / "manifest.json")
    assert manifest.kind == kind
    assert {*manifest.files, "manifest.json"} == {path.name for path in (scripted / kind).iterdir()}


def test_corpus_is_large_and_its_splits_are_disjoint(documents: dict[str, list[Document]]) -> None:
    sizes = {name: len(split) for name, split in documents.items()}
    assert sizes["train"] == 600
    assert sizes["heldout"] == 100
    assert sizes["generator"] > 600
    assert sum(sizes.values()) >= 2000
    everything = [document for split in documents.values() for document in split]
    assert len({document.id for document in everything}) == len(everything)
    assert len({body(document.text) for document in everything}) == len(everything)


def test_documents_are_prose_about_public_names(everything: list[Document]) -> None:
    for document in everything:
        heading = document.text.splitlines()[0]
        assert document.id in heading
        assert document.text.isascii()
        assert 20 <= len(document.text.split()) <= 180
        assert document.source == "stdlib"
        assert document.id.startswith(document.meta["module"])
        private = [p for p in document.id.split(".") if p.startswith("_") and not p.endswith("__")]
        assert not private
        assert not {"test", "tests", "idlelib", "encodings"} & set(document.id.split(".")[:-1])


def test_splits_mix_the_modules(documents: dict[str, list[Document]]) -> None:
    assert all(len({d.meta["module"].partition(".")[0] for d in documents[name]}) > 30 for name in SPLITS)


LIBRARY = '''"""A module whose text is long enough to be kept, as it holds more words than the least asked."""
raise SystemExit("imported")
if True:
    def shown(a, /, b: int = 2, *rest, c=None, **others) -> str:
        """Return something that is said in so many plain words that this text becomes a document of ours."""
def _hidden(a):
    """Return something that is said in so many plain words, yet it stays out, because it is hidden."""
class Box:
    """A box that holds things, with enough plain words about it to become one document here."""
    def __init__(self, size, *, lid=True): ...
    @classmethod
    def make(cls, size):
        """Make a box of that size, said once more with enough plain words to become a document of ours."""
    @staticmethod
    def fold(paper):
        """Fold a paper so that it becomes a box, said with enough plain words to become one more document."""
    @property
    def size(self):
        """The size of the box, in the unit that its maker had in mind, said with enough plain words here."""
    def copy(self):
        """A box that holds things, with enough plain words about it to become one document here."""
    def table(self):
        """0x01 0x02 0x03 0x04 0x05 0x06 0x07 0x08 0x09 0x0a 0x0b 0x0c 0x0d 0x0e 0x0f 0x10 0x11 0x12"""
'''


def test_modules_are_parsed_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text(LIBRARY)
    (tmp_path / "odd-name.py").write_text(LIBRARY)
    (tmp_path / "_pydecimal.py").write_text(LIBRARY)
    (tmp_path / "_private.py").write_text(LIBRARY)
    monkeypatch.setattr(corpus, "MIN_DOCUMENTS", 1)
    found = {d.id: (d.text.splitlines()[0], d.meta["kind"]) for d in corpus.collect(tmp_path)}
    assert found == {
        "decimal": ("module decimal", "module"),
        "decimal.shown": ("decimal.shown(a, /, b: int=2, *rest, c=None, **others) -> str", "function"),
        "decimal.Box": ("class decimal.Box(size, *, lid=True)", "class"),
        "decimal.Box.make": ("decimal.Box.make(size)", "method"),
        "decimal.Box.fold": ("decimal.Box.fold(paper)", "method"),
        "decimal.Box.size": ("property decimal.Box.size", "property"),
    }


def test_a_library_without_docstrings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("def bare(): ...\n")
    with pytest.raises(InputError, match="got 0, expected at least 1000"):
        corpus.collect(tmp_path)


def test_splits_that_leave_nothing_are_refused(everything: list[Document]) -> None:
    with pytest.raises(InputError, match="lower --train or --heldout"):
        corpus.split(everything[:100], corpus.Splits(train=40, heldout=11))


@pytest.mark.parametrize(
    ("document", "mentioned"),
    [
        (WRAP, ["shorten", "text and width", "kwargs", "collapse", "truncate"]),
        (SENDFILE, ["sendfile", "transport and file", "offset, count and fallback", "total number of bytes",
                    "it raises SendfileNotAvailableError if"]),
        (COMPLEX, ["Complex", "Complex defines the operations"]),
    ],
    ids=["function", "method", "class"],
)  # fmt: skip
def test_explanation_names_the_thing_its_parameters_and_its_errors(
    document: Document, mentioned: list[str]
) -> None:
    thought = explain.explain(document).replace("It raises", "it raises")
    assert [words for words in mentioned if words not in thought] == []


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Return True if it is so, False otherwise.", "if it is so, and False if not."),
        ("Return the number of items.", "the number of items."),
        ("Parse the file and return a tree.", "It parses the file and returns a tree."),
        ("Creates a new window.", "creates a new window."),
        ("A list of names.", "it is a list of names."),
        ("Base class for all servers.", "It is a base class for all servers."),
        ("spam -> eggs.", '"spam -> eggs".'),
    ],
)
def test_first_sentences_are_said_in_other_words(sentence: str, expected: str) -> None:
    text = f"mod.f()\n\n{sentence} And more words."
    thought = explain.explain(Document("mod.f", text, "", {"module": "mod", "kind": "function"}))
    assert expected.lower() in thought.lower()


def test_explanations_have_40_to_90_words_and_vary(everything: list[Document]) -> None:
    chosen = random.Random(0).sample(everything, 200)
    thoughts = [explain.explain(document) for document in chosen]
    assert thoughts == [explain.explain(document) for document in chosen]
    assert [t for t in thoughts if not 40 <= len(t.split()) <= 90] == []
    assert [t for t in thoughts if not t.isascii() or not t.endswith(".") or "  " in t or " . " in t] == []
    assert len({" ".join(re.split(r"(?<=[.?]) ", t)[1].split()[:3]) for t in thoughts}) >= 30
    assert len({t[:8] for t in thoughts}) >= 4
    assert {t.count("That is easy to miss.") for t in thoughts} == {0, 1}


def test_explanations_name_nothing_that_the_document_does_not(everything: list[Document]) -> None:
    """Numbers, names with capitals inside or underscores, and errors must stand in the document's text."""
    for document in everything:
        thought = re.sub(r"\b\d+ values", "", explain.explain(document))  # counted in the signature
        names = re.findall(r"\w*[_\d]\w*|\w+[a-z][A-Z]\w*|\b[A-Z]{2,}\b", thought)
        assert [name for name in names if name not in document.text] == [], (document.text, thought)
        assert docstring.parse(document).name in thought


def test_defaults_come_from_the_signature() -> None:
    parameters = docstring.parse_parameters("f(a, b='x', *rest, c=None, **others) -> str")
    assert parameters is not None
    assert [(p.name, p.default, p.star, p.required) for p in parameters] == [
        ("a", None, "", True),
        ("b", "'x'", "", False),
        ("rest", None, "*", False),
        ("c", "None", "", False),
        ("others", None, "**", False),
    ]


def test_heldout_text_leaks_into_no_training_pair(
    documents: dict[str, list[Document]], rows: list[dict[str, object]]
) -> None:
    kept_out = {body(d.text) for name in ("heldout", "train") for d in documents[name]}
    assert len(kept_out) == 700
    assert kept_out.isdisjoint(body(str(row["text"])) for row in rows)
    by_rules = sorted((str(row["id"]), row["sample"]) for row in rows if row["generator"] != "hand")
    assert by_rules == sorted((document.id, 0) for document in documents["generator"])


def test_pairs_are_finished_trajectories(
    scripted: Path, rows: list[dict[str, object]], text_tokenizer: TextTokenizer
) -> None:
    table = pq.read_table(scripted / "pairs" / "part-00000.parquet")
    assert table.schema.remove_metadata() == TRAJECTORY_SCHEMA
    manifest = read_manifest(scripted / "pairs" / "manifest.json", kind="trajectories")
    counts = {"documents_in": len(rows), "out": len(rows), "quarantined": 0, "pending": 0}
    assert manifest.about["counts"] == counts
    by_hand = [row for row in rows if row["generator"] == "hand"]
    written = [json.loads(line) for line in pairs.PAIRS.read_text().splitlines()]
    assert [(row["text"], row["thinking"], row["sample"]) for row in by_hand] == [
        (pair["text"], pair["thinking"], sample) for pair in written for sample in range(8)
    ]
    assert len({(row["id"], row["sample"]) for row in rows}) == len(rows)
    for row in rows[::50]:
        text_ids, thinking_ids = text_tokenizer.encode_plain([str(row["text"]), str(row["thinking"])])
        assert (row["document_tokens"], row["thinking_tokens"]) == (len(text_ids), len(thinking_ids))
        assert (row["finish_reason"], row["prompt"], row["truncated"]) == ("stop", "none", False)


def test_a_line_that_is_no_pair_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"text": "a", "thinking": "b"}\n{"text": "a"}\n')
    with pytest.raises(InputError, match=r"pairs\.jsonl:2: not a pair"):
        pairs.pairs_by_hand(path)


def test_tokenizer_has_its_size_and_control_tokens(text_tokenizer: TextTokenizer) -> None:
    vocabulary = text_tokenizer.hf.get_vocab()
    assert sorted(vocabulary.values()) == list(range(2048))
    assert text_tokenizer.hf.eos_token == "<|endoftext|>"
    controls = {vocabulary[token] for token in ("<|endoftext|>", "<think>", "</think>")}
    assert text_tokenizer.control_ids() == controls
    special = {t.content for t in text_tokenizer.hf.added_tokens_decoder.values() if t.special}
    assert special == {"<|endoftext|>"}


@pytest.mark.parametrize(
    "text",
    ["  two  spaces\n\ttab\r\n", "na\u00efve \u4f60\u597d \U0001f642 \x00", "</think><|endoftext|>", ""],
)
def test_tokenizer_gives_any_text_back(text_tokenizer: TextTokenizer, text: str) -> None:
    ids = text_tokenizer.encode_plain([text])[0]
    assert text_tokenizer.decode(ids) == text
    assert not text_tokenizer.control_ids() & set(ids)


def test_tokenizer_gives_documents_back_and_packs_them(
    text_tokenizer: TextTokenizer, everything: list[Document]
) -> None:
    texts = [document.text for document in everything]
    ids = text_tokenizer.encode_plain(texts)
    assert [text_tokenizer.decode(i) for i in ids] == texts
    assert sum(map(len, texts)) / sum(map(len, ids)) > 2.5


def test_prompt_is_the_beginning_of_a_packed_sequence(text_tokenizer: TextTokenizer) -> None:
    thought = "What does this do?\nIt tests."
    text_ids, thinking_ids = text_tokenizer.encode_plain([WRAP.text, thought])
    recipe = build_recipe(DataConfig(style="think_tags"), text_tokenizer)
    sequence = compose(recipe, text_ids, thinking_ids).ids.tolist()
    prompt = PromptEncoder(text_tokenizer, load_prompt("back-thinking"), ThinkingConfig()).encode(WRAP, 0).ids
    assert sequence[: len(prompt)] == list(prompt)
    assert text_tokenizer.decode(sequence[len(prompt) :]) == f"{thought}\n</think><|endoftext|>"


@pytest.mark.parametrize(
    ("texts", "size", "problem"),
    [(["a b"], 100, "expected at least 259"), (["a b a b"], 400, "too few for --vocab-size")],
)
def test_a_vocabulary_that_cannot_be_is_refused(texts: list[str], size: int, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        tokenizer.train_tokenizer(iter(texts), size)


def test_tokenizer_overwrites_nothing(scripted: Path) -> None:
    with pytest.raises(InputError, match="something already"):
        tokenizer.write_tokenizer(scripted / "corpus", pairs.PAIRS, scripted / "tokenizer", 2048)


def test_explain_shows_thoughts(scripted: Path) -> None:
    shown = script("explain", scripted / "corpus" / "heldout.jsonl", "--limit", 2)
    held_out = corpus.read_documents(scripted / "corpus" / "heldout.jsonl")
    assert all(explain.explain(document) in shown for document in held_out[:2])
