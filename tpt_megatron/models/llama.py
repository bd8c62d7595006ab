"""Llama 2 and 3: RMSNorm, rotary embedding, grouped queries, SwiGLU, no biases."""

from typing import Any

from tpt_megatron.config.schema import ModelConfig
from tpt_megatron.models.family import Family, Rule


def hf_config(model: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "head_dim": model.kv_channels,
        "hidden_size": model.hidden_size,
        "initializer_range": model.init_std,
        "intermediate_size": model.ffn_hidden_size,
        "max_position_embeddings": model.max_position_embeddings,
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_layers,
        "num_key_value_heads": model.num_key_value_heads,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied_embeddings,
        "vocab_size": model.vocab_size,
    }


LAYER = "model.layers.{layer}"
OURS = "decoder.layers.{layer}"
FAMILY = Family(
    name="llama",
    qkv_bias=False,
    qk_norm=False,
    hf_config=hf_config,
    rules=(
        Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), "vocab"),
        Rule(f"{OURS}.input_layernorm.weight", (f"{LAYER}.input_layernorm.weight",)),
        Rule(
            f"{OURS}.self_attention.linear_qkv.weight",
            tuple(f"{LAYER}.self_attn.{part}_proj.weight" for part in "qkv"),
            "qkv",
        ),
        Rule(f"{OURS}.self_attention.linear_proj.weight", (f"{LAYER}.self_attn.o_proj.weight",)),
        Rule(f"{OURS}.pre_mlp_layernorm.weight", (f"{LAYER}.post_attention_layernorm.weight",)),
        Rule(
            f"{OURS}.mlp.linear_fc1.weight",
            (f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight"),
            "gate_up",
        ),
        Rule(f"{OURS}.mlp.linear_fc2.weight", (f"{LAYER}.mlp.down_proj.weight",)),
        Rule("decoder.final_layernorm.weight", ("model.norm.weight",)),
        Rule("output_layer.weight", ("lm_head.weight",), "vocab"),
    ),
)
