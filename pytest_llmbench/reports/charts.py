"""Charts of two kinds, drawn by matplotlib: points and lines over an axis, and samples in rows."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_llmbench.reports.charts_svg import COLOUR_OF, SERIES, Anchor, Label, compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 34, 44
_ROW_HEIGHT, _ROW_TOP = 24, 6
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
MOST_SERIES = len(SERIES)
_CHARACTER = 7.0  # width of a character of a label, on average, in units of the view box


@dataclass(frozen=True, slots=True)
class Point:
    """A point; ``low`` and ``high`` of its interval, ``tip`` said when it is pointed at, ``label`` beside it."""

    x: float
    y: float
    tip: str
    low: float | None = None
    high: float | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Points that share colour and shape.

    Attributes:
        joined: by a line.
        marked: at each point; else only at the highest.
        muted: not what the chart is about.
    """

    name: str
    points: Sequence[Point]
    joined: bool = False
    marked: bool = True
    muted: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """How an axis is called and what it spans.

    Attributes:
        ticks: where it has labels and what they say; None: at round numbers.
        log: equal ratios have equal lengths; every value is above 0 then.
        from_zero: it begins at 0 (not with ``log``).
        most: where it ends at the latest, None where nothing bounds it.
    """

    title: str
    ticks: Sequence[tuple[float, str]] | None = None
    log: bool = False
    from_zero: bool = True
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Guide:
    """A line that points are compared with: from corner to corner of what is named, or level."""

    text: str
    points: Sequence[tuple[float, float]]
    role: str = "limit"


