"""RMSNorm that takes part in sequence parallelism (megatron-core's own local one refuses it)."""

from collections.abc import Callable

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """`rms_norm` is the function in the slot kernels.rms_norm; the weight is the module's."""

    def __init__(
        self,
        rms_norm: Callable[..., Tensor],
        config: TransformerConfig,
        hidden_size: int,
        eps: float = 1e-5,
        **unused: object,
    ) -> None:
        super().__init__()
        self.rms_norm, self.epsilon = rms_norm, eps
        device = torch.device("cpu" if config.use_cpu_initialization else torch.cuda.current_device())
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        # Each rank sees a part of the tokens: finalize_model_grads sums the gradient over tensor ranks.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.rms_norm(hidden, self.weight, self.epsilon)
