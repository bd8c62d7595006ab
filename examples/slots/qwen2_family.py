"""A family of one's own: Qwen2, Llama with biases on q, k, v. model.family=qwen2_family:FAMILY"""

from dataclasses import replace
from typing import Any

from tpt_megatron.config.schema import ModelConfig
from tpt_megatron.models.family import Rule
from tpt_megatron.models.llama import FAMILY as LLAMA
from tpt_megatron.models.llama import LAYER, OURS, hf_config


def qwen2_config(model: ModelConfig) -> dict[str, Any]:
    llama = {k: v for k, v in hf_config(model).items() if k not in ("attention_bias", "mlp_bias", "head_dim")}
    return {**llama, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


FAMILY = replace(
    LLAMA,
    name="qwen2",
    qkv_bias=True,
    hf_config=qwen2_config,
    rules=(
        *LLAMA.rules,
        Rule(
            f"{OURS}.self_attention.linear_qkv.bias",
            tuple(f"{LAYER}.self_attn.{part}_proj.bias" for part in "qkv"),
            "qkv",
        ),
    ),
)
