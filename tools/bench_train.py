"""`make bench`: tokens/s of our trainer beside a plain loop over transformers, alternated, as a ratio.

6 layers, 384 wide, vocabulary 8,192, sequence 512, float32, one thread each; both take the same steps of the
same size on random tokens, and the first two steps are not counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tpt_megatron.data.writer import IndexedWriter
from tpt_megatron.train.log import read_metrics

SHAPE = {"num_layers": 6, "hidden_size": 384, "ffn_hidden_size": 1024, "num_attention_heads": 6}
VOCABULARY, LENGTH, BATCH, STEPS, UNCOUNTED = 8192, 512, 4, 8, 2


def ours(folder: Path) -> float:
    """Tokens/s of `tpt train`, one rank."""
    prefix, run_dir = folder / "data", folder / f"run-{time.monotonic_ns()}"
    if not prefix.with_name("data.manifest.json").exists():
        with IndexedWriter(prefix, VOCABULARY) as writer:
            writer.add(np.random.default_rng(0).integers(0, VOCABULARY, STEPS * BATCH * LENGTH + 1), 0, 0, 0)
            tokenizer = {"name": "none", "fingerprint": "0", "vocab_size": VOCABULARY}
            writer.finish(
                {"tokenizer": tokenizer, "control": {}, "sources": [], "style": "none", "counts": {}}
            )
    settings = {f"model.{key}": value for key, value in SHAPE.items()} | {
        "model.num_key_value_heads": 6, "model.vocab_size": VOCABULARY, "data.sequence_length": LENGTH,
        "data.blend": f'[["{prefix}", 1.0]]', "train.run_dir": run_dir, "train.precision": "fp32",
        "train.global_batch_size": BATCH, "train.micro_batch_size": BATCH,
        "train.tokens": STEPS * BATCH * LENGTH, "checkpoint.every_steps": 0,
    }  # fmt: skip
    arguments = [f"{key}={value}" for key, value in settings.items()]
    subprocess.run(
        [sys.executable, "-m", "tpt_megatron", "train", *arguments], check=True, capture_output=True
    )
    seconds = [line["seconds"] for line in read_metrics(run_dir / "metrics.jsonl")][UNCOUNTED:]
    return BATCH * LENGTH / statistics.median(seconds)


def peer() -> float:
    """Tokens/s of the plain loop, in this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=SHAPE["hidden_size"], num_hidden_layers=SHAPE["num_layers"],
            intermediate_size=SHAPE["ffn_hidden_size"], num_attention_heads=SHAPE["num_attention_heads"],
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    seconds = []
    for _ in range(STEPS):
        start = time.monotonic()
        tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
        model(tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - start)
    return BATCH * LENGTH / statistics.median(seconds[UNCOUNTED:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="run the peer alone and print its tokens/s")
    options = parser.parse_args()
    if options.peer:
        print(json.dumps(peer()))
        return
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.pairs):
            mine = ours(Path(folder))
            done = subprocess.run(
                [sys.executable, __file__, "--peer"], check=True, capture_output=True, text=True
            )
            theirs = json.loads(done.stdout.splitlines()[-1])
            ratios.append(mine / theirs)
            print(
                f"tpt train {mine:.0f} tokens/s, transformers {theirs:.0f} tokens/s, ratio {ratios[-1]:.2f}"
            )
    print(f"median ratio {statistics.median(ratios):.2f} of {options.pairs} alternated pairs")


if __name__ == "__main__":
    main()
