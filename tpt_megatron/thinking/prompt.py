"""What the generator is asked about a document: the prompt's text, and its ids in the chat template.

Prompts and settings: paper, section 2 (default), A.3 (random focus), section 5 (back-thinking).
"""

import difflib
import hashlib
import random
import re
from dataclasses import dataclass
from pathlib import Path

from tpt_megatron.config.schema import ThinkingConfig
from tpt_megatron.errors import ConfigError, InputError
from tpt_megatron.records import Document, stable_hash
from tpt_megatron.tokenizer import TextTokenizer

PROMPTS = Path(__file__).parent / "prompts"
PLACEHOLDER = re.compile(r"\{(document|prefix|suffix)\}")
SENTINEL = "TPT-CONTENT-b1c6f1f4e0"  # stands for the content while a chat template is rendered


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text with `{document}`, or with `{prefix}` and `{suffix}` around a random reading position."""

    name: str
    text: str

    @property
    def hash(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def label(self) -> str:
        """What a trajectory's `prompt` column holds: the name and the first 16 digits of the hash."""
        return f"{self.name}-{self.hash[:16]}"

    def render(self, document: str, id: str, sample: int, seed: int) -> str:
        """The text with `document` put in; the reading position is a pure function of (seed, id, sample).

        The paper does not say where a split may fall: here before any character, or at the end.
        """
        draw = random.Random(stable_hash("reading position", seed, id, sample))
        split = draw.randint(0, len(document))
        values = {"document": document, "prefix": document[:split], "suffix": document[split:]}
        # One pass: a placeholder that stands inside the document is text and stays as it is.
        return PLACEHOLDER.sub(lambda match: values[match[1]], self.text)


def load_prompt(name_or_path: str) -> Prompt:
    """A prompt of `thinking/prompts` by its name, or one of the user's by the path of a text file.

    Raises InputError for one that is not there or that does not hold the document.
    """
    path = PROMPTS / f"{name_or_path}.txt"
    if not path.is_file():
        path = Path(name_or_path)
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        names = sorted(p.stem for p in PROMPTS.glob("*.txt"))
        near = difflib.get_close_matches(name_or_path, names, n=1)
        raise InputError(
            f"thinking.prompt: cannot read a prompt ({type(error).__name__})",
            got=repr(name_or_path),
            expected=f"one of {', '.join(names)}, or the path of a text file",
            fix=f"did you mean '{near[0]}'?" if near else None,
        ) from error
    found = sorted(PLACEHOLDER.findall(text))
    if found not in (["document"], ["prefix", "suffix"]):
        raise InputError(
            f"thinking.prompt: {path} must hold the document once",
            got=f"the placeholders {found}",
            expected="{document}, or {prefix} and {suffix}",
        )
    return Prompt(path.stem, text)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Ids of the whole prompt; `document_tokens` counts what was left of the document after the cut."""

    ids: tuple[int, ...]
    document_tokens: int
    truncated: bool


class PromptEncoder:
    """Encodes documents for one generator: cut, put into the prompt, put into the chat template.

    The template is rendered once, around a sentinel, and its two halves are encoded with control
    tokens; the content between them is encoded without, so no document can forge a control id.
    A tokenizer without a chat template gets the content alone.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Prompt, config: ThinkingConfig) -> None:
        self.tokenizer, self.prompt, self.config = tokenizer, prompt, config
        before, after = _chat_frame(tokenizer)
        self.before, self.after = tokenizer.encode_template(before), tokenizer.encode_template(after)

    def encode(self, document: Document, sample: int) -> EncodedPrompt:
        """The prompt about `document`, its document cut to `max_document_tokens` of the generator."""
        ids = self.tokenizer.encode_plain([document.text])[0]
        text, document_tokens = document.text, len(ids)
        truncated = document_tokens > self.config.max_document_tokens
        if truncated:
            text, document_tokens = self._cut(ids)
        content = self.prompt.render(text, document.id, sample, self.config.seed)
        middle = self.tokenizer.encode_plain([content])[0]
        return EncodedPrompt((*self.before, *middle, *self.after), document_tokens, truncated)

    def _cut(self, ids: list[int]) -> tuple[str, int]:
        """The text of the first tokens, and their number."""
        limit = self.config.max_document_tokens
        # A character takes up to four byte tokens: give back those of one that the cut would break.
        for kept in range(limit, max(limit - 4, 0), -1):
            text = self.tokenizer.decode(ids[:kept])
            if not text.endswith("\ufffd"):
                return text, kept
        return self.tokenizer.decode(ids[:limit]), limit


def _chat_frame(tokenizer: TextTokenizer) -> tuple[str, str]:
    """What the generator's chat template writes before and after a user's message."""
    if tokenizer.hf.chat_template is None:
        return "", ""
    message = [{"role": "user", "content": SENTINEL}]
    text: str = tokenizer.hf.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    halves = text.split(SENTINEL)
    if len(halves) != 2:
        raise ConfigError(
            f"thinking.model: the chat template of {tokenizer.name} must write a user's message once",
            got=f"{len(halves) - 1} times",
        )
    return halves[0], halves[1]
