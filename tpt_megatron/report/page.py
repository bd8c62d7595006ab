"""The page: what was found, drawn and written as one HTML file that needs no other."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tpt_megatron.records import Trajectory
from tpt_megatron.report.dataset_view import LENGTH, dataset_view
from tpt_megatron.report.find import Found
from tpt_megatron.report.plots import (
    DOCUMENT,
    INK,
    THINKING,
    VARIABLES,
    Curve,
    compact,
    curves,
    length_histogram,
    run_style,
)
from tpt_megatron.report.training import Run
from tpt_megatron.report.trajectories import Trajectories

TEMPLATE = "page.html"
MAX_POINTS = 500  # of a curve
PAGE_POINTS = 16_000  # of all runs' curves together: 13 bytes each, so that fifty runs stay under 2 MB
MAX_CHARACTERS = 2000  # of a sample's text and of its thought
MISSING = "\N{EN DASH}"
TOKENS, LOSS = "tokens", "loss (nats a token)"


@dataclass(frozen=True)
class RunView:
    run: Run
    color: str  # the CSS variable
    dash: str
    grouped: bool  # a point of its curves stands for several steps
    parts: Markup
    learning_rate: Markup
    gradient_norm: Markup


@dataclass(frozen=True)
class Passage:
    """The beginning of a text of `characters` characters."""

    text: str
    characters: int

    @property
    def cut(self) -> bool:
        return len(self.text) < self.characters


@dataclass(frozen=True)
class Sample:
    trajectory: Trajectory
    text: Passage
    thinking: Passage


@dataclass(frozen=True)
class TrajectoriesView:
    trajectories: Trajectories
    lengths: Markup
    samples: tuple[Sample, ...]


def render(found: Found, folder: Path, title: str) -> str:
    """The page about `found`, which `folder` holds; absolute paths become relative to it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "whole": _whole, "decimal": _decimal, "percent": _percent, "perplexity": _perplexity,
        "relative": lambda name: _relative(name, folder),
        "inside": lambda text: text.replace(f"{os.path.abspath(folder)}{os.sep}", ""), "compact": compact,
    }  # fmt: skip
    points = max(min(MAX_POINTS, PAGE_POINTS // (5 * max(len(found.runs), 1))), 50)
    text = environment.get_template(TEMPLATE).render(
        title=title,
        found=found,
        losses=_losses(found.runs, points),
        runs=[_run_view(number, run, points) for number, run in enumerate(found.runs)],
        evaluated=list(dict.fromkeys(name for e in found.evaluations for name in e.scores)),
        datasets=[dataset_view(number, dataset) for number, dataset in enumerate(found.datasets)],
        trajectories=[_trajectories_view(number, item) for number, item in enumerate(found.trajectories)],
    )
    # A file's name need not be UTF-8; Python then holds it with lone surrogates, which no page can.
    return text.encode(errors="replace").decode()


def _losses(runs: tuple[Run, ...], points: int) -> Markup:
    lines = [
        Curve(run.consumed(points), run.mean_loss("all", points), *run_style(number))
        for number, run in enumerate(runs)
    ]
    return Markup(curves("losses", lines, TOKENS, LOSS)) if lines else Markup()


def _run_view(number: int, run: Run, points: int) -> RunView:
    color, dash = run_style(number)
    tokens = run.consumed(points)
    parts = [
        Curve(tokens, run.mean_loss(part, points), part_color)
        for part, part_color in (("document", DOCUMENT), ("thinking", THINKING))
    ]

    def column(name: str) -> Markup:
        line = Curve(tokens, run.largest(name, points), INK)
        return Markup(curves(f"run-{number}-{name}", [line], TOKENS, name.replace("_", " ")))

    return RunView(
        run=run,
        color=VARIABLES[color],
        dash=dash,
        grouped=len(run.metrics["step"]) > points,
        parts=Markup(curves(f"run-{number}-parts", parts, TOKENS, LOSS)),
        learning_rate=column("learning_rate"),
        gradient_norm=column("gradient_norm"),
    )


def _trajectories_view(number: int, found: Trajectories) -> TrajectoriesView:
    parts = ((found.document, DOCUMENT), (found.thinking, THINKING))
    return TrajectoriesView(
        found,
        Markup(length_histogram(f"trajectories-{number}", parts, LENGTH, "trajectories")),
        tuple(Sample(row, _passage(row.text), _passage(row.thinking)) for row in found.samples),
    )


def _passage(text: str) -> Passage:
    return Passage(text[:MAX_CHARACTERS], len(text))


def _relative(name: str, folder: Path) -> str:
    """A path as `folder` sees it; a name of another kind (of the hub, or relative already) as it is."""
    return os.path.relpath(name, os.path.abspath(folder)) if os.path.isabs(name) else name


def _whole(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def _decimal(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f} %"


def _perplexity(value: Any) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.3g}"
