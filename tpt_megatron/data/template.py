"""A chat template whose frame is ours and whose contents are not: rendered around placeholders.

Jinja with generation marks, as transformers reads it: `{% generation %}...{% endgeneration %}` surrounds
what carries loss. A message's content never passes through the template, so nothing in it is taken for the
frame; a template that would change contents is refused, since it cannot.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tpt_megatron.errors import ConfigError

# Noncharacters of Unicode: what a template writes holds none.
OPEN, CLOSE = "\ufdd0", "\ufdd1"  # around what carries loss
PLACEHOLDER = "\ufdd2{}\ufdd3"  # the content of message {}
MARKS = re.compile("(\ufdd0|\ufdd1|\ufdd2[0-9]+\ufdd3)")
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
MAX_FRAMES = 1000  # kept
PROBE = (" \n one </think> two \n ", "<think>\n three \n</think>\n\n four \n")


class GenerationMarks(Extension):
    """`{% generation %}` puts OPEN and CLOSE around its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way of naming an extension's tags

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the frame, or the place of message `message`'s content."""

    text: str  # "" of a content
    message: int | None
    trained: bool


@dataclass(frozen=True)
class Template:
    """Jinja text, and the variables beside `messages` that it may use."""

    key: str  # of the config, for errors
    text: str = field(repr=False)
    variables: Mapping[str, str]

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the text, not what was compiled from it."""
        return {part.name: self.__dict__[part.name] for part in fields(self)}

    @cached_property
    def _compiled(self) -> Any:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationMarks, "jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        try:
            return environment.from_string(self.text)
        except TemplateError as error:
            raise ConfigError(f"{self.key}: the chat template does not compile: {error}") from error

    def render(self, roles: Sequence[str], contents: Sequence[str]) -> str:
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        text: str = self._compiled.render(
            **self.variables, messages=messages, tools=None, documents=None, add_generation_prompt=False
        )
        return text

    @cached_property
    def _frames(self) -> dict[tuple[str, ...], list[Piece]]:
        return {}  # by roles, which alone decide a frame; rendering one takes 0.1 ms

    def pieces(self, roles: Sequence[str]) -> list[Piece]:
        """The frame around messages of these roles, in order, each content's place in it once.

        Raises jinja2.TemplateError for roles that the template does not take, and ValueError where a content
        has not one place.
        """
        if (known := self._frames.get(tuple(roles))) is not None:
            return known
        rendered = self.render(roles, [PLACEHOLDER.format(i) for i in range(len(roles))])
        found = list(_split(rendered))
        places = sorted(piece.message for piece in found if piece.message is not None)
        if places != list(range(len(roles))):
            raise ValueError(f"the chat template writes messages {places} of {len(roles)}")
        if len(self._frames) < MAX_FRAMES:
            self._frames[tuple(roles)] = found
        return found

    def check(self) -> None:
        """Refuses a template that has no generation marks, or that does more than to frame contents."""
        if not GENERATION.search(self.text):
            raise ConfigError(
                f"{self.key}: the chat template has no generation marks, so nothing would carry loss",
                expected="{% generation %} and {% endgeneration %} around the assistant's content",
                fix="name one of data/templates, or add the marks",
            )
        roles = ("user", "assistant") * 2
        contents = PROBE * 2
        try:
            pieces = self.pieces(roles)
            direct = MARKS.sub("", self.render(roles, contents))
        except (TemplateError, ValueError, TypeError) as error:
            raise ConfigError(f"{self.key}: the chat template cannot be used: {error}") from error
        framed = "".join(p.text if p.message is None else contents[p.message] for p in pieces)
        if framed != direct:
            raise ConfigError(
                f"{self.key}: the chat template changes what messages say (it trims, or strips thoughts)",
                expected="one that writes every content as it is",
                fix="name one of data/templates",
            )


def _raise(message: str) -> None:
    raise TemplateError(message)


def _split(rendered: str) -> Iterator[Piece]:
    trained = False
    for part in filter(None, MARKS.split(rendered)):
        if part in (OPEN, CLOSE):
            trained = part == OPEN
        elif part[0] == PLACEHOLDER[0]:
            yield Piece("", int(part[1:-1]), trained)
        else:
            yield Piece(part, None, trained)
