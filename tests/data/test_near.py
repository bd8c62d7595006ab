"""Near duplicates against brute force: the Jaccard similarity of the sets of word 5-grams of every pair."""

import re
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tpt_megatron.config.schema import FilterConfig
from tpt_megatron.data import partitions
from tpt_megatron.data.near import (
    PERMUTATIONS,
    _band_keys,
    _components,
    banding,
    check_near_duplicates,
    find_near_duplicates,
    signatures,
)
from tpt_megatron.data.words import ngram_hashes, word_hashes
from tpt_megatron.errors import ConfigError

pytest.importorskip("rensa")
DEFAULT = FilterConfig()
VOCABULARY = [f"word{number}" for number in range(400)]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[place : place + 5]) for place in range(len(words) - 4)}


def jaccard(left: str, right: str) -> float:
    return of_sets(shingles(left), shingles(right))


def of_sets(one: set[tuple[str, ...]], two: set[tuple[str, ...]]) -> float:
    both = len(one & two)
    return both / (len(one) + len(two) - both)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    """200 unlike documents and 100 copies with 0 to 11 words changed, in an order of their own."""
    random = np.random.default_rng(5)
    texts = [" ".join(random.choice(VOCABULARY, int(random.integers(100, 300)))) for _ in range(200)]
    for number in range(100):
        words = texts[number % 70].split()
        for place in random.integers(0, len(words), number % 12).tolist():
            words[place] = "changed"
        texts.append(" ".join(words).title() if number % 2 else ", ".join(words))
    return [texts[place] for place in random.permutation(len(texts)).tolist()]


@pytest.fixture(scope="module")
def similar(corpus: list[str]) -> dict[tuple[int, int], float]:
    """The similarity of each pair of the corpus."""
    sets = [shingles(text) for text in corpus]
    return {pair: of_sets(sets[pair[0]], sets[pair[1]]) for pair in combinations(range(len(sets)), 2)}


def found_in(folder: Path, texts: list[str], chunk: int = 64, similarity: float = 0.8) -> dict[int, int]:
    signed = [signatures(texts[begin : begin + chunk]) for begin in range(0, len(texts), chunk)]
    pairs = find_near_duplicates(folder, lambda: iter(signed), FilterConfig(near_similarity=similarity))
    out: dict[int, int] = {}
    for later, earliest in pairs:
        assert (earliest < later).all()
        out.update(zip(later.tolist(), earliest.tolist(), strict=True))
    assert list(folder.iterdir()) == []
    return out


def test_recall_and_precision_against_brute_force(
    tmp_path: Path, corpus: list[str], similar: dict[tuple[int, int], float]
) -> None:
    """At 0.8: all pairs from 0.88 are joined (39 of 39 from 0.85), 48 of 53 from 0.8, none under 0.65."""
    found = found_in(tmp_path, corpus)
    joined = {pair: found.get(pair[0], pair[0]) == found.get(pair[1], pair[1]) for pair in similar}
    clear = [pair for pair, value in similar.items() if value >= 0.88]
    near = [pair for pair, value in similar.items() if value >= 0.8]
    assert len(clear) > 20
    assert len(near) > len(clear) + 5
    assert all(joined[pair] for pair in clear)
    assert sum(joined[pair] for pair in near) >= 0.85 * len(near)
    for row in found:  # each row that goes is truly like some other one
        assert max(value for pair, value in similar.items() if row in pair) > 0.65
    assert sum(0.4 < value < 0.7 for value in similar.values()) > 10