@dataclass(frozen=True, slots=True)
class Row:
    """Samples of one thing with their median and its interval; ``tip`` is said when the row is pointed at."""

    name: str
    samples: Sequence[float]
    value: float
    low: float | None
    high: float | None
    tip: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart as SVG text, and by series its name, the id of its marker and its class."""

    svg: str
    keys: Sequence[tuple[str, str, str]] = ()


@dataclass
class _Sheet:
    """A figure of matplotlib's with what is added to it afterwards."""

    figure: Figure
    axes: Axes
    height: int
    labels: list[Label] = field(default_factory=list)
    tips: dict[str, list[str]] = field(default_factory=dict)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the axes is in the view box."""
        across, up = self.axes.transData.transform((x, y))
        return float(across), self.height - float(up)

    def write(self, x: float, y: float, text: str, anchor: Anchor = "start", role: str = "tick") -> None:
        """Text at a place of the view box."""
        self.labels.append(Label(x, y, text, anchor, role))

    def svg(self, prefix: str, name: str) -> str:
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        size = (WIDTH, self.height)
        return compact(buffer.getvalue(), prefix=prefix, name=name, size=size, labels=self.labels, tips=self.tips)


def draw_points(
    prefix: str, name: str, x: Axis, y: Axis, series: Sequence[Series], *, guides: Sequence[Guide] = ()
) -> Drawing:
    """Points over two axes.

    Args:
        prefix: of the ids in it.
        name: what it shows, in a sentence.
        series: at most :data:`MOST_SERIES`, with a point at least.
    """
    with _sheet(HEIGHT, _LEFT) as sheet:
        points = [point for one in series for point in one.points]
        beside = [place for guide in guides for place in guide.points]
        _span(sheet, "x", x, [point.x for point in points])
        bounds = [bound for point in points for bound in (point.y, point.low, point.high) if bound is not None]
        _span(sheet, "y", y, [*bounds, *(place[1] for place in beside)])
        _tick(sheet, x, y)
        for guide in guides:
            _guide(sheet, guide)
        for number, one in enumerate(series):
            _paint(sheet, number, one)
        _name_points(sheet, points)
        sheet.write(4, 16, y.title, role="axis")
        sheet.write(WIDTH - _RIGHT, HEIGHT - 8, x.title, "end", "axis")
        keys = [(one.name, f"{prefix}-p{number}", _role(number, one)) for number, one in enumerate(series)]
        return Drawing(sheet.svg(prefix, name), keys)


def draw_rows(prefix: str, name: str, x: Axis, rows: Sequence[Row]) -> Drawing:
    """Samples as dots, a row for each thing, the median as a bar across and its interval as a band behind."""
    height = _ROW_TOP + _BOTTOM + _ROW_HEIGHT * len(rows)
    left = round(18 + _CHARACTER * max(len(row.name) for row in rows))
    with _sheet(height, left, _ROW_TOP) as sheet:
        values = [value for row in rows for value in (*row.samples, row.value, row.low, row.high) if value is not None]
        _span(sheet, "x", x, values)
        sheet.axes.set_ylim(len(rows) - 0.5, -0.5)
        _tick(sheet, x, None)
        for number, row in enumerate(rows):
            if row.low is not None and row.high is not None:
                sheet.axes.plot([row.low, row.high], [number] * 2, color=COLOUR_OF["soft"], linewidth=11, clip_on=False)
            gid = f"p{number}"
            sheet.tips[gid] = [row.tip] * len(row.samples)
            places = [number] * len(row.samples)
            sheet.axes.scatter(
                row.samples, places, s=20, color=COLOUR_OF["s1"], linewidths=0, gid=gid, zorder=3, clip_on=False
            )
            middle = [number - 0.34, number + 0.34]
            sheet.axes.plot([row.value] * 2, middle, color=COLOUR_OF["s2"], linewidth=2.4, zorder=4, clip_on=False)
            sheet.write(left - 10, sheet.at(row.value, number)[1] + 4, row.name, "end", "row")
        sheet.write(WIDTH - _RIGHT, height - 8, x.title, "end", "axis")
        return Drawing(sheet.svg(prefix, name))


@contextmanager
def _sheet(height: int, left: int, top: int = _TOP) -> Iterator[_Sheet]:
    """An empty chart. Whatever a user has set for matplotlib does not count here, and is as it was afterwards."""
    with _silence("matplotlib"), _unset("MPLBACKEND", "MATPLOTLIBRC"):
        import matplotlib as mpl
        from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "llmbench", "path.simplify": False})
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        area = (WIDTH - left - _RIGHT) / WIDTH, (height - top - _BOTTOM) / height
        axes = figure.add_axes((left / WIDTH, _BOTTOM / height, *area))
        axes.patch.set_visible(False)
        axes.set_axisbelow(True)
        for spine in axes.spines.values():
            spine.set_visible(False)
        yield _Sheet(figure, axes, height)


@contextmanager
def _unset(*names: str) -> Iterator[None]:
    """Without these variables: one that names no backend would end the import."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextmanager
