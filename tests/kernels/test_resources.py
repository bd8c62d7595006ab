"""The compile-only gate: a sound GEMM passes on every target, each planted breach fails in its own words."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "kernels" / "bench"
GATE = BENCH / "resources.py"
WORKER = Path(__file__).with_name("gate_worker.py")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942", "gfx950")


def run(script: Path, *arguments: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    """A script in a process that compiles: this one may run under the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def breaches(output: str) -> list[str]:
    """The lines below the table and its count."""
    _, _, below = output.rpartition(" of compiling\n")
    return below.splitlines()


@pytest.mark.parametrize(
    ("plant", "matrix"),
    [
        (
            "sound",
            dict(
                zip(TARGETS, ("mma.sync bf16", "wgmma bf16", "tcgen05 f16", *["mfma bf16"] * 2), strict=True)
            ),
        ),
        ("sound fp32", {"sm_90": "", "gfx942": "mfma f32"}),
    ],
)
def test_a_sound_kernel_passes(plant: str, matrix: dict[str, str], tmp_path: Path) -> None:
    named = [part for target in matrix for part in ("--target", target)]
    arguments = [] if len(matrix) == len(TARGETS) else named  # without a name: every target
    done = run(WORKER, plant, *arguments, "--jobs", "1", "--json", str(tmp_path / "reports.json"))
    assert (done.returncode, breaches(done.stdout)) == (0, []), done.stdout + done.stderr
    reports = json.loads((tmp_path / "reports.json").read_text())
    assert [report["target"] for report in reports] == list(matrix)
    for report, kind in zip(reports, matrix.values(), strict=True):
        facts = report["facts"]
        # family and type: the shape is the compiler's choice
        assert {re.sub(r" .* ", " ", found) for found in facts["matrix"]} == {kind} - {""}
        assert facts["wide_loads"] == facts["loads"] > 0  # rows are contiguous and aligned
        assert facts["registers"] > 16
        assert facts["occupancy"] == facts["blocks"] * 4 / (4 if report["target"].startswith("gfx") else 1)
        assert f"{report['target']} " in done.stdout
    assert "32 " in done.stdout.splitlines()[2]  # FLOP a byte: 262,144 / 8,192


PLANTS = [
    ("spilling", "sm_90", r"\d+ spilled loads, \d+ spilled stores, \d+ bytes of stack, expected none; .*"
                          r"\ngemm on sm_90: ptxas waits for each wgmma before the next"),
    ("spilling", "gfx942", r"\d+ spilled vector registers, .*\d+ bytes of scratch, expected none; choose"),
    ("oversized", "sm_90", r"294,912 bytes of shared memory, expected at most 232,448; choose"),
    ("oversized", "gfx942", r"262,144 bytes of shared memory, expected at most 65,536; choose"),
    ("upcast", "sm_90", r"dots without a matrix instruction: 1, expected wgmma in bf16"),
    ("upcast", "sm_100", r"tcgen05 tf32, expected tcgen05 in bf16"),
    ("upcast", "gfx942", r"mfma \S+ f32, expected mfma in bf16"),
    ("small", "sm_90", r"mma.sync \S+ bf16, expected wgmma in bf16"),
    ("no dot", "sm_90", r"no dot, expected wgmma in bf16 or fp16"),
    ("atomic", "sm_90", r"\d+ atomics \(atom\.global\S+f32\) in a deterministic kernel, expected none"),
    ("atomic", "gfx942", r"\d+ atomics \(buffer_atomic_add_f32\) in a deterministic kernel"),
    ("tf32", "sm_80", r"mma.sync \S+ tf32, expected true fp32; pass input_precision='ieee'"),
    ("tf32", "sm_90", r"wgmma \S+ tf32, expected true fp32"),
    ("tf32", "gfx942", r"mfma \S+ xf32, expected true fp32"),
    ("emulated fp32", "gfx950", r"mfma \S+ bf16, expected true fp32"),
    ("crowded", "sm_90", r"an occupancy of 32 warps a SM \(.*\), expected at least 65; choose"),
    ("crowded", "gfx950", r"an occupancy of 8 waves a SIMD \(.*\), expected at least 65"),
    ("narrow", "sm_80", r"none of \d+ loads takes 16 bytes, expected some; keep masks"),
    ("inner", "sm_90", r"not compiled: \w+: .*arange's range must be a power of 2"),
    ("undefined", "sm_90", r"not compiled: CompilationError: .*nowhere"),
    ("refused", "sm_90", r"not compiled: PTXASError: .*Insufficient registers"),
    ("unknown option", "gfx942", r"not compiled: RecordError: options: got matrix_instr_nonkdin"),
    ("unknown argument", "sm_90", r"not compiled: RecordError: gemm has no argument m"),
    ("no type", "sm_90", r"not compiled: RecordError: gemm: b has neither a type nor a constant"),
    ("crash", "sm_90", r"the compiler died with exit code -6 \(planted\)"),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "target", "message"), PLANTS)
