"""`make bench-kernels`: our kernels and every peer installed, side by side, on the device at hand.

Prints the time of each, its TFLOP/s or TB/s, the fraction of the measured ceiling, the peak memory, and our
time over the fastest peer's; a peer that is missing or refuses is listed with its reason. On a machine
without a GPU the shapes are tiny and the figures say nothing about speed.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clock import Ceilings
    from peers_loss import LogitsInputs
    from trial import Measurement, Ready

ROOT = Path(__file__).resolve().parents[1]
BUDGET_MS, QUICK_BUDGET_MS = 200.0, 40.0  # of timed runs for one measurement


def add_paths() -> None:
    """Makes the benchmark's scripts importable, and the kernels where the repository is not installed."""
    for folder in (ROOT, ROOT / "kernels", ROOT / "kernels" / "bench"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))


def megatron_core(x: "LogitsInputs") -> "Ready":
    """The one peer that kernels/ may not import: only tpt_megatron.mcore imports megatron."""
    from trial import Ready

    from tpt_megatron.mcore.peers import fused_cross_entropy

    return Ready(lambda: fused_cross_entropy(x.logits, x.target))


def chosen(name: str, text: str | None, known: list[str]) -> list[str]:
    """The comma-separated names in `text`, in the order of `known`; None is all. Exits on an unknown one."""
    if text is None:
        return known
    asked = [word.strip() for word in text.split(",")]
    if unknown := [word for word in asked if word not in known]:
        raise SystemExit(f"{name}: got {', '.join(unknown)}, expected some of {', '.join(known)}")
    return [word for word in known if word in asked]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="OP,OP", help="these ops alone (all by default)")
    parser.add_argument("--shapes", metavar="NAME,NAME", help="these shapes alone (all by default)")
    parser.add_argument("--quick", action="store_true", help="8k shapes unless --shapes, and fewer repeats")
    parser.add_argument("--minutes", type=float, default=60.0, help="after these nothing new is begun")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the times")
    options = parser.parse_args(arguments)
    add_paths()
    from clock import Deadline
    from plot import write_plot
    from record import Record, this_place, write_json
    from session import OPS, Session, measure, shape_names
    from table import as_markdown

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = chosen("--shapes", options.shapes, shape_names(device))
    if options.quick and options.shapes is None:
        shapes = [name for name in shapes if "32k" not in name]
    session = Session(
        device, chosen("--only", options.only, list(OPS)), shapes,
        QUICK_BUDGET_MS if options.quick else BUDGET_MS, Deadline.after(60 * options.minutes),
        {"megatron-core": megatron_core},
    )  # fmt: skip
    place = this_place(device)

    def keep(ceilings: "Ceilings", measurements: "Sequence[Measurement]") -> None:
        if options.json is not None:
            write_json(options.json, Record(place, ceilings, measurements))

    ceilings, measurements = measure(session, lambda line: print(line, file=sys.stderr, flush=True), keep)
    record = Record(place, ceilings, measurements)
    print(as_markdown(record))
    if options.json is not None:
        print(f"\nevery figure: {options.json}")
    if options.plot is not None:
        write_plot(options.plot, record)
        print(f"plot: {options.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
