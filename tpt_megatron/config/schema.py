"""The config tree: one frozen section per stage. A field is here because some stage reads it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=0)]
Comparison = Literal["==", "!=", "<", "<=", ">", ">=", "in"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """The shape of the trained model, in the terms of its Hugging Face config."""

    family: str = "llama"  # a slot: a file of models/, or "package.module:attribute"
    num_layers: PositiveInt = 32
    hidden_size: PositiveInt = 4096
    ffn_hidden_size: PositiveInt = 14336
    num_attention_heads: PositiveInt = 32
    num_key_value_heads: PositiveInt = 8
    head_dim: PositiveInt | None = None  # None: hidden_size / num_attention_heads
    vocab_size: PositiveInt = 128256
    vocab_multiple: PositiveInt = 128  # the padded vocabulary is a multiple of this, whatever the layout
    max_position_embeddings: PositiveInt = 8192
    rope_theta: Positive = 500000.0
    norm_epsilon: Positive = 1e-5
    init_std: Positive = 0.02
    tied_embeddings: bool = False

    @property
    def kv_channels(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


class ParallelConfig(Section):
    """The grid: tensor x pipeline x data; the data axis is what the world leaves."""

    tensor: PositiveInt = 1
    pipeline: PositiveInt = 1
    sequence: bool = False  # sequence parallelism of norms and residuals over the tensor axis


class CorpusConfig(Section):
    """Where rows come from and which columns they have; the presets of data recipes set these."""

    paths: tuple[str, ...] = ()  # JSONL or Parquet: paths, globs, folders, fsspec URLs
    reader: str = "auto"  # a slot: an iterable of documents
    text_key: str = "text"
    id_key: str = "id"  # a row without it gets the xxh3-128 of its text
    messages_key: str = "messages"  # style "chat" only: a list of {"role", "content"}
    source: str = ""
    source_key: str = ""  # a column that names the row's source; "": `source` for all
    where: tuple[tuple[str, Comparison, str | float | bool], ...] = ()  # rows that fail one are left out
    max_row_bytes: PositiveInt = 16 * 2**20  # a longer line or cell is quarantined, unread
    max_documents: PositiveInt | None = None


class ThinkingConfig(Section):
    engine: str = "transformers"  # a slot
    model: str = ""
    revision: str = ""
    prompt: str = "paper"  # a name from thinking/prompts or a path
    output: str = ""
    think_open: str = "<think>"
    think_close: str = "</think>"
    max_document_tokens: PositiveInt = 2048
    max_new_tokens: PositiveInt = 8192
    temperature: NonNegative = 0.6  # 0: greedy
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    seed: Count = 0
    batch_size: PositiveInt = 32
    documents_per_chunk: PositiveInt = 1024  # rows of one Parquet file


class FilterConfig(Section):
    """Which rows `tpt pack` leaves out, each counted under the filter's name; none is the paper's setting."""

    names: tuple[str, ...] = ()  # slots: names of data/filters.py, or "package.module:function"
    min_document_characters: Count = 0
    max_document_characters: PositiveInt | None = None
    min_thinking_characters: Count = 0
    max_thinking_characters: PositiveInt | None = None
    think_tags: tuple[str, str] = ("<think>", "</think>")  # of the generator, for "unclosed_tag"
    ngram_words: PositiveInt = 13
    max_ngram_share: Fraction = 0.3  # of a thought's n-grams that repeat an earlier one
    min_compression_ratio: NonNegative = 0.12  # compressed / raw bytes; a loop compresses to next to nothing
    languages: tuple[str, ...] = ("en",)  # ISO 639-1
    near_duplicates: bool = False  # MinHash
    near_similarity: Fraction = 0.8  # Jaccard similarity of word 5-grams


class DataConfig(Section):
    inputs: tuple[str, ...] = ()  # folders of trajectories, or corpora for the styles "none" and "chat"
    tokenizer: str = ""
    encoder: Literal["auto", "gigatoken", "fastokens", "huggingface", "sentencepiece"] = "auto"
    style: Literal["think_tags", "plain", "prefix", "none", "chat"] = "think_tags"
    chat_template: str = "auto"  # style "chat": a name of data/templates, or a path
    output: str = ""  # the dataset's prefix: OUTPUT.bin, OUTPUT.idx, ...
    think_open: str = "<think>"
    think_close: str = "</think>"
    end_token: str | None = None  # end of document; None: the tokenizer's end-of-sequence
    begin_token: str | None = None  # put before every document; None: nothing
    exact_dedup: bool = True  # the first of equal documents stays
    filter: FilterConfig = FilterConfig()
    max_thinking_tokens: PositiveInt | None = None  # a longer thought is cut
    long_documents: Literal["split", "truncate_thought", "drop"] = "split"  # longer than sequence_length
    raw_tokens: PositiveInt | None = None  # keep a random sample of documents with so many document tokens
    lineage_keys: tuple[str, ...] = ()  # metadata fields, dotted where nested, for `tpt report`
    workers: PositiveInt = 1  # processes on this machine
    executor: Literal["local", "ray"] = "local"
    shard: str = ""  # "0/8": only blocks 0, 8, 16, ...; the same command without it assembles
    blend: tuple[tuple[str, Positive], ...] = ()  # (dataset prefix, weight)
    weight_unit: Literal["token", "document"] = "token"
    packing: Literal["concat", "best_fit"] = "concat"
    sequence_length: PositiveInt = 8192
    document_mask: bool = False  # attention, positions restart at each document; always in chat, best_fit
    cache_dir: str = ""  # where remote datasets of the blend are copied
    prefetch_batches: Count = 2  # made ahead of training, in a thread


class OptimizerConfig(Section):
    learning_rate: Positive = 3e-4
    min_learning_rate: NonNegative = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Count = 100
    weight_decay: NonNegative = 0.1
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    epsilon: Positive = 1e-8
    clip_grad: NonNegative = 1.0  # 0: no clipping


class TrainConfig(Section):
    run_dir: str = ""
    tokens: Positive = 1e9  # the budget, raw and thinking tokens together; TOML writes 1e9 as a float
    global_batch_size: PositiveInt = 512  # samples of data.sequence_length tokens
    micro_batch_size: PositiveInt = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: Count = 0


class KernelsConfig(Section):
    attention: str = "auto"  # slots: a name of kernels/tpt_kernels or "package.module:function"
    loss: Literal["linear_cross_entropy_sum", "linear_cross_entropy", "cross_entropy"] = (
        "linear_cross_entropy_sum"  # which of the next three is the model's loss
    )
    linear_cross_entropy_sum: str = "auto"
    linear_cross_entropy: str = "auto"
    cross_entropy: str = "auto"
    rms_norm: str = "auto"  # these three: "torch", "liger" or "package.module:function"; mcore/fused.py
    swiglu: str = "auto"
    rotary: str = "auto"


class CheckpointConfig(Section):
    folder: str = ""  # default: RUN_DIR/checkpoints
    every_steps: Count = 1000  # 0: only at the end


class EvaluateConfig(Section):
    model: str = ""  # a Hugging Face folder
    data: tuple[str, ...] = ()  # prefixes of held-out datasets
    output: str = ""
    max_sequences: PositiveInt | None = None


class Config(Section):
    """The whole tree; every verb reads its own branches of it."""

    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    corpus: CorpusConfig = CorpusConfig()
    thinking: ThinkingConfig = ThinkingConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    kernels: KernelsConfig = KernelsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    mcore: dict[str, Any] = Field(default_factory=dict)  # passed to megatron's TransformerConfig by name

    @property
    def tokens_per_step(self) -> int:
        return self.train.global_batch_size * self.data.sequence_length

    @property
    def train_steps(self) -> int:
        """Steps that spend the token budget; the last one may overshoot it by less than a batch."""
        return -(-int(self.train.tokens) // self.tokens_per_step)
