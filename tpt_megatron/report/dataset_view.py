"""What the page shows of a dataset, made ready for its template: bars, small histograms, shares."""

from dataclasses import dataclass

from markupsafe import Markup

from tpt_megatron.report.datasets import WINDOWS, Dataset
from tpt_megatron.report.lengths import Lengths
from tpt_megatron.report.lineage import Field, Group, Lineage
from tpt_megatron.report.plots import DOCUMENT, THINKING, length_histogram, small_histogram

LENGTH = "tokens (1k = 1,024)"


@dataclass(frozen=True)
class Window:
    """How many pairs of document and thought are longer than `tokens`, and their share of all."""

    tokens: int
    longer: int
    share: float


@dataclass(frozen=True)
class GroupView:
    """One group of a field; bars are shares of the longest bar of the field."""

    label: str
    counted: bool  # the label is not a value but says which rows these are
    group: Group
    mean_bar: float
    median_bar: float
    document: Markup
    thinking: Markup


@dataclass(frozen=True)
class FieldView:
    field: Field
    groups: tuple[GroupView, ...]
    note: str

    @property
    def several(self) -> bool:
        return len(self.groups) > 1


@dataclass(frozen=True)
class DatasetView:
    dataset: Dataset
    lengths: Markup | None
    windows: tuple[Window, ...]
    fields: tuple[FieldView, ...]


def dataset_view(number: int, dataset: Dataset) -> DatasetView:
    """`number` is the dataset's own in the page."""
    lineage = dataset.lineage
    if lineage is None:
        return DatasetView(dataset, None, (), ())
    parts = ((lineage.whole.document, DOCUMENT), (lineage.whole.thinking, THINKING))
    plot = Markup(length_histogram(f"dataset-{number}", parts, LENGTH, "sequences"))
    return DatasetView(dataset, plot, _windows(lineage.pair), tuple(map(_field_view, _shown(lineage))))


def _windows(pair: Lengths) -> tuple[Window, ...]:
    longer = [(tokens, pair.longer_than(tokens)) for tokens in WINDOWS]
    return tuple(Window(tokens, rows, rows / max(pair.rows, 1)) for tokens, rows in longer)


def _shown(lineage: Lineage) -> list[Field]:
    return [field for field in lineage.fields if field.groups or field.others]


def _field_view(field: Field) -> FieldView:
    rows = [(str(group.value), False, group) for group in field.groups]
    if field.others:
        hidden = "" if field.distinct is None else f"{field.distinct - len(field.groups):,} "
        rows.append((f"{hidden}other values", True, field.others))
    if field.without:
        rows.append(("without this field", True, field.without))
    groups = [group for _, _, group in rows]
    longest = max(max(group.thinking.mean, group.thinking.quantile(0.5)) for group in groups) or 1
    axis = max(max(group.thinking.longest, group.document.longest) for group in groups)
    several = len(rows) > 1  # one group alone looks as the whole, which has its plot already
    views = tuple(
        GroupView(
            label, counted, group, group.thinking.mean / longest, group.thinking.quantile(0.5) / longest,
            Markup(small_histogram(group.document, axis, DOCUMENT) if several else ""),
            Markup(small_histogram(group.thinking, axis, THINKING) if several else ""),
        )
        for label, counted, group in rows
    )  # fmt: skip
    note = f"The {len(field.groups)} most frequent of many values." if field.others else ""
    return FieldView(field, views, note)
