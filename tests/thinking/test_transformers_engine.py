"""The decode loop against a plain one, at every batch size and order."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tpt_megatron.config.schema import ThinkingConfig
from tpt_megatron.errors import ConfigError, InputError, StoppedError
from tpt_megatron.records import Document
from tpt_megatron.thinking.engines import cache as cache_module
from tpt_megatron.thinking.engines import transformers as engine_module
from tpt_megatron.thinking.engines.sampling import sample_tokens
from tpt_megatron.thinking.engines.transformers import TransformersEngine
from tpt_megatron.thinking.request import Request, request_seed
from tpt_megatron.tokenizer import TextTokenizer


def make(folder: Path, **changes: object) -> TransformersEngine:
    settings = {"model": str(folder), "temperature": 1.5, "max_new_tokens": 40, **changes}
    return TransformersEngine(ThinkingConfig.model_validate(settings), TextTokenizer(str(folder)))


def requests(engine: TransformersEngine, count: int, limit: int = 40) -> list[Request]:
    """Prompts of 1 to about 60 ids that have nothing in common, with limits that end them at other times."""
    made = []
    for index in range(count):
        draw = torch.Generator().manual_seed(index)
        length = 1 + (index * 13) % 60
        ids = torch.randint(engine.vocab_size, (length,), generator=draw).tolist()
        made.append(
            Request(
                key=f"k{index}",
                document=Document(f"d{index}", ""),
                sample=0,
                prompt_ids=tuple(ids),
                max_new_tokens=limit - index % 5,
                seed=request_seed(0, f"d{index}", 0),
                document_tokens=length,
                truncated=False,
            )
        )
    return made


@torch.inference_mode()
def plainly(engine: TransformersEngine, request: Request) -> tuple[tuple[int, ...], str]:
    """One request, no cache, no batch: the whole text through the model for every token."""
    draw = torch.Generator().manual_seed(request.seed)
    uniforms = torch.rand(request.max_new_tokens, generator=draw, dtype=torch.float64)
    output: list[int] = []
    for uniform in uniforms:
        ids = torch.tensor([[*request.prompt_ids, *output]])
        logits = engine.model(input_ids=ids, use_cache=False).logits[:, -1]
        config = engine.config
        output.append(int(sample_tokens(logits, uniform[None], config.temperature, config.top_p)))
        if output[-1] in engine.stop_ids:
            return tuple(output), "stop"
    return tuple(output), "length"


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_batch_and_order_gives_what_a_plain_loop_gives(
    tiny_generator: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "FIRST_CAPACITY", 8)  # so that slots grow
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 100)  # so that prompts come in groups
    engine = make(tiny_generator, temperature=temperature)
    asked = requests(engine, 24)
    expected = {request.key: plainly(engine, request) for request in asked}
    if temperature:
        assert {reason for _, reason in expected.values()} == {"stop", "length"}
        assert len({ids[:3] for ids, _ in expected.values()}) > 12
    for batch_size, order in [(1, asked), (3, asked[::-1]), (8, asked[::2] + asked[1::2]), (32, asked)]:
        engine.config = engine.config.model_copy(update={"batch_size": batch_size})
        got = {c.key: (c.output_ids, c.finish_reason) for c in engine.generate(order)}
        assert got == expected, batch_size


def test_a_seed_belongs_to_its_request(tiny_generator: Path) -> None:
    engine = make(tiny_generator)
    one = requests(engine, 2)[1]
    twin = Request(**{**{f: getattr(one, f) for f in one.__slots__}, "key": "twin", "seed": one.seed + 1})
    first, again, other = engine.generate([one]), engine.generate([one]), engine.generate([twin])
    assert next(first).output_ids == next(again).output_ids != next(other).output_ids


def test_requests_are_taken_only_as_there_is_room(tiny_generator: Path) -> None:
    engine = make(tiny_generator, batch_size=4)
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        for request in requests(engine, 1000, limit=9):
            taken += 1
            yield request

    answers = engine.generate(endless())
    for done in range(1, 9):
        next(answers)
        assert taken <= 4 + done
    assert not torch.is_inference_mode_enabled(), "the mode must not leak into whoever takes the answers"


def test_an_answer_ends_at_the_stop_token_it_holds(tiny_generator: Path) -> None:
    engine = make(tiny_generator)
    tokenizer = TextTokenizer(str(tiny_generator))
    assert engine.stop_ids == set(tokenizer.encode_template("</think><|endoftext|>"))
    stopped = 0
    for completion in engine.generate(requests(engine, 24)):
        inside = [i for i in completion.output_ids[:-1] if i in engine.stop_ids]
        assert not inside
        assert (completion.output_ids[-1] in engine.stop_ids) == (completion.finish_reason == "stop")
        stopped += completion.finish_reason == "stop"
    assert 0 < stopped < 24


def test_finished_rows_cost_nothing(tiny_generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(tiny_generator, batch_size=8, temperature=0.0)
    forward, cells = engine.model.forward, []

    def counted(**arguments: torch.Tensor) -> object:
        if arguments["input_ids"].shape[1] == 1:
            cells.append(len(arguments["input_ids"]))
        return forward(**arguments)

    monkeypatch.setattr(engine.model, "forward", counted)
    engine.stop_ids = frozenset()
    asked = [r for r in requests(engine, 20) if len(r.prompt_ids) > 1]
    produced = sum(len(c.output_ids) for c in engine.generate(asked))
    assert sum(cells) == produced - len(asked), "one row of one step for each token but the first"


def test_the_context_bounds_prompt_and_answer(tiny_generator: Path) -> None:
    engine = make(tiny_generator)
    engine.max_context, engine.stop_ids = 50, frozenset()
    for completion in engine.generate(r for r in requests(engine, 24) if len(r.prompt_ids) < 50):
        length = len(requests(engine, 24)[int(completion.key[1:])].prompt_ids)
        assert len(completion.output_ids) == min(40 - int(completion.key[1:]) % 5, 50 - length)
        assert completion.finish_reason == "length"


@pytest.mark.parametrize(
    ("ids", "message"),
    [((), "do not fit"), ((-1,), "do not fit"), ((10**6,), "do not fit"), ((5,) * 1024, "no room")],
)
def test_a_prompt_that_cannot_be_is_refused_by_name(
    tiny_generator: Path, ids: tuple[int, ...], message: str
) -> None:
    engine = make(tiny_generator)
    bad = Request("k", Document("the-bad-one", ""), 0, ids, 5, 0, 0, False)
    with pytest.raises(InputError, match=f"the-bad-one.*{message}"):
        list(engine.generate([bad]))


def test_logits_that_are_not_numbers_stop_the_job(tiny_generator: Path) -> None:
    engine = make(tiny_generator)
    engine.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(StoppedError, match="'d0'"):
        list(engine.generate(requests(engine, 1)))


def test_the_revision_of_a_folder_follows_its_weights(tiny_generator: Path, tmp_path: Path) -> None:
    engine = make(tiny_generator)
    engine.model.save_pretrained(tmp_path)
    TextTokenizer(str(tiny_generator)).hf.save_pretrained(tmp_path)
    assert make(tmp_path).revision == engine.revision
    engine.model.lm_head.weight.data[0, 0] += 1
    engine.model.save_pretrained(tmp_path)
    assert make(tmp_path).revision != engine.revision


def test_a_missing_model_and_a_missing_tag_are_named(tiny_generator: Path, tmp_path: Path) -> None:
    tokenizer = TextTokenizer(str(tiny_generator))
    with pytest.raises(InputError, match=r"thinking\.model"):
        TransformersEngine(ThinkingConfig(model=str(tmp_path)), tokenizer)
    with pytest.raises(ConfigError, match=r"thinking\.think_close.*</thought>"):
        make(tiny_generator, think_close="</thought>")


def test_sliding_attention_is_refused(tiny_generator: Path, tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, use_sliding_window=True, sliding_window=16, max_window_layers=1,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="sliding_attention"):
        TransformersEngine(ThinkingConfig(model=str(tmp_path)), TextTokenizer(str(tiny_generator)))
