"""Our config as megatron-core's TransformerConfig."""

import dataclasses
import difflib

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.functional import silu

from tpt_megatron.config.schema import Config
from tpt_megatron.errors import ConfigError
from tpt_megatron.models.family import Family

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def transformer_config(config: Config, family: Family) -> TransformerConfig:
    """Raises ConfigError for a key of [mcore] that the installed version does not have."""
    model, parallel = config.model, config.parallel
    precision = PRECISIONS[config.train.precision]
    fields = {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_key_value_heads,
        "kv_channels": model.kv_channels,
        "layernorm_epsilon": model.norm_epsilon,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": silu,
        "add_bias_linear": False,
        "add_qkv_bias": family.qkv_bias,
        "qk_layernorm": family.qk_norm,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "sequence_parallel": parallel.sequence,
        "params_dtype": precision,
        "pipeline_dtype": precision,
        "bf16": config.train.precision == "bf16",
        "calculate_per_token_loss": True,  # the loss is a sum over the true global token count
        "perform_initialization": False,  # init.py fills the weights, alike in every layout
        "use_cpu_initialization": not torch.cuda.is_available(),
        # These fusions want CUDA extensions of Apex or Transformer Engine, or a compiler at run time.
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
    }
    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    for key in config.mcore:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            fix = f"did you mean '{near[0]}'?" if near else None
            raise ConfigError(f"mcore.{key}: not a field of the installed TransformerConfig", fix=fix)
    return TransformerConfig(**{**fields, **config.mcore})
