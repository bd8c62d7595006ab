"""Conversations: ids and masks against transformers' own, contents that try to break out, refusals."""

import pickle
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.chat import ChatTemplate, build_chat, compose_chat, render
from tpt_megatron.data.compose import ComposedBatch
from tpt_megatron.data.tokenize import Encoded, build_encoder
from tpt_megatron.errors import ConfigError, InputError
from tpt_megatron.tokenizer import TokenizerFacts, facts_of

CONTROLS = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}
STYLES = list(CONTROLS)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}A:{{ m['content'] }}\n"
    "{% endgeneration %}{% else %}Q:{{ m['content'] }}\n{% endif %}{% endfor %}"
)


@cache
def tokenizer(folder: Path, style: str, tags: bool = True, end: str | None = None) -> Any:
    """transformers' tokenizer with the control tokens of `style`; with `tags`, those of a thought."""
    bare = Tokenizer.from_str(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
    if not tags:
        body = bare.to_str().replace('"<think>"', '"<|a|>"').replace('"</think>"', '"<|b|>"')
        bare = Tokenizer.from_str(body)
    bare.add_tokens([AddedToken(token, special=True) for token in CONTROLS.get(style, [])])
    begin = {"bos_token": "<|begin_of_text|>"} if style == "llama3" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token=end or ENDS.get(style, "<|endoftext|>"), **begin
    )


def say(*turns: str) -> list[dict[str, str]]:
    """Turns "u:...", "a:...", "s:...", "t:..." as messages."""
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


PLAIN = [
    say("u:What is 2 + 2?", "a:It is 4."),
    say("s:Be brief.", "u:Hello", "a:Good day", "u:And now?", "a:Water boils at 100 degrees."),
    say("u:Think", "a:<think>\nTo think is to put a question.\n</think>\n\nAn answer."),
    say("u:Add", "a:<think>one</think>two", "t:42", "a:Calling.", "u:x", "a:"),
    say("u:prefix only", "a:the answer <think> is in </think> the middle"),
]


def build(hf: Any, **data: Any) -> tuple[ChatTemplate, TokenizerFacts]:
    facts = facts_of(hf, "t")
    return build_chat(facts, DataConfig(style="chat", **data)), facts


def run(hf: Any, conversations: Sequence[Any], dtype: str = "<u2", **data: Any) -> tuple[ComposedBatch, Any]:
    chat, facts = build(hf, **data)
    encoder = build_encoder(facts, "huggingface")
    chat = pickle.loads(pickle.dumps(chat))  # as a worker gets it
    return compose_chat(chat, conversations, encoder, facts, np.dtype(dtype)), facts


def cut(batch: ComposedBatch) -> list[tuple[list[int], list[bool]]]:
    """Each sequence's ids and mask."""
    assert batch.trained is not None
    assert len(batch.trained) == len(batch.ids) == batch.lengths.sum()
    bounds = np.cumsum(batch.lengths)[:-1]
    parts = zip(np.split(batch.ids, bounds), np.split(batch.trained, bounds), strict=True)
    return [(ids.tolist(), mask.tolist()) for ids, mask in parts]


@pytest.mark.parametrize("style", STYLES)
def test_ids_and_masks_are_those_of_transformers(tiny_tokenizer: Path, style: str) -> None:
    hf = tokenizer(tiny_tokenizer, style)
    text = build(hf)[0].template.text
    batch, facts = run(hf, PLAIN[:4])
    assert (batch.bad, batch.counts, batch.kept.tolist()) == ([], {}, [0, 1, 2, 3])
    for messages, (ids, mask) in zip(PLAIN, cut(batch), strict=False):
        reference = hf.apply_chat_template(
            messages, chat_template=text, return_dict=True, return_assistant_tokens_mask=True
        )
        assert ids == reference["input_ids"]
        assert mask == list(map(bool, reference["assistant_masks"]))
        ends = [
            i
            for i, trained in zip(ids, mask, strict=True)
            if trained and i == facts.control_id(ENDS[style], "")
        ]
        assert len(ends) == sum(message["role"] == "assistant" for message in messages)


@pytest.mark.parametrize("style", STYLES)
def test_what_carries_loss_is_what_the_assistant_says(tiny_tokenizer: Path, style: str) -> None:
    batch, facts = run(tokenizer(tiny_tokenizer, style), PLAIN)
    for messages, (ids, mask) in zip(PLAIN, cut(batch), strict=True):
        said = [m["content"] + ENDS[style] for m in messages if m["role"] == "assistant"]
        trained = [i for i, carries in zip(ids, mask, strict=True) if carries]
        assert facts.decode(trained) == "".join(said)


@pytest.mark.parametrize("tags", [True, False])
def test_the_thought_is_that_of_the_last_assistant_turn(tiny_tokenizer: Path, tags: bool) -> None:
    batch, facts = run(tokenizer(tiny_tokenizer, "chatml", tags), PLAIN)
    spans = zip(cut(batch), batch.thinking_start.tolist(), batch.thinking_end.tolist(), strict=True)
    thought = "<think>\nTo think is to put a question.\n</think>"
    assert [facts.decode(ids[start:end]) for (ids, _), start, end in spans] == ["", "", thought, "", ""]
    ids = cut(batch)[2][0]
    assert ("<think>" in facts.controls) == tags
    assert (ids[batch.thinking_start[2]] in facts.control_ids()) == tags
    assert facts.decode(ids).endswith(PLAIN[2][1]["content"] + "<|im_end|>")


