"""Charts of what lies behind single numbers: samples, contexts of growing size, and a machine that becomes warm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.errors import Primitive
from pytest_llmbench.reports.charts import MOST_SERIES, Axis, Guide, Point, Row, Series, draw_points, draw_rows
from pytest_llmbench.reports.charts_views import MOST_ROWS, ChartView, few, missing, spoken
from pytest_llmbench.reports.html_subjects import Subject
from pytest_llmbench.reports.html_text import amount, metric_words, quantity, unit_of
from pytest_llmbench.reports.run_data import RunData

MOST_ROWS_DRAWN = 20
_NAME_CHARACTERS = 24
_MOST_SAMPLES = 60  # of a row; more dots lie on top of each other
_MOST_POINTS = 180  # of a line over time
_TEMPERATURE = "cpu_temperature_celsius"


def distribution(measured: Sequence[Subject], metric: str) -> ChartView:
    """Every sample of a metric of the interactive profile, a row for each configuration, the best first."""
    key, title = f"samples-{metric.replace('_', '-')}", f"{metric_words(metric)}: every sample"
    found = [
        (one, cell, list(chain.from_iterable(cell.samples[metric])))
        for one in measured
        for cell in one.of("interactive")
        if metric in cell.metrics and any(cell.samples.get(metric, []))
    ]
    if not found:
        return missing(key, title, f"No interactive cell holds samples of {metric}.")
    sign = -1 if METRICS[metric].better == "higher" else 1
    found.sort(key=lambda item: sign * item[1].metrics[metric].value)
    rows = [_row(one, cell, metric, samples) for one, cell, samples in found[:MOST_ROWS_DRAWN]]
    best, unit = found[0], unit_of(metric)
    reading = f"Best: {best[0].short_name} with {spoken(metric, best[1].metrics[metric])}."
    better = METRICS[metric].better
    drawing = draw_rows(key, f"{title}. {reading}", Axis(f"{unit}, {better} is better"), rows)
    note = "A dot is a request, the bar their median, the band its 95 % interval."
    if len(found) > MOST_ROWS_DRAWN:
        note += f" The {MOST_ROWS_DRAWN} best of {len(found):,} are drawn."
    table = [
        [
            one.name,
            f"{len(samples):,}",
            *(amount(metric, value) for value in (min(samples), max(samples))),
            spoken(metric, cell.metrics[metric]),
        ]
        for one, cell, samples in found[:MOST_ROWS]
    ]
    head = ["configuration", "samples", f"least, {unit}", f"most, {unit}", "median (95 % interval)"]
    return ChartView(key, title, reading, drawing, note, head, table)


def load_by_context(measured: Sequence[Subject]) -> ChartView:
    """Seconds until the first token over the size of the context that is filled."""
    view = ("load-by-context", "Loading a context", "load_seconds", "seconds to load, lower is better")
    return _over_context(measured, *view)


def rate_by_depth(measured: Sequence[Subject]) -> ChartView:
    """Tokens per second over the size of the context that is filled."""
    view = ("rate-by-depth", "Speed in a full context", "decode_tokens_per_second", "tokens/s, higher is better")
    return _over_context(measured, *view)


def temperature(run: RunData, measured: Sequence[Subject]) -> ChartView:
    """The CPU's temperature while a machine was kept busy, from ``telemetry.jsonl``."""
    key, title = "temperature", "Temperature over time"
    stressed = {cell.nodeid: one for one in measured for cell in one.of("stress")}
    if not stressed:
        return missing(key, title, "No stress cell was measured.")
    hot = sorted(
        (cell for one in measured for cell in one.of("stress") if _TEMPERATURE in cell.metrics),
        key=lambda cell: -cell.metrics[_TEMPERATURE].value,
    )
    readings = _readings(run, {cell.nodeid for cell in hot[:MOST_SERIES]}) if hot else {}
    if not readings:
        return missing(
            key, title, "No temperature was recorded: the machine tells none, or the run's file of readings is gone."
        )
    note = f"The {MOST_SERIES} hottest of {len(hot):,} are drawn." if len(hot) > MOST_SERIES else ""
    series = [
        Series(stressed[nodeid].short_name, _heat(stressed[nodeid], some), joined=True, marked=False)
        for nodeid, some in readings.items()
    ]
    hottest = max((point for one in series for point in one.points), key=lambda point: point.y)
    reading = f"Hottest: {hottest.tip}."
    last = max(point.x for one in series for point in one.points)
    guides = [Guide(f"limit {limit:g} °C", [(0.0, limit), (last, limit)]) for limit in _limits(measured)[:1]]
    drawing = draw_points(
        key, f"{title}. {reading}", Axis("minutes"), Axis("°C, CPU", from_zero=False), series, guides=guides
    )
    table = [[one.name, f"{p.x:.1f}", f"{p.y:.1f}"] for one in series for p in _thinned(one.points, 30)]
    note = f"{note} Each point is the hottest reading of its stretch of time; the marker is the hottest of all.".strip()
    return ChartView(key, title, reading, drawing, note, ["configuration", "minutes", "°C"], table)


