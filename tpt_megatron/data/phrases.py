"""Filters that look for fixed strings in thoughts: tags, refusals, the generator's own instruction."""

import re
from typing import TYPE_CHECKING

from tpt_megatron.config.schema import FilterConfig

if TYPE_CHECKING:
    from tpt_megatron.data.filters import Row

CANNOT = r"i(?: ?can(?:no|')?t| can not|(?: a|')m (?:not able|unable) to| won't| will not)"
# What a refusal refuses; "I can't see why the sum converges" and "I cannot help but notice" are thoughts.
SERVICE = (
    r"(?:help (?:with|you)|assist|comply|fulfill?|provide|engage|discuss|support|participate|generate"
    r"|access)\b"
)
# At the very start of a thought, after blanks and marks; case does not count.
REFUSAL = re.compile(
    r"[\s\"'*#>_-]*(?:"
    rf"(?:i'm |i am )?(?:very |really |so )?sorry[,.]?(?: but)? (?:{CANNOT}|as an ai)\b"
    rf"|(?:i )?apologi[sz]e[,.]?(?: but)? {CANNOT}\b"
    rf"|(?:unfortunately, )?{CANNOT} {SERVICE}"
    r"|as an? (?:ai|(?:ai |large )?language model)(?: language model| model| assistant| system)?,? (?:i|my)\b"
    r")",
    re.IGNORECASE,
)
REFUSAL_CHARACTERS = 200

# Of thinking/prompts; so long that no one writes them by chance ("Feynman technique" alone people do).
INSTRUCTIONS = (
    "simulate an expert's",
    "expert's in-depth thought process",
    "as they analyze the above context",
    "focusing on complex and informative aspects",
    "skip trivial details",
    "feynman technique whenever possible",
    "## end of the context",
    "<<<reading here>>>",
    "the expert is currently focused at the position",
)
# A part of each that few thoughts hold, looked for first, in bytes: a fifth of the whole search's time.
HINTS = (
    *(b"simulate an expert", b"in-depth thought", b"the above context", b"informative aspects"),
    *(b"trivial details", b"whenever possible", b"of the context", b"reading here", b"currently focused"),
)


def unclosed_tag(row: "Row", config: FilterConfig) -> bool:
    """Drops thoughts in which `think_tags` do not pair: one left open, one opened twice, a stray close.

    A thought is stored without its own tags, so most have none. A pair inside is kept, and so is a thought
    that is about tags if they pair.
    """
    thought, (opening, closing) = row.thinking, config.think_tags
    if not thought or (opening not in thought and closing not in thought):
        return True
    is_open = False
    for tag in re.findall(f"{re.escape(opening)}|{re.escape(closing)}", thought):
        if is_open == (tag == opening):
            return False
        is_open = tag == opening
    return not is_open


def refusal(row: "Row", config: FilterConfig) -> bool:
    """Drops thoughts that begin by refusing, in English: see REFUSAL."""
    return not row.thinking or REFUSAL.match(_straight(row.thinking[:REFUSAL_CHARACTERS])) is None


def prompt_leakage(row: "Row", config: FilterConfig) -> bool:
    """Drops thoughts that quote the paper's instruction, unless their document has the phrase too."""
    if not row.thinking:
        return True
    raw = row.thinking.encode("utf-8", "surrogatepass").lower().replace(b"\n", b" ")
    if not any(hint in raw for hint in HINTS):
        return True
    thought = _plain(row.thinking)
    found = [phrase for phrase in INSTRUCTIONS if phrase in thought]
    if not found:
        return True
    document = _plain(row.text)
    return all(phrase in document for phrase in found)


def _plain(text: str) -> str:
    return " ".join(_straight(text.lower()).split())


def _straight(text: str) -> str:
    """With straight apostrophes for typographic ones."""
    return text.replace("\u2019", "'")
