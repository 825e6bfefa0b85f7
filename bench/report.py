"""Numbers -> rows -> tables.

Two things that are compared are measured in pairs, in one run, taking turns at going first: what
else the machine does then hits both alike. A row says the median of each, the ratio of the medians,
and the 10th and 90th percentile of the ratios of the pairs, which tell how noisy it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from statistics import median, quantiles
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

COLUMNS = ("", "usb-remote", "compared with", "ratio", "p10-p90", "target", "")


@dataclass(frozen=True)
class Target:
    """What a number should be: at most, or at least, some value."""

    value: float
    unit: str = ""
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.value:g}{self.unit and ' ' + self.unit}"

    def verdict(self, number: float) -> str:
        met = number >= self.value if self.at_least else number <= self.value
        return "ok" if met else "MISSED"


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    ours: str
    theirs: str = ""
    ratio: str = ""
    spread: str = ""
    target: str = ""
    verdict: str = ""


def in_turns(pairs: int, ours: Callable[[], T], theirs: Callable[[], U]) -> tuple[list[T], list[U]]:
    """Each once to warm up, then in pairs: ours theirs, theirs ours, ours theirs …"""
    ours()
    theirs()
    a: list[T] = []
    b: list[U] = []
    for number in range(pairs):
        if number % 2:
            b.append(theirs())
            a.append(ours())
        else:
            a.append(ours())
            b.append(theirs())
    return a, b


def compare(
    what: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    unit: str,
    target: Target | None = None,
) -> Row:
    """A row of two numbers that were measured in pairs; the target is for their ratio."""
    ratio = median(ours) / median(theirs)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Row(
        what,
        _shown(median(ours), unit),
        _shown(median(theirs), unit),
        f"{ratio:.2f}",
        f"{percentile(ratios, 10):.2f}-{percentile(ratios, 90):.2f}",
        str(target or ""),
        target.verdict(ratio) if target else "",
    )


def absolute(what: str, numbers: Sequence[float], unit: str, target: Target | None = None) -> Row:
    """A row of a number that is compared with nothing; the spread is its own."""
    low, high = percentile(numbers, 10), percentile(numbers, 90)
    return Row(
        what,
        _shown(median(numbers), unit),
        spread=f"{low:.3g}-{high:.3g} {unit}",
        target=str(target or ""),
        verdict=target.verdict(median(numbers)) if target else "",
    )


def percentile(numbers: Sequence[float], percent: int) -> float:
    if len(numbers) < 2:
        return numbers[0]
    return quantiles(numbers, n=100, method="inclusive")[percent - 1]


def plain(rows: Iterable[Row]) -> str:
    """For a terminal."""
    cells = [COLUMNS, *(astuple(row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def markdown(rows: Iterable[Row]) -> str:
    """For docs/explanations/performance.md."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(astuple(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(number: float, unit: str) -> str:
    return f"{number:.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