def _row(one: Subject, cell: CellRecord, metric: str, samples: list[float]) -> Row:
    value = cell.metrics[metric]
    every = -(-len(samples) // _MOST_SAMPLES)
    room = _NAME_CHARACTERS - len(one.quantization)
    name = one.short_name if len(one.short_name) <= _NAME_CHARACTERS else f"{one.model[:room]}… {one.quantization}"
    tip = f"{one.name}: {spoken(metric, value)}, n = {value.n}"
    return Row(name, sorted(samples)[::every], value.value, value.ci_low, value.ci_high, tip)


def _over_context(measured: Sequence[Subject], key: str, title: str, column: str, y_title: str) -> ChartView:
    lines: list[Series] = []
    for one in measured:
        places = sorted(
            (tokens, value)
            for cell in one.of("long_context")
            for row in cell.details.get("sizes", ())
            if (tokens := _positive(row.get("context_tokens"))) and (value := _positive(row.get(column)))
        )
        if places:
            points = [Point(x, y, f"{one.name} at {x:,.0f} tokens: {quantity(column, y)}") for x, y in places]
            lines.append(Series(one.short_name, points, joined=True))
    if not lines:
        return missing(key, title, "No long_context cell was measured.")
    series, note = few(lines, lambda one: (one.points[-1].x, -one.points[-1].y)[0])
    sizes = sorted({point.x for one in series for point in one.points})
    largest = max((point for one in series for point in one.points), key=lambda point: point.x)
    reading = f"Largest context: {largest.tip}."
    ticks = [(size, _tokens(size)) for size in sizes[:: -(-len(sizes) // 7)]]
    x = Axis("tokens in the context", ticks=ticks, log=sizes[-1] > 2 * sizes[0], from_zero=False)
    drawing = draw_points(key, f"{title}. {reading}", x, Axis(y_title), series)
    rows = [[one.name, f"{p.x:,.0f}", quantity(column, p.y)] for one in series for p in one.points]
    return ChartView(key, title, reading, drawing, note, ["configuration", "context, tokens", column], rows[:MOST_ROWS])


def _positive(value: Primitive) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _tokens(size: float) -> str:
    return f"{size / 1024:g}k" if size >= 1024 and size % 512 == 0 else f"{size:,.0f}"


_Reading = tuple[float, float]


def _readings(run: RunData, nodeids: set[str]) -> dict[str, list[_Reading]]:
    """By cell, minutes since its first reading and °C, in the order of the clock."""
    found: dict[str, list[_Reading]] = {}
    for line in run.lines("telemetry"):
        cell, values = line.get("cell"), line.get("values")
        if cell in nodeids and isinstance(values, dict):
            celsius, t_ns = values.get(_TEMPERATURE), line.get("t_ns")
            if isinstance(celsius, int | float) and isinstance(t_ns, int):
                found.setdefault(cell, []).append((t_ns / 6e10, float(celsius)))
    for some in found.values():
        some.sort()
    return {cell: [(minute - some[0][0], celsius) for minute, celsius in some] for cell, some in found.items()}


def _heat(one: Subject, readings: Sequence[_Reading]) -> list[Point]:
    stretches = _stretches(readings, _MOST_POINTS)
    return [Point(x, y, f"{one.name} after {x:.1f} min: {y:.1f} °C") for x, y in stretches]


def _stretches(readings: Sequence[_Reading], most: int) -> Iterator[_Reading]:
    """The highest of each stretch, so that no peak is lost."""
    length = -(-len(readings) // most)
    for begin in range(0, len(readings), length):
        yield max(readings[begin : begin + length], key=lambda reading: reading[1])


def _thinned(points: Sequence[Point], most: int) -> list[Point]:
    length = -(-len(points) // most)
    return [max(points[begin : begin + length], key=lambda point: point.y) for begin in range(0, len(points), length)]


def _limits(measured: Sequence[Subject]) -> list[float]:
    """Those that the stress cells were judged by, each once."""
    found = (
        result.limit
        for one in measured
        for cell in one.of("stress")
        for result in cell.thresholds
        if result.metric == _TEMPERATURE and result.side == "max"
    )
    return list(dict.fromkeys(found))
