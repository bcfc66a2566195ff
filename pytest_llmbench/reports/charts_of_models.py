"""Charts that compare models and quantizations: speed, memory and quality, and what is the best of all three."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pytest_llmbench.core.blocking_evidence import rough_bits
from pytest_llmbench.core.recommendations import Point as FrontPoint
from pytest_llmbench.core.records import MetricValue
from pytest_llmbench.reports.charts import Axis, Guide, Point, Series, draw_points
from pytest_llmbench.reports.charts_views import MOST_ROWS, ChartView, few, missing, spoken
from pytest_llmbench.reports.html_subjects import Subject, by_bits
from pytest_llmbench.reports.html_text import listed, quantity, shown

_RATE, _MEMORY, _QUALITY = "decode_tokens_per_second", "peak_memory_gb", "quality_score_percent"
_MOST_NAMED = 8  # points on the front; more names are in each other's way
_WIDE = 8.0  # from this ratio on, an axis is logarithmic


def speed_by_size(measured: Sequence[Subject]) -> ChartView:
    """Tokens per second over model size, by quantization."""
    key, title = "speed-by-size", "Speed and model size"
    found = _with_sizes(measured, lambda one: one.metric(_RATE, "interactive"))
    if not found:
        return missing(key, title, "No interactive cell was measured whose model size is known.")
    if len(found) == 1:
        return _alone(key, title, found[0][0], spoken(_RATE, found[0][2]))
    best = max(found, key=lambda item: item[2].value)
    reading = f"Fastest: {best[0].short_name} with {spoken(_RATE, best[2])}. Every token is read out of all weights."
    axis = Axis("tokens/s, higher is better")
    note = "95 % intervals are drawn where there is one."
    return _over_size(ChartView(key, title, reading, note=note), found, _RATE, axis)


def memory_by_size(measured: Sequence[Subject]) -> ChartView:
    """Peak memory over model size, by quantization."""
    key, title = "memory-by-size", "Memory and model size"
    found = _with_sizes(measured, lambda one: one.most(_MEMORY))
    if not found:
        return missing(key, title, "No cell says how much memory its server took and how large its model is.")
    if len(found) == 1:
        return _alone(key, title, found[0][0], quantity(_MEMORY, found[0][2].value))
    most = max(found, key=lambda item: item[2].value)
    reading = (
        f"Most memory: {most[0].short_name} with {quantity(_MEMORY, most[2].value)}, context and buffers included."
    )
    axis = Axis("GB at most, lower is better")
    note = "The dashed line is the file's own size: what lies above it is context, buffers and the engine."
    return _over_size(ChartView(key, title, reading, note=note), found, _MEMORY, axis)


def quality_by_quantization(measured: Sequence[Subject]) -> ChartView:
    """Quality score over quantization, by model, with Wilson intervals."""
    key, title = "quality-by-quantization", "Quality and quantization"
    found = [(one, score) for one in measured if (score := one.metric(_QUALITY, "quality")) is not None]
    if not found:
        return missing(key, title, "No quality cell was measured.")
    if len(found) == 1:
        return _alone(key, title, found[0][0], spoken(_QUALITY, found[0][1]))
    order = by_bits([one.quantization for one, _ in found])
    series, note = few(_by_model(found, order), lambda one: max(point.y for point in one.points))
    best = max(found, key=lambda item: item[1].value)
    reading = f"Best score: {best[0].short_name} with {spoken(_QUALITY, best[1])} of {best[1].n} questions."
    ticks = [(float(place), name) for place, name in enumerate(_thinned(order))]
    x = Axis("quantization, more bits to the right", ticks=ticks, from_zero=False)
    y = Axis("% answered correctly, higher is better", most=100.0)
    drawing = draw_points(key, f"{title}. {reading}", x, y, series)
    overlap = "Where the bars (95 %, Wilson) overlap widely, a difference may be chance; they stand a little apart."
    rows = [[one.model, one.quantization, spoken(_QUALITY, score), f"{score.n}"] for one, score in found]
    head = ["model", "quantization", "score (95 % interval)", "questions"]
    return ChartView(key, title, reading, drawing, f"{note} {overlap}".strip(), head, rows[:MOST_ROWS])


def best_of_all(points: Sequence[FrontPoint], measured: Sequence[Subject]) -> ChartView:
    """Quality over speed, or memory over speed where no quality is known: what nothing else beats in everything."""
    only = f"{measured[0].model} " if measured and measured[0].alone else ""
    key, title = "front", "Quality and speed"
    scored = [(p, p.tokens_per_second, p.quality_percent) for p in points]
    rated = [(p, p.tokens_per_second, p.memory_gb) for p in points]
    with_quality = [(p, x, y) for p, x, y in scored if x is not None and y is not None]
    without = [(p, x, y) for p, x, y in rated if x is not None and y is not None]
    found = with_quality if len(with_quality) > 1 else without
    title = title if found is with_quality else "Memory and speed"
    if len(found) < 2:
        return missing(key, title, "Fewer than two configurations have both a speed and a quality score, or memory.")
    front = [item for item in found if item[0].on_front]
    others = [item for item in found if not item[0].on_front]
    named = len(front) <= _MOST_NAMED
    best = [Point(x, y, _front_tip(p), label=_label(p, only) if named else None) for p, x, y in front]
    beaten = [Point(x, y, _front_tip(p)) for p, x, y in others]
    series = [Series("on the front", best)] if best else []
    series += [Series("beaten by another in all", beaten, muted=True)] if beaten else []
    second = "% answered correctly, higher is better" if found is with_quality else "GB at most, lower is better"
    x = Axis("tokens/s, higher is better", log=_wide([rate for _, rate, _ in found]), from_zero=False)
    y = Axis(second, from_zero=False, most=100.0 if found is with_quality else None)
    what = "quality, speed and memory" if found is with_quality else "speed and memory"
    names = listed([shown(item[0].configuration, 60).removeprefix(only) for item in front], 6)
    reading = f"Nothing measured beats these in {what} at once: {names}." if front else f"Compared in {what}."
    drawing = draw_points(key, f"{title}. {reading}", x, y, series)
    rows = [_front_row(p) for p, _, _ in [*front, *others][:MOST_ROWS]]
    head = ["configuration", "score %", "tokens/s", "memory GB", "on the front"]
    note = "Values alone decide here; the recommendations above also weigh their intervals."
    return ChartView(key, title, reading, drawing, note, head, rows)


def _wide(values: Sequence[float]) -> bool:
    """Whether they are so far apart that only a logarithmic axis keeps them so."""
    return min(values) > 0 and max(values) / min(values) > _WIDE


def _alone(key: str, title: str, one: Subject, value: str) -> ChartView:
    """One point is no chart."""
    return missing(key, title, f"Only one configuration was measured, {one.name}: {value}.")


_Found = tuple[Subject, float, MetricValue]


def _with_sizes(measured: Sequence[Subject], metric: Callable[[Subject], MetricValue | None]) -> list[_Found]:
    """Subjects that have the metric, with the size of their file in GB; or in billions of parameters, where a server
    brings its own models."""
    found = [(one, value) for one in measured if (value := metric(one)) is not None and value.value > 0]
    files = [(one, size, value) for one, value in found if (size := one.file_gb)]
    if files:
        return files
    return [(one, size / 1e9, value) for one, value in found if (size := one.parameters)]


def _over_size(view: ChartView, found: Sequence[_Found], metric: str, y: Axis) -> ChartView:
    """Draw it; memory beside what the file alone takes."""
    order = by_bits([one.quantization for one, _, _ in found])
    series, left_out = few(
        [
            Series(
                quantization,
                [_at(one, size, metric, value) for one, size, value in found if one.quantization == quantization],
            )
            for quantization in order
        ],
        lambda one: len(one.points),
    )
    sizes = [point.x for one in series for point in one.points]
    wide = _wide(sizes) and _wide([point.y for one in series for point in one.points])
    of_files = all(one.file_gb for one, _, _ in found)
    unit = "GB" if of_files else "billion parameters"
    x = Axis(f"model size, {unit}", log=wide, from_zero=False)
    ends = min(sizes), max(sizes)
    guides = [Guide("the file alone", [(end, end) for end in ends], "base")] if metric == _MEMORY and of_files else []
    shown_guides = guides if ends[0] < ends[1] else []
    y = replace(y, log=wide)
    drawing = draw_points(view.key, f"{view.title}. {view.reading}", x, y, series, guides=shown_guides)
    rows = [[one.model, one.quantization, f"{size:.3g}", spoken(metric, value)] for one, size, value in found]
    head = ["model", "quantization", unit, f"{metric} (95 % interval)" if metric == _RATE else metric]
    note = f"{left_out} {view.note}".strip()
    return replace(view, drawing=drawing, note=note, head=head, rows=rows[:MOST_ROWS])


def _at(one: Subject, size: float, name: str, metric: MetricValue) -> Point:
    has_interval = name == _RATE and metric.ci_low is not None and metric.ci_low > 0
    bounds = (metric.ci_low, metric.ci_high) if has_interval else (None, None)
    return Point(size, metric.value, f"{one.name}: {spoken(name, metric)}", *bounds)


def _by_model(found: Sequence[tuple[Subject, MetricValue]], order: Sequence[str]) -> list[Series]:
    """A line for each model; several stand a little apart, so that their bars do not hide each other."""
    models = list(dict.fromkeys(one.model for one, _ in found))
    series = []
    for number, model in enumerate(models):
        apart = 0.07 * (number % 8 - (min(len(models), 8) - 1) / 2)
        points = [
            Point(
                order.index(one.quantization) + apart,
                score.value,
                f"{one.name}: {spoken(_QUALITY, score)}",
                score.ci_low,
                score.ci_high,
            )
            for one, score in sorted(found, key=lambda item: rough_bits(item[0].quantization))
            if one.model == model
        ]
        series.append(Series(model, points, joined=True))
    return series


def _thinned(names: Sequence[str]) -> list[str]:
    """Labels for an axis, some empty where there are too many to be read."""
    every = -(-len(names) // 8)
    return [name[:10] if place % every == 0 else "" for place, name in enumerate(names)]


def _label(point: FrontPoint, only: str) -> str:
    return shown(point.configuration, 80).removeprefix(only)[:30]


def _front_tip(point: FrontPoint) -> str:
    _, score, rate, memory, _ = _front_row(point)
    return f"{shown(point.configuration, 80)}: {score} % correct, {rate} tokens/s, {memory} GB"


def _front_row(point: FrontPoint) -> list[str]:
    values = (point.quality_percent, point.tokens_per_second, point.memory_gb)
    numbers = ["–" if value is None else f"{value:.{digits}f}" for value, digits in zip(values, (1, 1, 3), strict=True)]
    return [shown(point.configuration, 80), *numbers, "yes" if point.on_front else "no"]
