"""The decoder: our own class out of megatron-core's blocks (its GPTModel is deprecated).

Its loss sees hidden states and the output weight, the seat of a linear cross-entropy.
"""

from typing import Any

from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup
from tpt_kernels import LossOptions

from tpt_megatron.config.schema import Config
from tpt_megatron.mcore.attention import PackedRow, pack_row
from tpt_megatron.mcore.batch import Batch
from tpt_megatron.mcore.groups import Grid
from tpt_megatron.mcore.ops import Ops, TokenLosses
from tpt_megatron.mcore.spec import block_spec
from tpt_megatron.models.family import Family


class Decoder(LanguageModule):  # type: ignore[misc]
    """One pipeline stage of the model."""

    def __init__(
        self, settings: TransformerConfig, config: Config, family: Family, grid: Grid, ops: Ops
    ) -> None:
        super().__init__(settings)
        model = config.model
        self.pre_process, self.post_process = grid.is_first_stage, grid.is_last_stage
        self.share_embeddings_and_output_weights = model.tied_embeddings
        self.model_type = ModelType.encoder_or_decoder
        self.shape, self.ops = model, ops
        self.tensor: ProcessGroup = grid.tensor
        self.options = LossOptions(vocab_size=model.vocab_size)
        if self.pre_process:
            self.embedding = LanguageModelEmbedding(
                settings, model.padded_vocab_size, 0, position_embedding_type="rope", tp_group=grid.tensor
            )
        layers = model.num_layers // grid.pipeline_size
        spec = block_spec(layers, family.qk_norm, ops.attention, ops.rms_norm, ops.swiglu, ops.rotary)
        self.decoder = TransformerBlock(
            settings, spec, pre_process=self.pre_process, post_process=self.post_process,
            pg_collection=self.pg_collection,
        )  # fmt: skip
        if self.post_process:
            self.output_layer = ColumnParallelLinear(
                settings.hidden_size, model.padded_vocab_size, config=settings,
                init_method=settings.init_method, bias=False, gather_output=False,
                skip_weight_param_allocation=self.pre_process and model.tied_embeddings,
                tp_group=grid.tensor,
            )  # fmt: skip
        if self.pre_process or self.post_process:
            self.setup_embeddings_and_output_layer()

    def set_input_tensor(self, tensors: list[Tensor]) -> None:
        """megatron-core's schedules hand over what the stage before sent."""
        self.decoder.set_input_tensor(tensors[0])

    def forward(self, batch: Batch) -> Tensor | TokenLosses:
        """The loss, summed and of each token; before the last stage its hidden states."""
        hidden = self._hidden(batch)
        if not self.post_process:
            return hidden
        hidden = self._gathered(hidden)  # [tokens, hidden]
        return self.ops.loss(hidden, self._output_weight(), batch.labels, self.tensor, self.options)

    def logits(self, batch: Batch) -> Tensor:
        """This rank's columns of the logits, [tokens, padded vocab / tensor]; last stage only."""
        assert self.post_process
        return self._gathered(self._hidden(batch)) @ self._output_weight().T

    def _hidden(self, batch: Batch) -> Tensor:
        # [1, tokens] in, [tokens / sequence ranks, 1, hidden] out
        embedded = self.embedding(batch.tokens[None], None) if self.pre_process else None
        row: PackedRow = pack_row(
            batch.cu_seqlens, batch.max_seqlen, batch.positions, self.shape.kv_channels, self.shape.rope_theta
        )
        hidden: Tensor = self.decoder(embedded, attention_mask=None, packed_seq_params=row)
        return hidden

    def _gathered(self, hidden: Tensor) -> Tensor:
        """All tokens on every tensor rank; the backward sums each rank's part of the gradient once."""
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=self.tensor)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=self.tensor)
        return hidden.squeeze(1)

    def _output_weight(self) -> Tensor:
        tied = self.share_embeddings_and_output_weights
        weight: Any = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        return weight  # type: ignore[no-any-return]
