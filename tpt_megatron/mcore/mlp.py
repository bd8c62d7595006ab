"""megatron-core's MLP with a function of ours between its two products: the seat of kernels.swiglu.

Core's own fused paths here ask for Transformer Engine or, bias_activation_fusion, for a compiler at run time.
"""

from typing import Any

from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import silu

from tpt_megatron.errors import ConfigError

# What core's own forward reads and this one does not; a key of [mcore] that changes one is refused.
FIXED = {
    "gated_linear_unit": True,
    "activation_func": silu,
    "add_bias_linear": False,
    "bias_activation_fusion": False,
    "use_te_activation_func": False,
    "glu_linear_offset": 0.0,
    "activation_func_clamp_value": None,
}


class GatedMLP(MLP):  # type: ignore[misc]
    """`submodules.activation_func` builds the function: [tokens, 1, 2 * ffn / tensor], the gate's half first,
    -> [tokens, 1, ffn / tensor].

    Raises ConfigError for settings that belong to the activation that it replaces.
    """

    def __init__(self, config: TransformerConfig, submodules: MLPSubmodules, **named: Any) -> None:
        for field, value in FIXED.items():
            if (got := getattr(config, field)) != value:
                raise ConfigError(
                    f"mcore.{field}: the function in kernels.swiglu takes no such setting", got=got,
                    expected=value, fix="name a function of your own in kernels.swiglu",
                )  # fmt: skip
        super().__init__(config, submodules, **named)
        self.swiglu = submodules.activation_func(config=config)

    def forward(self, hidden_states: Tensor, **unused: object) -> tuple[Tensor, None]:
        """hidden_states [tokens / sequence ranks, 1, hidden] -> the same shape, and no bias."""
        gate_and_up, _ = self.linear_fc1(hidden_states)
        output, _ = self.linear_fc2(self.swiglu(gate_and_up))
        return output, None
