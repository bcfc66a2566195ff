"""What the parts of the page are made of: text that is ready to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# Status → mark; colour is never the only sign, and neither is the mark: the word stands beside it.
MARKS = {"passed": "✓", "failed": "✗", "error": "!", "invalid": "?", "skipped": "–", "blocked": "⊘"}


@dataclass(frozen=True, slots=True)
class Depth:
    """How much is told of single cells, so that a page of many remains a page.

    Attributes:
        cells: of how many there is a part of their own.
        passed: whether of those that passed, too.
        rows: of a table of details.
        samples: of a metric.
    """

    cells: int
    passed: bool
    rows: int
    samples: int


@dataclass(frozen=True, slots=True)
class Value:
    """A number in a table: as it is read, its interval, and what it is sorted by (empty: nothing was measured)."""

    text: str
    interval: str = ""
    order: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A metric as the head of a column: what it is called, and what it means.

    Attributes:
        entry: its place in the glossary; empty where it has none.
    """

    title: str
    metric: str
    meaning: str
    entry: str


@dataclass(frozen=True, slots=True)
class ResultRow:
    """A cell in the table of its profile."""

    key: str
    model: str
    quantization: str
    values: Sequence[Value]
    rating: str
    status: str
    doubts: Sequence[str]
    has_detail: bool


@dataclass(frozen=True, slots=True)
class ResultTable:
    """The cells of a profile."""

    key: str
    profile: str
    columns: Sequence[Column]
    rows: Sequence[ResultRow]


@dataclass(frozen=True, slots=True)
class Tile:
    """A cell in the heat map.

    Attributes:
        share: of the best of the map, in percent, as long as the bar is; None where nothing was measured.
        tone: what decides its colour.
    """

    link: str
    text: str
    unit: str
    words: str
    tone: str
    share: int | None
    title: str


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Models × quantizations of a profile; None where the matrix has no such cell."""

    profile: str
    metric: Column
    quantizations: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Tile | None]]]


@dataclass(frozen=True, slots=True)
class Grid:
    """A plain table."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class MetricLine:
    """A metric of one cell."""

    column: Column
    value: str
    interval: str
    n: str
    samples: str


@dataclass(frozen=True, slots=True)
class ThresholdLine:
    """A limit of one cell, judged."""

    verdict: str
    key: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Detail:
    """All that is told of one cell."""

    key: str
    model: str
    quantization: str
    profile: str
    status: str
    rating: str
    words: str
    reason: str
    thresholds: Sequence[ThresholdLine] = ()
    metrics: Sequence[MetricLine] = ()
    comparisons: Grid | None = None
    doubts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Grid] = field(default_factory=tuple)
