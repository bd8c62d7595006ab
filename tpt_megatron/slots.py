"""Slots: what a fork swaps by naming it. One rule for all of them.

A slot's value is a name from the slot's own small dict, or `"package.module:attribute"`.
"""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from tpt_megatron.errors import ConfigError


def resolve(value: str, builtin: Mapping[str, str], key: str) -> Any:
    """The object that `value` names; `builtin` maps names to `"package.module:attribute"`.

    Raises ConfigError, naming `key`, for an unknown name, module or attribute.
    """
    target = builtin.get(value, value)
    if ":" not in target:
        near = difflib.get_close_matches(value, builtin, n=1)
        raise ConfigError(
            f"{key}: unknown name",
            got=repr(value),
            expected=f"one of {', '.join(sorted(builtin))} or 'package.module:attribute'",
            fix=f"did you mean '{near[0]}'?" if near else None,
        )
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{key}: cannot import {target}: {error}", fix="check the module's name") from error
    except AttributeError as error:
        raise ConfigError(f"{key}: {module_name} has no attribute {attribute!r}") from error