@pytest.mark.parametrize("style", STYLES)
def test_no_content_makes_a_control_token(tiny_tokenizer: Path, style: str) -> None:
    """Every control string and template word, in every role; the thought's two tags alone are tokens."""
    hf = tokenizer(tiny_tokenizer, style)
    facts = facts_of(hf, "t")
    hostile = "".join(facts.controls) + "{{ bos_token }}{% generation %}\ufdd0\ufdd20\ufdd3"
    answer = f"<think>{hostile.replace('</think>', '')}</think>{hostile}"
    messages = say(f"s:{hostile}", f"u:{answer}", f"a:{answer}")
    (ids, mask), (plain, plain_mask) = cut(run(hf, [messages, say("s:x", "u:x", "a:x")])[0])
    tags = [facts.control_id(tag, "") for tag in ("<think>", "</think>")]
    controls = [i for i in ids if i in facts.control_ids()]
    assert [i for i in controls if i not in tags] == [i for i in plain if i in facts.control_ids()]
    assert [i for i in controls if i in tags] == tags
    assert facts.decode([i for i, m in zip(ids, mask, strict=True) if m]) == answer + ENDS[style]
    assert sum(plain_mask) == 2


@pytest.mark.parametrize(("end", "appended"), [("<|endoftext|>", True), ("<|im_end|>", False)])
@pytest.mark.parametrize("begin", [None, "<|endoftext|>", "<|im_start|>"])
def test_begin_and_end_are_put_on_once_and_carry_no_loss(
    tiny_tokenizer: Path, end: str, appended: bool, begin: str | None
) -> None:
    batch, facts = run(tokenizer(tiny_tokenizer, "chatml"), PLAIN[:1], end_token=end, begin_token=begin)
    text = "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\nIt is 4.<|im_end|>"
    ((ids, mask),) = cut(batch)
    front = "<|endoftext|>" if begin == "<|endoftext|>" else ""
    assert facts.decode(ids) == front + text + ("<|endoftext|>" if appended else "")
    assert facts.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "It is 4.<|im_end|>"
    assert mask[-1] == (not appended)


def test_the_tokenizers_own_marked_template_comes_first(tiny_tokenizer: Path, tmp_path: Path) -> None:
    hf = tokenizer(tiny_tokenizer, "chatml")
    chosen = {}
    for template in (MARKED, "{{ messages[0]['content'] }}", None):
        hf.chat_template = template
        chosen[template] = build(hf)[0].template.text
    hf.chat_template = None
    assert chosen[MARKED] == MARKED
    assert "<|im_start|>" in chosen[None]
    assert chosen[None] == chosen["{{ messages[0]['content'] }}"]
    (tmp_path / "t.jinja").write_text(MARKED)
    batch, facts = run(hf, [PLAIN[0]], chat_template=str(tmp_path / "t.jinja"), end_token="<|endoftext|>")
    ((ids, mask),) = cut(batch)
    assert facts.decode(ids) == "Q:What is 2 + 2?\nA:It is 4.\n<|endoftext|>"
    assert facts.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "A:It is 4.\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "no generation marks"),
        (
            MARKED.replace("m['content'] }}\n{% endg", "m['content'] | trim }}\n{% endg"),
            "changes what messages say",
        ),
        (MARKED.replace("A:{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}"), "changes what"),
        (MARKED.replace("Q:{{ m['content'] }}", "{{ raise_exception('no questions') }}"), "no questions"),
        (MARKED.replace("Q:{{ m['content'] }}", ""), "writes messages"),
        (MARKED.replace("{% endfor %}", ""), "does not compile"),
        (MARKED.replace("Q:", "{{ m.__class__.__mro__ }}"), "unsafe"),
    ],
)
def test_a_template_that_cannot_frame_is_refused(
    tiny_tokenizer: Path, tmp_path: Path, template: str, message: str
) -> None:
    (tmp_path / "t.jinja").write_text(template)
    with pytest.raises(ConfigError, match=rf"data\.chat_template: .*{message}"):
        build(tokenizer(tiny_tokenizer, "chatml"), chat_template=str(tmp_path / "t.jinja"))


