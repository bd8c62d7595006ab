"""Engines for the tests, named in `thinking.engine` as `thinking_engines:NAME`."""

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import ClassVar

from tpt_megatron.config.schema import ThinkingConfig
from tpt_megatron.thinking.request import Completion, Request
from tpt_megatron.tokenizer import TextTokenizer


class PowerCut(BaseException):
    """What no code under test can mean to catch."""


class EchoEngine:
    """Answers with letters drawn from the request's seed, five requests at a time and out of order."""

    seed_honored = True
    asked: ClassVar[list[str]] = []  # keys that were answered
    cut_after: ClassVar[int | None] = None  # answers before the power is cut
    revision = "r1"
    max_context = 200

    def __init__(self, config: ThinkingConfig, tokenizer: TextTokenizer) -> None:
        self.generator = config.model
        self.letters = tokenizer.encode_plain(["abcdefghijklmnopqrstuvwxyz"])[0]
        self.newline = tokenizer.encode_plain(["\n"])[0]
        self.open = tokenizer.control_id(config.think_open, "thinking.think_open")
        self.close = tokenizer.control_id(config.think_close, "thinking.think_close")

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        incoming = iter(requests)
        while window := list(islice(incoming, 5)):
            for request in reversed(window):
                if self.cut_after is not None and len(self.asked) >= self.cut_after:
                    raise PowerCut
                self.asked.append(request.key)
                yield self._answer(request)

    def _answer(self, request: Request) -> Completion:
        if "EMPTY" in request.document.text:
            return Completion(request.key, (self.open, *self.newline, self.close), "stop", True)
        draw = random.Random(request.seed)
        ids = tuple(draw.choices(self.letters, k=draw.randint(1, 6)))
        if draw.random() < 0.3:
            return Completion(request.key, ids, "length", True)
        return Completion(
            request.key, (self.open, *self.newline, *ids, *self.newline, self.close), "stop", True
        )


class ForgetfulEngine(EchoEngine):
    """Leaves the last request of every five unanswered."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        incoming = iter(requests)
        while window := list(islice(incoming, 5)):
            yield from map(self._answer, window[:-1])
