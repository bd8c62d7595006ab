"""From files and overrides to one checked tree: `a.toml b.toml section.key=value`, merged left to right."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tpt_megatron.config.layout import check_layout
from tpt_megatron.config.schema import Config
from tpt_megatron.errors import ConfigError, InputError

PRESETS = Path(__file__).parent / "presets"


def load(arguments: Sequence[str]) -> Config:
    """The tree that `arguments` (TOML paths, preset names, overrides) describe.

    Raises ConfigError for a key or value that cannot be, InputError for a missing file.
    """
    tree: dict[str, Any] = {}
    for argument in arguments:
        branch = parse_override(argument) if _is_override(argument) else read_toml(argument)
        tree = merge(tree, branch)
    return validate(tree)


def _is_override(argument: str) -> bool:
    return "=" in argument and "." in argument.partition("=")[0] and not Path(argument).exists()


def parse_override(argument: str) -> dict[str, Any]:
    """`section.key=value`; the value is TOML, or plain text where it is not."""
    path, _, raw = argument.partition("=")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    for key in reversed(path.strip().split(".")):
        value = {key: value}
    result: dict[str, Any] = value
    return result


def read_toml(name: str) -> dict[str, Any]:
    """A TOML file by its path, or a preset by its bare name."""
    path = Path(name)
    if not path.suffix and not path.exists():
        path = PRESETS / f"{name}.toml"
        if not path.is_file():
            presets = sorted(p.stem for p in PRESETS.glob("*.toml"))
            near = difflib.get_close_matches(name, presets, n=1)
            raise InputError(
                f"no preset {name!r}",
                expected=f"one of {', '.join(presets)}, a .toml file or section.key=value",
                fix=f"did you mean '{near[0]}'?" if near else None,
            )
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, section by section; lists are replaced, not joined."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return out


def validate(tree: Mapping[str, Any]) -> Config:
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(dict(e)) for e in error.errors())) from None
    check_layout(config)
    return config


def _explain(error: Mapping[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        section = _section(location[:-1])
        near = difflib.get_close_matches(location[-1], section, n=1, cutoff=0.5)
        return f"{key}: unknown key" + (
            f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(section)}"
        )
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _section(location: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)


def dump(config: Config) -> str:
    """The resolved tree as JSON, which `resolved` reads back."""
    return json.dumps(config.model_dump(mode="json"), indent=1) + "\n"


def resolved(path: Path) -> Config:
    """The tree that a run saved beside its results."""
    try:
        return Config.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no resolved config here", fix="give the folder of a run or of a step"
        ) from None
    except ValidationError as error:
        raise InputError(f"{path}: written by another version: {error.errors()[0]['loc']}") from None
