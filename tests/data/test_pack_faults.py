"""Packing that is stopped anywhere and started again ends with the bytes of one that was not."""

import json
import pickle
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pack_worker import CRASHED, contents

from tpt_megatron.artifact import find_manifests, verify_manifest
from tpt_megatron.tokenizer import load_facts

WORKER = [sys.executable, str(Path(__file__).with_name("pack_worker.py"))]
WORDS = ["think", "question", "steps", "water", "boils", "prime", "</think>", "<|endoftext|>", "é", "\u2028"]


@pytest.fixture(scope="module")
def facts(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("facts") / "facts.pickle"
    path.write_bytes(pickle.dumps(load_facts(str(tiny_tokenizer))))
    return path


def make_corpus(folder: Path, documents: int) -> Path:
    """With bad rows, repeated documents and a repeated id."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(documents):
        text = " ".join(rng.choice(WORDS, int(rng.integers(5, 120))))
        lines.append(json.dumps({"id": f"d{number}", "text": text}))
    lines[3] = "broken"
    lines[documents // 2] = json.dumps({"id": "again", "text": json.loads(lines[1])["text"]})
    lines[-1] = json.dumps({"id": "d0", "text": "another text under an id that came before"})
    folder.mkdir()
    for part in range(2):
        (folder / f"{part}.jsonl").write_text("\n".join(lines[part::2]) + "\n")
    return folder


@pytest.mark.parametrize("mode", ["raise", "crash"])
def test_a_fault_at_every_write_sync_and_rename(tmp_path: Path, facts: Path, mode: str) -> None:
    corpus = make_corpus(tmp_path / "corpus", 10)
    command = [*WORKER, "faults", str(facts), str(corpus), str(tmp_path / "runs"), mode]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) > 60, "so few points: is the writing still seen by the worker?"
    assert [line for line in lines if line["second"] != 0 or not line["same"]] == []
    failed = Counter(line["first"] for line in lines)
    # A fault after the manifest is in place may pass unseen; all others are told.
    assert set(failed) <= {0, CRASHED if mode == "crash" else 2}
    assert failed[0] <= 3
    for line in lines:
        if mode == "raise" and line["first"]:
            assert "No space left" in line["error"]
        assert line["finished"] in ([], ["dataset"])


def test_ten_kills_and_the_bytes_of_an_undisturbed_run(tmp_path: Path, facts: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 1500)

    def run(name: str, workers: int) -> subprocess.Popen[str]:
        command = [*WORKER, "run", str(facts), str(corpus), str(tmp_path / name / "x"), str(workers)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    assert run("whole", 1).wait() == 0
    rng = np.random.default_rng(1)
    killed = 0
    for _ in range(10):
        process = run("killed", 1)
        work = tmp_path / "killed" / "x.work"
        before = len(list(work.glob("*.piece"))) if work.exists() else 0
        enough = before + int(rng.integers(1, 15))  # so that each kill meets the work at another place
        limit = time.monotonic() + 60
        while len(list(work.glob("*.piece")) if work.exists() else []) < enough:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.002)
        process.kill()
        killed += process.wait() == -9
        assert find_manifests(tmp_path / "killed" / "x") == []
    assert killed == 10
    assert run("killed", 2).wait() == 0
    verify_manifest(tmp_path / "killed" / "x.manifest.json")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