def test_a_plant_fails_in_its_own_words(plant: str, target: str, message: str) -> None:
    done = run(WORKER, plant, "--target", target, "--jobs", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    found = breaches(done.stdout)
    assert re.match(rf"gemm on {target}: {message}", "\n".join(found)), found
    assert len(found) == message.count(r"\n") + 1  # nothing else is wrong with the plant


def test_an_unknown_target_fails() -> None:
    done = run(WORKER, "unknown target", "--target", "sm_90")
    assert done.returncode == 1
    (breach,) = breaches(done.stdout)
    assert breach.startswith(
        "gemm on sm_42: not compiled: RecordError: target: got 'sm_42', expected one of sm_80"
    )


def test_the_interpreter_is_refused() -> None:
    done = run(WORKER, "sound", "--target", "sm_90", interpret=True)
    assert done.returncode == 1
    assert "unset TRITON_INTERPRET" in breaches(done.stdout)[0]


def test_atomics_pass_where_the_kernel_may_have_them() -> None:
    done = run(WORKER, "allowed atomic", "--target", "gfx942")
    assert done.returncode == 0, done.stdout
    assert "16 buffer_atomic_add_f32" in done.stdout


def test_a_crash_leaves_the_others_their_reports() -> None:
    done = run(WORKER, "crash", "--target", "gfx942", "--jobs", "2")
    assert re.search(r"^gfx942  beside +\d+ .* 0$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^gfx942  gemm +-  not compiled .* 1$", done.stdout, re.MULTILINE), done.stdout


def test_a_gate_that_compiled_nothing_fails() -> None:
    done = run(WORKER, "sound", "--only", "no kernel has this name")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing was compiled" in done.stderr


def test_a_wrong_command_line() -> None:
    done = run(GATE, "--target", "sm_42")
    assert done.returncode == 2
    assert "invalid choice: 'sm_42'" in done.stderr
    done = run(WORKER, "sound", "--jobs", "0")
    assert done.returncode == 2
    assert "--jobs: got 0, expected at least 1" in done.stderr


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(
    ("target", "registers", "warps", "shared_bytes", "columns", "blocks"),
    [
        ("sm_80", 32, 4, 0, 0, 16),  # 64 warps
        ("sm_80", 16, 1, 0, 0, 32),  # 32 blocks
        ("sm_80", 128, 4, 0, 0, 4),  # 65,536 / (128 * 128)
        ("sm_90", 168, 8, 0, 0, 1),  # 12 warps, which hold one block of 8
        ("sm_90", 168, 4, 0, 0, 3),
        ("sm_90", 255, 8, 0, 0, 1),
        ("sm_90", 32, 4, 112 * 1024, 0, 2),  # 228 KiB, 1 of each block the driver's
        ("sm_90", 32, 4, 114 * 1024, 0, 1),
        ("sm_80", 32, 4, 163 * 1024, 0, 1),
        ("sm_80", 32, 4, 164 * 1024, 0, 0),
        ("sm_100", 32, 4, 0, 256, 2),  # 512 columns of tensor memory
        ("sm_100", 32, 4, 0, 512, 1),
    ],
)
def test_blocks_of_a_sm(
    target: str, registers: int, warps: int, shared_bytes: int, columns: int, blocks: int
) -> None:
    from limits import cuda_blocks

    found = cuda_blocks(
        target, registers=registers, warps=warps, shared_bytes=shared_bytes, tensor_memory_columns=columns
    )
    assert found == blocks


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(
    ("target", "vector", "scalar", "warps", "shared_bytes", "blocks"),
    [
        ("gfx942", 64, 32, 4, 0, 8),  # 512 / 64: a wave of the block on each of the 4 SIMDs
        ("gfx942", 65, 32, 4, 0, 7),  # handed out by 8
        ("gfx942", 256, 32, 4, 0, 2),
        ("gfx942", 257, 32, 4, 0, 1),
        ("gfx942", 256, 32, 8, 0, 1),
        ("gfx942", 257, 32, 8, 0, 0),  # 2 waves a SIMD do not fit
        ("gfx942", 64, 101, 4, 0, 7),
        ("gfx942", 64, 32, 1, 0, 32),
        ("gfx942", 64, 32, 2, 0, 16),
        ("gfx942", 64, 32, 4, 32 * 1024, 2),
        ("gfx942", 64, 32, 4, 96 * 1024, 0),
        ("gfx950", 64, 32, 4, 96 * 1024, 1),
    ],
)
def test_workgroups_of_a_cu(
    target: str, vector: int, scalar: int, warps: int, shared_bytes: int, blocks: int
) -> None:
    from limits import amd_blocks

    found = amd_blocks(
        target, vector_registers=vector, scalar_registers=scalar, warps=warps, shared_bytes=shared_bytes
    )
    assert found == blocks


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"spills": {"bytes of stack": 8}}, "8 bytes of stack, expected none"),
        (
            {"tensor_memory_columns": 1024, "blocks": 0, "occupancy": 0},
            "1024 columns of tensor memory, expected",
        ),
        ({"wgmma_serialised": True}, "ptxas waits for each wgmma before the next"),
        (
            {"matrix": {"wgmma m64n64k16 bf16": 4, "mma.sync m16n8k16 bf16": 8}},
            "mma.sync m16n8k16 bf16, expected",
        ),
        ({"matrix": {"wgmma m64n64k32 e4m3": 4}}, "wgmma m64n64k32 e4m3, expected wgmma in bf16 or fp16"),
        ({"fma_dots": 1}, "dots without a matrix instruction: 1"),
        ({"occupancy": 7}, "an occupancy of 7 warps a SM"),
    ],
)
def test_problems(change: dict[str, Any], message: str | None) -> None:
    from compilation import Compilation
    from facts import Facts
    from report import problems

    sound: dict[str, Any] = {
        "registers": 96, "spills": {}, "shared_bytes": 1024, "tensor_memory_columns": 0, "warps": 4,
        "blocks": 2, "occupancy": 8, "matrix": {"wgmma m64n64k16 bf16": 4}, "fma_dots": 0, "loads": 4,
        "wide_loads": 4, "atomics": {}, "wgmma_serialised": False,
    }  # fmt: skip
    compilation = Compilation(None, "sm_90", "gemm", {}, {}, 4, 2, 8, True)
    found = list(problems(compilation, Facts(**(sound | change))))
    assert len(found) == (0 if message is None else 1)
    assert message is None or found[0].startswith(message)
