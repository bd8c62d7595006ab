"""The record as one picture: a panel for each op, phase and shape, a bar for each contender's time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from record import Record
from trial import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, PEER = "#c0392b", "#95a5a6"
PANELS_A_ROW = 3


def write_plot(path: Path, record: Record) -> None:
    """A PNG; a record without a figure that counts gives a picture that says so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[str, list[Measurement]] = {}
    for m in record.measurements:
        if m.counts:
            panels.setdefault(f"{m.op} {m.phase}, {m.shape}", []).append(m)
    rows = max(1, -(-len(panels) // PANELS_A_ROW))
    figure = Figure(figsize=(6 * PANELS_A_ROW, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, PANELS_A_ROW, squeeze=False).flatten()
    for axis, (title, measurements) in zip(axes, panels.items(), strict=False):
        _draw(axis, title, measurements)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    place = record.place
    if not panels:
        axes[0].text(0, 0.5, "nothing was measured")
    figure.suptitle(f"{place.device}, torch {place.torch}, triton {place.triton}, {place.date}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png", dpi=110)
    part.replace(path)


def _draw(axis: "Axes", title: str, measurements: Sequence[Measurement]) -> None:
    ordered = sorted(measurements, key=lambda m: m.milliseconds or 0.0, reverse=True)
    times = [m.milliseconds or 0.0 for m in ordered]
    colors = [OURS if m.contender.startswith("ours") else PEER for m in ordered]
    bars = axis.barh([m.contender for m in ordered], times, color=colors)
    labels = [f"{m.milliseconds:.3g} ms, {m.fraction or 0:.0%}" for m in ordered]
    axis.bar_label(bars, labels, padding=3, fontsize=8)
    axis.set_xlim(0, 1.35 * max(times))  # room for the labels
    axis.set_title(f"{title} (ms, of the ceiling)", fontsize=10)
    axis.tick_params(labelsize=8)
