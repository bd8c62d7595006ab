"""Plots as pieces of SVG to set into a page: the same bytes for the same numbers, the page's colours.

Text stays text and every colour is a CSS variable, so that a plot follows the page's font and dark mode.
Names (which come from outside) never enter a plot; the page's own legend has them.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from tpt_megatron.report.lengths import Lengths

# A colour for matplotlib, which knows no CSS, and what stands in its place in the page.
INK, GRID, DOCUMENT, THINKING = "#000001", "#000002", "#000003", "#000004"
RUNS = tuple(f"#0000{number:02x}" for number in range(16, 24))
VARIABLES = {INK: "ink", GRID: "grid", DOCUMENT: "document", THINKING: "thinking"} | {
    color: f"run-{number}" for number, color in enumerate(RUNS)
}
DASHES = ("solid", "dashed", "dotted")  # of both matplotlib's lines and CSS's borders
SMALL = (120, 22)  # points
INCHES = (4.6, 2.9)  # 331 points wide: on a phone a letter of 10 points is about 10 pixels
# Fixed, wide enough for labels of seven letters: matplotlib's own search for them costs 3/4 of a plot's time.
MARGINS = {"left": 0.2, "right": 0.97, "bottom": 0.17, "top": 0.96}
SETTINGS = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 10,
    "axes.labelcolor": INK, "axes.edgecolor": GRID, "xtick.color": INK, "ytick.color": INK,
    "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none", "axes.linewidth": 0.8,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": False, "lines.linewidth": 1.4,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One line; a `y` that is not finite is a gap. `color` is one of VARIABLES' keys."""

    x: NDArray[np.float64]  # [points]
    y: NDArray[np.float64]  # [points]
    color: str
    dash: str = "solid"


def run_style(number: int) -> tuple[str, str]:
    """(color, dash) of the run of this number; they repeat after 24 runs."""
    return RUNS[number % len(RUNS)], DASHES[number // len(RUNS) % len(DASHES)]


def curves(name: str, lines: Sequence[Curve], x_label: str, y_label: str) -> str:
    """The SVG of `lines` in one plot. `name` is unique in the page and is not shown."""
    with _figure(name) as (figure, axes):
        for line in lines:
            # A line through one point is nothing to see.
            marker = "o" if np.isfinite(line.y).sum() == 1 else ""
            axes.plot(line.x, line.y, color=line.color, linestyle=line.dash, marker=marker, markersize=4)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: compact(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        return _svg(figure)


def length_histogram(name: str, parts: Sequence[tuple[Lengths, str]], x_label: str, y_label: str) -> str:
    """The SVG of (lengths, color) on one logarithmic axis of tokens; lengths of 0 are left out."""
    with _figure(name) as (figure, axes):
        axes.set_xscale("log", base=2)
        for lengths, color in parts:
            edges, rows = lengths.histogram()
            if len(rows):
                axes.stairs(rows, edges, color=color, fill=True, alpha=0.3)
                axes.stairs(rows, edges, color=color, linewidth=1.4)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: binary(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: compact(value)))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        return _svg(figure)


def small_histogram(lengths: Lengths, longest: int, color: str) -> str:
    """An SVG as small as a word, without axes: lengths from 1 to `longest` tokens on a logarithmic axis.

    Drawn by hand: matplotlib takes 60 ms a plot, and a page may have hundreds of these.
    """
    edges, rows = lengths.histogram()
    if not len(rows):
        return ""
    width, height = SMALL
    x = np.log2(edges) / max(np.log2(max(longest, 2)) + 1 / 2, 1) * width
    y = height - rows / rows.max() * (height - 1)
    steps = "".join(f"V{top:.1f}H{right:.1f}" for top, right in zip(y, x[1:], strict=True))
    return (
        f'<svg class="small" viewBox="0 0 {width} {height}" aria-hidden="true" focusable="false">'
        f'<path d="M{x[0]:.1f} {height}{steps}V{height}Z" style="fill: var(--{VARIABLES[color]})"/></svg>'
    )


def binary(value: float) -> str:
    """A power of two as lengths are told: 512, 8k for 8192, 1M for 2^20."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def compact(value: float) -> str:
    """A count in few letters: 950, 1.5k, 20M, 3B, 1T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


@contextmanager
def _figure(name: str) -> Iterator[tuple[Figure, Axes]]:
    """A figure under our settings; the salt makes the ids inside unique to it and the same in every run."""
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=INCHES)
        yield figure, figure.subplots(gridspec_kw=MARGINS)


def _svg(figure: Figure) -> str:
    """`figure` without what only a file of its own needs: prolog, namespaces, size, fonts, group names."""
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(
        buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = buffer.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<svg [^>]*(viewBox=\"[^\"]*\")[^>]*>",
        r'<svg \1 aria-hidden="true" focusable="false">',
        svg,
        count=1,
    )
    svg = re.sub(r"<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>", "", svg, count=1)
    svg = re.sub(r' font-family: [^;"]*;?', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\d+\.\d+|\s+", _shorten, path[0]), svg)
    svg = re.sub(r">\s+<", "><", svg)
    return re.sub("|".join(VARIABLES), lambda color: f"var(--{VARIABLES[color[0]]})", svg).strip()


def _shorten(match: re.Match[str]) -> str:
    """A hundredth of a point is finer than any screen, and halves the page."""
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".") if match[0].strip() else " "
