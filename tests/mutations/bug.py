"""A planted bug: a change of one place in the kernels' source, and the tests that have to fail on it."""

from dataclasses import dataclass

# The classes that a bug of these kernels falls in. The first ten are those that have to be covered.
REQUIRED_KINDS = (
    "mask off by one", "wrong skip", "missing rescale", "GQA map", "int32 overflow", "z-loss factor",
    "ignored row leaking", "wrong group reduction", "unwritten tail", "race",
)  # fmt: skip
OTHER_KINDS = (
    "placed queries", "scale", "stride", "out of bounds", "wrong gradient", "lost precision", "NaN",
    "padding", "silent target", "copied gradient", "chunks", "main_grad",
)  # fmt: skip


@dataclass(frozen=True)
class Bug:
    """`old`, which stands once in `file`, becomes `new`; each of `tests` may be the one that catches it.

    file: below kernels/tpt_kernels. tests: pytest's node ids below tests/kernels.
    """

    name: str
    kind: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


class PlantError(Exception):
    """A bug cannot be planted: the source that it was written for has changed."""


def planted(source: str, bug: Bug) -> str:
    """The source with the bug in it. PlantError where its place is not found, or found twice."""
    if source.count(bug.old) != 1:
        raise PlantError(
            f"{bug.name}: its text stands {source.count(bug.old)} times in {bug.file}, expected once; "
            f"write the bug anew for the source of today. Text: {bug.old!r}"
        )
    return source.replace(bug.old, bug.new)