@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_chunks_and_the_disk_do_not_matter(
    tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    expected = found_in(tmp_path, corpus)
    monkeypatch.setattr(partitions, "BLOCK_RECORDS", 1000)
    for name, value in (
        ("PAIRS_AT_ONCE", 20),
        ("BYTES_AT_ONCE", 3),
        ("BAND_PARTITIONS", 8),
        ("PAIR_PARTITIONS", 8),
    ):
        monkeypatch.setattr(f"tpt_megatron.data.near.{name}", value)
    assert found_in(tmp_path, corpus, chunk) == expected


def test_the_earliest_of_a_chain_stays(tmp_path: Path) -> None:
    """Rows 1 and 5 are unlike, but a chain of near ones joins them; 0 and 3 are near nothing."""
    base = VOCABULARY[:200]
    versions = [" ".join([*("x" * part).split(), *base[part * 9 :]]) for part in range(4)]
    other = [" ".join(reversed(base)), " ".join(VOCABULARY[200:])]
    texts = [other[0], versions[0], versions[2], other[1], versions[1], versions[3]]
    assert jaccard(versions[0], versions[1]) > 0.9
    assert jaccard(versions[0], versions[3]) < 0.88
    assert found_in(tmp_path, texts, similarity=0.88) == {2: 1, 4: 1, 5: 1}


def test_short_and_empty_texts_are_near_their_equals_only(tmp_path: Path) -> None:
    texts = ["", "one two", "One two", "one two", "", "...", "one two three four five", "six", "...!"]
    assert found_in(tmp_path, texts) == {3: 1, 4: 0}
    assert found_in(tmp_path, texts, chunk=1) == {3: 1, 4: 0}
    assert signatures([]).shape == (0, PERMUTATIONS)
    assert found_in(tmp_path, []) == {}


def test_signatures_estimate_jaccard_and_do_not_depend_on_neighbours(
    corpus: list[str], similar: dict[tuple[int, int], float]
) -> None:
    signed = signatures(corpus)
    assert signed.shape == (300, PERMUTATIONS)
    assert signed.dtype == np.uint32
    assert np.array_equal(signed[40:50], signatures(corpus[40:50]))
    errors = [
        float((signed[left] == signed[right]).mean()) - value
        for (left, right), value in similar.items()
        if value > 0.3
    ]
    assert len(errors) > 50
    assert abs(np.mean(errors)) < 0.03
    assert np.std(errors) < 0.06  # theory: at most 0.044


@pytest.mark.parametrize("similarity", [0.0, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands_find_what_they_promise(similarity: float) -> None:
    bands, rows = banding(similarity)
    assert bands * rows <= PERMUTATIONS
    assert similarity < 0.1 or 1 - (1 - similarity**rows) ** bands >= 0.95
    assert similarity != 0.8 or (bands, rows) == (18, 7)


def test_bands_are_equal_where_all_their_places_are() -> None:
    random = np.random.default_rng(0)
    signed = random.integers(0, 2**32, (3, PERMUTATIONS), dtype=np.uint32)
    signed[1] = signed[0]
    signed[1, [3, 13, 20]] += 1  # bands 0, 1 and 2 of 7 places
    signed[2, 7:14] = signed[0, :7]  # equal, but another band
    keys = _band_keys(signed, 0.8).reshape(3, 18, 2)
    same = keys[0] == keys[1]
    assert same[:, 0].tolist() == same[:, 1].tolist() == [False] * 3 + [True] * 15
    assert len(np.unique(keys[[0, 2], :, 0])) == len(np.unique(keys[[0, 2], :, 1])) == 36


@pytest.mark.parametrize("edges", [0, 1, 30, 60, 120, 1000])
def test_components_against_a_flood(edges: int) -> None:
    random = np.random.default_rng(edges)
    pairs = random.integers(0, 120, (edges, 2))
    near: dict[int, set[int]] = {place: {place} for place in range(120)}
    for left, right in pairs.tolist():
        joined = near[left] | near[right]
        for place in joined:
            near[place] = joined
    assert _components(120, pairs).tolist() == [min(near[place]) for place in range(120)]


def test_words_and_ngrams_against_a_plain_reading() -> None:
    texts = [
        "The  quick, brown fox!",
        "",
        "BROWN the\nQuick—你好吗 x1",
        "e" * 31 + " " + "e" * 33,
        "\ud800 fox",
    ]
    hashes, bounds = word_hashes(texts)
    words = ["the", "quick", "brown", "fox", "brown", "the", "quick—", "你", "好", "吗", "x1", "e" * 31]
    words += ["e" * 32, "\ud800", "fox"]
    assert bounds.tolist() == [0, 4, 4, 11, 13, 15]
    equal = hashes[:, None] == hashes
    assert np.array_equal(equal, np.array([[left == right for right in words] for left in words]))
    assert len(ngram_hashes(hashes[:4], 5)) == 0


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13, 31])
def test_ngrams_are_equal_where_their_words_are(length: int) -> None:
    words: npt.NDArray[np.uint64] = np.random.default_rng(0).integers(0, 2, 60, dtype=np.uint64)
    grams = ngram_hashes(words, length)
    plain = [tuple(words[place : place + length].tolist()) for place in range(61 - length)]
    expected = np.array([[left == right for right in plain] for left in plain])
    assert np.array_equal(grams[:, None] == grams, expected)


def test_without_the_library_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_near_duplicates()
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(
        ConfigError, match=r"near_duplicates needs rensa.*pip install 'tpt-megatron\[dedup\]'"
    ):
        check_near_duplicates()
