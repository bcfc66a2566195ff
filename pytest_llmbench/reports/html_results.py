"""The heat map, and the table of results of each profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import FLAGS, CellRecord
from pytest_llmbench.reports.columns import by_profile, columns_of
from pytest_llmbench.reports.html_subjects import Subject, by_bits
from pytest_llmbench.reports.html_text import amount, interval, metric_words, shown, unit_of, with_interval
from pytest_llmbench.reports.html_views import MARKS, Column, HeatMap, ResultRow, ResultTable, Tile, Value

# What a profile's heat map shows, where that is not the first column of its table.
_MAPPED = {"quality": ("quality_score_percent",)}
Keys = Mapping[str, str]
"""By node id, what a cell is called on the page."""


def column(metric: str, title: str | None = None) -> Column:
    """A metric as the head of a column."""
    known = METRICS.get(metric)
    meaning = known.meaning if known is not None else "A metric that this version does not know."
    entry = f"m-{metric}" if known is not None else ""
    return Column(title or metric_words(metric), shown(metric, 80), meaning, entry)


def result_tables(
    records: Sequence[CellRecord], measured: Sequence[Subject], keys: Keys, detailed: set[str]
) -> list[ResultTable]:
    """One for each profile, in the order of the records.

    Args:
        detailed: node ids of the cells that have a part of their own.
    """
    models = {cell.nodeid: one for one in measured for cell in one.cells}
    tables = []
    for number, (profile, cells) in enumerate(by_profile(records).items()):
        shown_here = [one for one in columns_of(profile, cells) if any(one[0] in cell.metrics for cell in cells)]
        names, columns = (
            [name for name, _ in shown_here],
            [column(name, _head(name, title)) for name, title in shown_here],
        )
        rows = [
            ResultRow(
                keys[cell.nodeid],
                models[cell.nodeid].model,
                models[cell.nodeid].quantization,
                [_value(cell, name) for name in names],
                cell.rating or "",
                cell.status,
                [flag for flag in FLAGS if flag in cell.flags],
                cell.nodeid in detailed,
            )
            for cell in cells
        ]
        tables.append(ResultTable(f"results-{number}", shown(profile, 40), columns, rows))
    return tables


def heat_maps(
    records: Sequence[CellRecord], measured: Sequence[Subject], keys: Keys, detailed: set[str]
) -> list[HeatMap]:
    """Models × quantizations, one for each profile: the first metric of its table, coloured by the rating."""
    maps = []
    for profile, cells in by_profile(records).items():
        names = [*_MAPPED.get(profile, ()), *(name for name, _ in columns_of(profile, cells))]
        name = next((name for name in names if any(name in cell.metrics for cell in cells)), None)
        if name is None:
            continue
        values = [cell.metrics[name].value for cell in cells if name in cell.metrics]
        best = min(values) if METRICS[name].better == "lower" else max(values)
        quantizations = by_bits([one.quantization for one in measured if any(one.of(profile))])
        rows: dict[str, dict[str, Tile]] = {}
        for one in measured:
            own = list(one.of(profile))
            if own:
                cell = next((cell for cell in own if name in cell.metrics), own[0])
                link = f"#{'c' if cell.nodeid in detailed else 'r'}{keys[cell.nodeid]}"
                rows.setdefault(one.model, {})[one.quantization] = _tile(one, cell, name, best, link)
        listed = [(model, [tiles.get(quantization) for quantization in quantizations]) for model, tiles in rows.items()]
        maps.append(HeatMap(shown(profile, 40), column(name), quantizations, listed))
    return maps


def _head(name: str, title: str) -> str:
    """A column's short title; what it shortens too much for a page is written out."""
    return title if name not in METRICS or not title.endswith(".") else metric_words(name)


def _value(cell: CellRecord, name: str) -> Value:
    metric = cell.metrics.get(name)
    if metric is None:
        return Value("–")
    return Value(amount(name, metric.value), interval(name, metric), f"{metric.value:.6g}")


def _tile(one: Subject, cell: CellRecord, name: str, best: float, link: str) -> Tile:
    metric = cell.metrics.get(name)
    mark = MARKS[cell.status]
    words = cell.rating or f"{mark} {cell.status}"
    if cell.rating is not None and cell.status != "passed":
        words = f"{mark} {cell.rating}"
    if metric is None:
        return Tile(
            link,
            f"{mark} {cell.status}",
            "",
            shown(cell.reason.code, 40) if cell.reason else "",
            cell.status,
            None,
            _why(one, cell),
        )
    tone = cell.rating or ("unrated" if cell.status == "passed" else cell.status)
    said = f"{one.name}: {with_interval(name, metric)}"
    return Tile(link, amount(name, metric.value), unit_of(name), words, tone, _share(name, metric.value, best), said)


def _share(name: str, value: float, best: float) -> int:
    """Percent of the best; of two times, half the time is twice as good."""
    ratio = (best, value) if METRICS[name].better == "lower" else (value, best)
    if ratio[1] <= 0 or ratio[0] < 0:
        return 100 if value == best else 0
    return round(100 * min(1.0, ratio[0] / ratio[1]))


def _why(one: Subject, cell: CellRecord) -> str:
    return f"{one.name}: {shown(cell.reason.message, 160)}" if cell.reason else one.name
