"""Engines: what turns requests into completions. A slot (`thinking.engine`)."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

from tpt_megatron.thinking.request import Completion, Request

ENGINES: Mapping[str, str] = MappingProxyType(
    {"transformers": "tpt_megatron.thinking.engines.transformers:TransformersEngine"}
)


class Engine(Protocol):
    """A generator that is ready to answer.

    Made as `engine(config, tokenizer)` from a ThinkingConfig and the generator's TextTokenizer.
    """

    generator: str  # the model's name
    revision: str  # which weights stand behind that name
    max_context: int  # tokens of prompt and answer together
    seed_honored: bool  # whether the same request gets the same answer again

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One completion for each request, in any order, each as soon as it is there.

        Requests are taken from the iterable only as there is room for them, so it may be endless. It
        stops at `thinking.think_close` and at end-of-sequence. An answer is cut where prompt and answer
        fill `max_context`; a prompt that fills it alone, or an id outside the vocabulary, is an InputError.
        """
        ...
