"""A chart as the page shows it: the drawing, a sentence that reads it, and the same numbers in a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_llmbench.core.records import MetricValue
from pytest_llmbench.reports.charts import MOST_SERIES, Drawing, Series
from pytest_llmbench.reports.html_text import interval, quantity

MOST_ROWS = 400


@dataclass(frozen=True, slots=True)
class ChartView:
    """One chart.

    Attributes:
        key: what it is known by on the page.
        reading: what is to be seen in it.
        drawing: None where there is nothing to draw, and ``reading`` says why.
        note: what it does not show, or how it is to be read.
        head, rows: the table beside it.
    """

    key: str
    title: str
    reading: str
    drawing: Drawing | None = None
    note: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def missing(key: str, title: str, why: str) -> ChartView:
    """A chart that is not drawn."""
    return ChartView(key, title, why)


def few(series: Sequence[Series], worth: Callable[[Series], float]) -> tuple[list[Series], str]:
    """As many as can be told apart by colour and shape, the most worth it, in their order; and a note on the others."""
    if len(series) <= MOST_SERIES:
        return list(series), ""
    kept = {id(one) for one in sorted(series, key=worth, reverse=True)[:MOST_SERIES]}
    return [one for one in series if id(one) in kept], f"{MOST_SERIES} of {len(series):,} are drawn."


def spoken(name: str, metric: MetricValue) -> str:
    """A metric for a tip or a table."""
    bounds = interval(name, metric)
    return quantity(name, metric.value) + (f" ({bounds})" if bounds else "")
