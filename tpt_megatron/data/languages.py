"""The language filter, through py3langid (the extra `language`): no download, 97 languages."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpt_megatron.config.schema import FilterConfig
from tpt_megatron.errors import ConfigError

if TYPE_CHECKING:
    from tpt_megatron.data.filters import Row

# 2.5 us a character, 500 times tokenizing; so a part stands for the whole.
SAMPLE_CHARACTERS = 500
LETTER = re.compile(r"[^\W\d_]")


def language(row: "Row", config: FilterConfig) -> bool:
    """Drops documents whose middle is in none of `languages`; the beginning is often a menu or a title.

    A middle without letters stays. Formulas and code have no language and get a haphazard one: filter prose
    by it, not mathematics.
    """
    import py3langid

    begin = max(0, (len(row.text) - SAMPLE_CHARACTERS) // 2)
    sample = row.text[begin : begin + SAMPLE_CHARACTERS]
    return LETTER.search(sample) is None or py3langid.classify(sample)[0] in config.languages


def check_language(languages: Sequence[str]) -> None:
    """Raises ConfigError where the library is missing or does not know one of `languages`."""
    try:
        import py3langid
    except ModuleNotFoundError as error:
        raise ConfigError(
            "data.filter.names: 'language' needs py3langid, which is not installed",
            fix="pip install 'tpt-megatron[language]'",
        ) from error
    known = {code for code, _ in py3langid.rank("")}
    if unknown := sorted(set(languages) - known):
        raise ConfigError(
            "data.filter.languages: unknown", got=unknown, expected="ISO 639-1 codes, as en, de or zh"
        )
    if not languages:
        raise ConfigError("data.filter.languages is empty, so no row would stay", expected="for example en")
