"""The sampler against its definition in float64."""

import pytest
import torch

from tpt_megatron.thinking.engines import sampling
from tpt_megatron.thinking.engines.sampling import nucleus_floor, sample_tokens


def allowed(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """The distribution by the book: temperature, then the fewest tokens that reach top_p, renormalised."""
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    ranked, order = probabilities.sort(descending=True)
    keep = ranked.cumsum(0) - ranked < top_p
    kept = torch.zeros_like(probabilities).scatter(0, order[keep], ranked[keep])
    return kept / kept.sum()


@pytest.mark.parametrize("vocab", [7, 600])  # 600: more than the nucleus' first guess
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.9), (2.0, 0.5), (1.0, 0.05)])
def test_frequencies_are_those_of_the_definition(vocab: int, temperature: float, top_p: float) -> None:
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(1))
    expected = allowed(logits, temperature, top_p)
    count = 20_000
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids = sample_tokens(logits.expand(count, -1), uniforms, temperature, top_p)
    frequencies = torch.bincount(ids, minlength=vocab) / count
    # Evenly spaced numbers hit an interval of length p within one number at each end.
    torch.testing.assert_close(frequencies.double(), expected, atol=2.0 / count, rtol=0.0)


@pytest.mark.parametrize("guess", [1, 4, 64])
def test_the_floor_does_not_depend_on_the_first_guess(guess: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = torch.tensor([0.0, 0.1, 1.0, 5.0, 20.0])[:, None]  # flat rows leave the guess, peaked ones do not
    probabilities = torch.softmax(scale * torch.randn(5, 64, generator=torch.Generator().manual_seed(2)), -1)
    expected = nucleus_floor(probabilities, 0.9)
    monkeypatch.setattr(sampling, "NUCLEUS_GUESS", guess)
    assert torch.equal(nucleus_floor(probabilities, 0.9), expected)


def test_temperature_zero_is_greedy() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert sample_tokens(logits, torch.tensor([0.99, 0.99]).double(), 0.0, 0.9).tolist() == [1, 0]


def test_a_tiny_temperature_does_not_overflow() -> None:
    logits = torch.tensor([[1000.0, 999.0]])
    assert sample_tokens(logits, torch.tensor([0.5]).double(), 1e-30, 0.9).tolist() == [0]


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_interval_stay_in_the_nucleus(uniform: float) -> None:
    logits = torch.tensor([[-30.0, 1.0, 1.1, -30.0]])
    assert sample_tokens(logits, torch.tensor([uniform]).double(), 1.0, 0.9).item() in (1, 2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_nan_is_marked_and_its_neighbour_is_not(temperature: float) -> None:
    logits = torch.tensor([[0.0, float("nan")], [9.0, -9.0]])
    assert sample_tokens(logits, torch.tensor([0.5, 0.5]).double(), temperature, 1.0).tolist() == [-1, 0]
