"""Export: transformers computes our logits from the exported weights; what is wrong is refused by name."""

import io
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM

from tpt_megatron.artifact import manifest_of_files, verify_tree, write_manifest
from tpt_megatron.config.load import dump, load
from tpt_megatron.convert import to_hf as export
from tpt_megatron.convert.shards import StepReader
from tpt_megatron.convert.to_hf import to_hf
from tpt_megatron.errors import DamagedError, InputError

WORKER = Path(__file__).parent / "step_worker.py"
TINY = [
    "model.num_layers=3", "model.hidden_size=48", "model.ffn_hidden_size=80", "model.num_attention_heads=6",
    "model.vocab_size=301",
    "model.max_position_embeddings=64", "model.rope_theta=50000", "model.init_std=0.1",
    "data.sequence_length=32", "train.global_batch_size=1", "train.precision=fp32",
]  # fmt: skip
SLOTS = Path(__file__).parents[2] / "examples" / "slots"
SHAPES = {
    "a fork's own family and attention": [
        "model.num_key_value_heads=2", "model.family=qwen2_family:FAMILY",
        "kernels.attention=plain_attention:attention",
    ],
    "grouped queries": ["model.num_key_value_heads=2"],
    "tied, head_dim apart from hidden / heads": [
        "model.num_key_value_heads=6", "model.tied_embeddings=true",
        "model.head_dim=16", "model.norm_epsilon=1e-3",
    ],
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def step(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint step and the folder that holds its tokens and logits."""
    sys.path.insert(0, str(SLOTS))  # the fork's modules, as its PYTHONPATH would give them
    folder = tmp_path_factory.mktemp("step")
    (folder / "config.json").write_text(dump(load([*TINY, *SHAPES[request.param]])))
    torch.save(torch.randint(0, 301, (32,), generator=torch.Generator().manual_seed(3)), folder / "tokens.pt")
    arguments = [folder / name for name in ("config.json", "checkpoints", "tokens.pt", "logits.pt")]
    done = subprocess.run(
        [sys.executable, str(WORKER), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SLOTS)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "checkpoints/step-00000001", folder


def test_transformers_computes_our_logits(step, tmp_path):
    step_folder, folder = step
    summary = to_hf(step_folder, tmp_path / "hf", "fp32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert isinstance(model, LlamaForCausalLM | Qwen2ForCausalLM)
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    tokens, ours = torch.load(folder / "tokens.pt"), torch.load(folder / "logits.pt")
    with torch.no_grad():
        theirs = model(tokens[None]).logits[0]
    assert ours.shape == (32, 384), "the vocabulary of 301 is padded to a multiple of 128"
    assert theirs.std() > 0.1, "equal logits mean little where they are all alike"
    torch.testing.assert_close(ours[:, :301], theirs, atol=1e-4, rtol=0)
    verify_tree(tmp_path / "hf")


def test_shards_of_a_given_size_hold_the_same_weights(step, tmp_path, monkeypatch):
    to_hf(step[0], tmp_path / "one", "bf16")
    monkeypatch.setattr(export, "SHARD_BYTES", 30_000)
    to_hf(step[0], tmp_path / "many", "bf16")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = (AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("one", "many"))
    for name, tensor in one.items():
        assert torch.equal(tensor, many[name]), name


def copied(step_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(step_folder, tmp_path / step_folder.name))


def test_a_changed_byte_is_refused(step, tmp_path):
    folder = copied(step[0], tmp_path)
    shard = max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DamagedError, match="does not match its checksum"):
        to_hf(folder, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_crafted_pickle_does_not_run(step, tmp_path):
    folder, canary = copied(step[0], tmp_path), tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return (exec, (f"open({str(canary)!r}, 'w')",))

    file = io.BytesIO()
    pickle.dump(Payload(), file)
    (folder / ".metadata").write_bytes(file.getvalue())
    write_manifest(folder / "manifest.json", manifest_of_files(folder, "checkpoint", {}))
    with pytest.raises(DamagedError, match=r"blocked global builtins\.exec"):
        StepReader(folder)
    assert not canary.exists()


def test_an_existing_folder_and_a_missing_tensor_are_named(step, tmp_path):
    (tmp_path / "hf").mkdir()
    with pytest.raises(InputError, match="exists already"):
        to_hf(step[0], tmp_path / "hf")
    with pytest.raises(InputError, match=r"no tensor 'decoder\.layers\.0\.mystery'"):
        StepReader(step[0]).read("decoder.layers.0.mystery")