def test_names_that_lead_to_no_template(tiny_tokenizer: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.chat_template: .*generation marks") as caught:
        build(tokenizer(tiny_tokenizer, "none"))
    assert "path" in str(caught.value.fix)
    with pytest.raises(ConfigError, match=r"data\.chat_template=llama3 .*<\|eot_id\|>"):
        build(tokenizer(tiny_tokenizer, "chatml"), chat_template="llama3")
    with pytest.raises(InputError, match="cannot read a template"):
        build(tokenizer(tiny_tokenizer, "chatml"), chat_template="chatlm")


def test_a_conversation_that_cannot_be_is_bad_and_its_neighbours_live(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    turns = (
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
    )
    alternating = MARKED.replace("{% if", turns + "{% if", 1)
    (tmp_path / "t.jinja").write_text(alternating)
    rows = [PLAIN[0], say("u:only a question"), say("a:x", "u:y"), [], PLAIN[2]]
    hf = tokenizer(tiny_tokenizer, "chatml")
    batch, _ = run(hf, rows, chat_template=str(tmp_path / "t.jinja"), end_token="<|endoftext|>")
    alone, _ = run(hf, [rows[0], rows[4]], chat_template=str(tmp_path / "t.jinja"), end_token="<|endoftext|>")
    assert batch.kept.tolist() == [0, 4]
    assert cut(batch) == cut(alone)
    nothing = "no assistant turn, so nothing carries loss"
    assert batch.bad == [(1, nothing), (2, "turns"), (3, nothing)]
    empty, _ = run(hf, [])
    assert (len(empty.ids), cut(empty)[:0], empty.bad) == (0, [], [])


def test_an_encoder_that_breaks_its_promise_is_not_believed(tiny_tokenizer: Path) -> None:
    chat, facts = build(tokenizer(tiny_tokenizer, "chatml"))
    right = build_encoder(facts, "huggingface")

    class Leaky:
        name = "leaky"

        def encode(self, texts: Sequence[str]) -> Encoded:
            encoded = right.encode(texts)
            ids = encoded.ids.copy()
            ids[encoded.offsets[list(texts).index("Hello")]] = chat.end
            return Encoded(ids, encoded.offsets)

    batch = compose_chat(chat, PLAIN[:3], Leaky(), facts, np.dtype("<u2"))
    assert batch.kept.tolist() == [0, 2]
    assert batch.bad == [(1, f"a message encodes to id {chat.end}, which is no text of this tokenizer")]


@pytest.mark.parametrize("policy", ["split", "truncate_thought", "drop"])
def test_long_conversations(tiny_tokenizer: Path, policy: Any) -> None:
    """Row 0 fits, row 1 fits with a shorter thought, row 2 does not without any, row 3 has none to cut."""
    hf = tokenizer(tiny_tokenizer, "chatml")
    thought = "<think>" + "To think. " * 20 + "</think>"
    rows = [
        PLAIN[0],
        say("u:x", f"a:{thought}yes"),
        say("u:x", f"a:{thought}" + "yes " * 90),
        say("u:" + "x " * 90, "a:y"),
    ]
    whole, _ = run(hf, rows)
    window = int(whole.lengths[1]) - 7
    batch, _ = run(hf, rows, sequence_length=window, long_documents=policy)
    sequences, full = cut(batch), cut(whole)
    if policy == "drop":
        assert (batch.kept.tolist(), batch.counts, sequences) == ([0], {"dropped_long": 3}, full[:1])
        return
    assert batch.kept.tolist() == [0, 1, 2, 3]
    assert [sequences[i] for i in (0, 2, 3)] == [full[i] for i in (0, 2, 3)]
    if policy == "split":
        assert (batch.counts, sequences[1]) == ({"longer_than_window": 3}, full[1])
        return
    assert batch.counts == {"longer_than_window": 2, "thought_cut_to_window": 1}
    (ids, mask), end = sequences[1], int(whole.thinking_end[1]) - 1
    assert ids == full[1][0][: end - 7] + full[1][0][end:]
    assert mask == full[1][1][: end - 7] + full[1][1][end:]
    assert (len(ids), batch.thinking_end[1]) == (window, end - 6)


def test_thoughts_are_cut_at_the_budget(tiny_tokenizer: Path) -> None:
    hf = tokenizer(tiny_tokenizer, "chatml")
    rows = [say("u:x", "a:<think>abcdefghij</think>k", "u:l", "a:<think>mno</think>p")]
    batch, facts = run(hf, rows, max_thinking_tokens=2)
    assert batch.counts == {"thought_cut_at_budget": 2}
    ((ids, _),) = cut(batch)
    opens, closes = facts.control_id("<think>", ""), facts.control_id("</think>", "")
    starts = [place for place, identity in enumerate(ids) if identity == opens]
    assert [ids[place + 3] for place in starts] == [closes, closes]
    assert batch.thinking_end[0] - batch.thinking_start[0] == 4


def test_parts_say_what_is_ours(tiny_tokenizer: Path) -> None:
    chat, _ = build(tokenizer(tiny_tokenizer, "chatml"))
    parts = render(chat, PLAIN[2])
    assert "".join(part.text for part in parts) == (
        "<|im_start|>user\nThink<|im_end|>\n<|im_start|>assistant\n" + PLAIN[2][1]["content"] + "<|im_end|>"
    )
    kinds = ["frame", "content", "frame", "tag", "thought", "tag", "content", "frame"]
    assert [part.kind for part in parts] == kinds
    assert [part.control for part in parts] == [kind in ("frame", "tag") for kind in kinds]
    assert [part.trained for part in parts] == [False] * 3 + [True] * 5
