"""A model family as data: the switches of its layers, its Hugging Face config and the map of its names.

Adding a family is one file with one `Family`; nothing else knows an architecture by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tpt_megatron.config.schema import ModelConfig
from tpt_megatron.slots import resolve

FAMILIES = {"llama": "tpt_megatron.models.llama:FAMILY"}


@dataclass(frozen=True)
class Rule:
    """One tensor of ours, by its global name, and the Hugging Face tensors it is made of.

    `{layer}` stands for the layer's number. kind: "copy"; "vocab" (rows padded); "qkv" (per key-value group
    its query heads, its key, its value); "gate_up" (gate rows, then up rows).
    """

    ours: str
    theirs: tuple[str, ...]
    kind: str = "copy"


@dataclass(frozen=True)
class Family:
    """What tells one decoder from another. `hf_config` gives config.json; `rules` the names both ways."""

    name: str
    qkv_bias: bool
    qk_norm: bool
    hf_config: Callable[[ModelConfig], dict[str, Any]]
    rules: tuple[Rule, ...]

    def rules_of(self, model: ModelConfig) -> list[Rule]:
        """The rules with every layer written out; a tied output layer has no tensor of its own."""
        out: list[Rule] = []
        for rule in self.rules:
            if "{layer}" not in rule.ours:
                if not (rule.ours == "output_layer.weight" and model.tied_embeddings):
                    out.append(rule)
                continue
            for layer in range(model.num_layers):
                theirs = tuple(name.format(layer=layer) for name in rule.theirs)
                out.append(Rule(rule.ours.format(layer=layer), theirs, rule.kind))
        return out


def family_of(model: ModelConfig, families: Mapping[str, str] = FAMILIES) -> Family:
    """The family that `model.family` names; ConfigError where there is none."""
    family: Family = resolve(model.family, families, "model.family")
    return family