def _silence(logger_name: str) -> Iterator[None]:
    """Let a logger tell nothing: not of fonts, of a cache it can not write, or of mistakes in settings that we undo."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _span(sheet: _Sheet, which: str, axis: Axis, values: Sequence[float]) -> None:
    """Set the limits of an axis so that all values are inside, with room at the ends."""
    low, high = min(values), max(values)
    axes: Any = sheet.axes
    if axis.log:
        axes.set(**{f"{which}scale": "log"})
        room = max((high / low) ** 0.08, 1.15)
        limits = low / room, high * room
    else:
        if axis.from_zero:
            low = min(low, 0.0)
        room = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
        limits = low if axis.from_zero and low == 0 else low - room, high + room
        if axis.most is not None and high <= axis.most:
            limits = limits[0], min(limits[1], axis.most)
    axes.set(**{f"{which}lim": limits})


def _tick(sheet: _Sheet, x: Axis, y: Axis | None) -> None:
    """Labels at round numbers, lines across for the vertical axis, or upwards where rows take its place."""
    axes, (left, right), (bottom, top) = sheet.axes, sheet.axes.get_xlim(), sheet.axes.get_ylim()
    across, upwards = _ticks(x, left, right), _ticks(y, bottom, top) if y is not None else []
    axes.xaxis.set_major_locator(_fixed([value for value, _ in across]))
    axes.yaxis.set_major_locator(_fixed([value for value, _ in upwards]))
    axes.minorticks_off()
    axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    axes.grid(visible=True, axis="x" if y is None else "y", color=COLOUR_OF["grid"], linewidth=1)
    for value, text in across:
        sheet.write(sheet.at(value, bottom)[0], sheet.at(left, bottom)[1] + 17, text, "middle")
    for value, text in upwards:
        sheet.write(sheet.at(left, value)[0] - 8, sheet.at(left, value)[1] + 4, text, "end")
    if y is not None:
        axes.plot([left, right], [bottom] * 2, color=COLOUR_OF["base"], linewidth=1, clip_on=False)


def _fixed(places: Sequence[float]) -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator(list(places))


def _ticks(axis: Axis, low: float, high: float) -> list[tuple[float, str]]:
    from matplotlib.ticker import LogLocator, MaxNLocator

    if axis.ticks is not None:
        return [(value, text) for value, text in axis.ticks if low <= value <= high]
    places: Any = None
    if axis.log and high / low > 5:
        places = LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,), numticks=9).tick_values(low, high)
    else:
        places = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    inside = [float(value) for value in places if low - slack <= value <= high + slack]
    return [(value, f"{round(value, 9):,g}") for value in inside]


def _guide(sheet: _Sheet, guide: Guide) -> None:
    xs, ys = zip(*guide.points, strict=True)
    sheet.axes.plot(xs, ys, color=COLOUR_OF[guide.role], linewidth=1.4, dashes=(4, 3), clip_on=True)
    x, y = sheet.at(xs[-1], ys[-1])
    sheet.write(min(x, WIDTH - _RIGHT), y - 6, guide.text, "end", "guide")


def _paint(sheet: _Sheet, number: int, one: Series) -> None:
    """Intervals first, then the line, then its markers on top."""
    axes, colour, gid = sheet.axes, COLOUR_OF[_role(number, one)], f"p{number}"
    bars = [(p.x, p.low, p.high) for p in one.points if p.low is not None and p.high is not None and p.low < p.high]
    if bars:
        xs, lows, highs = zip(*bars, strict=True)
        axes.vlines(xs, lows, highs, color=colour, linewidth=1.6)
    xs_all, ys_all = [point.x for point in one.points], [point.y for point in one.points]
    if one.joined and len(one.points) > 1:
        axes.plot(xs_all, ys_all, color=colour, linewidth=1.8, clip_on=False, solid_joinstyle="round")
    marked = one.points if one.marked else [max(one.points, key=lambda point: point.y)]
    sheet.tips[gid] = [point.tip for point in marked]
    marker = _MARKERS[number]
    at = [point.x for point in marked], [point.y for point in marked]
    level = 2.5 if one.muted else 3
    axes.scatter(*at, s=44, marker=marker, color=colour, linewidths=0, gid=gid, zorder=level, clip_on=False)


def _role(number: int, one: Series) -> str:
    return SERIES[-1] if one.muted else SERIES[number]


def _name_points(sheet: _Sheet, points: Sequence[Point]) -> None:
    """Write labels beside points, each where no other label or point is; one that finds no place is left out."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in (sheet.at(point.x, point.y) for point in points)]
    for point in points:
        if point.label is None:
            continue
        x, y = sheet.at(point.x, point.y)
        wide = _CHARACTER * len(point.label)
        for at, left, base, anchor in _places(x, y, wide):
            box = (left - 3, base - 10, left + wide + 3, base + 3)
            inside = box[0] >= _LEFT and box[2] <= WIDTH - 2 and box[1] > _TOP - 12
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                sheet.write(at, base, point.label, anchor, "name")
                break


def _places(x: float, y: float, wide: float) -> Iterator[tuple[float, float, float, Anchor]]:
    """Where a label may stand: what it is anchored at, its left end, its baseline, and how it is anchored."""
    yield x + 8, x + 8, y + 4, "start"
    yield x - 8, x - 8 - wide, y + 4, "end"
    yield x, x - wide / 2, y - 9, "middle"
    yield x, x - wide / 2, y + 17, "middle"


_Box = tuple[float, float, float, float]


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
