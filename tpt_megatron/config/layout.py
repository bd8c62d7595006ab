"""Which combinations of model and parallel grid can be, told before any rank starts."""

from tpt_megatron.config.schema import Config
from tpt_megatron.errors import ConfigError


def check_layout(config: Config) -> None:
    """Raises ConfigError naming the key whose value does not divide."""
    model, parallel = config.model, config.parallel
    if model.head_dim is None:
        _divides(
            "model.hidden_size", model.hidden_size, "model.num_attention_heads", model.num_attention_heads
        )
    _divides(
        "model.num_attention_heads", model.num_attention_heads,
        "model.num_key_value_heads", model.num_key_value_heads,
    )  # fmt: skip
    for key in ("num_attention_heads", "num_key_value_heads", "ffn_hidden_size", "padded_vocab_size"):
        _divides(f"model.{key}", getattr(model, key), "parallel.tensor", parallel.tensor)
    _divides("model.num_layers", model.num_layers, "parallel.pipeline", parallel.pipeline)
    if parallel.sequence:
        if parallel.tensor == 1:
            raise ConfigError(
                "parallel.sequence needs parallel.tensor > 1", got=1, fix="parallel.sequence=false"
            )
        tokens = config.train.micro_batch_size * config.data.sequence_length
        _divides("train.micro_batch_size * data.sequence_length", tokens, "parallel.tensor", parallel.tensor)
    _divides(
        "train.global_batch_size", config.train.global_batch_size,
        "train.micro_batch_size", config.train.micro_batch_size,
    )  # fmt: skip


def data_parallel_size(config: Config, world_size: int) -> int:
    """The data axis of a world of `world_size` ranks; raises ConfigError where the grid does not fit it."""
    model_ranks = config.parallel.tensor * config.parallel.pipeline
    if world_size % model_ranks:
        raise ConfigError(
            "parallel.tensor * parallel.pipeline must divide the number of ranks",
            got=f"{model_ranks} for {world_size} ranks",
        )
    size = world_size // model_ranks
    _divides(
        "train.global_batch_size", config.train.global_batch_size,
        "train.micro_batch_size * data ranks", config.train.micro_batch_size * size,
    )  # fmt: skip
    return size


def _divides(key: str, value: int, by_key: str, by: int) -> None:
    if value % by:
        raise ConfigError(f"{key} must be a multiple of {by_key}", got=f"{value} and {by}")
