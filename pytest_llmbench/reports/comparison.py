"""Two runs beside each other, for a terminal and for a pull request: what differs, what became worse, what is open."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_llmbench.core.baseline import SCORE
from pytest_llmbench.core.environment import MEANING
from pytest_llmbench.core.metrics import format_quantity
from pytest_llmbench.core.records import Change, MetricComparison
from pytest_llmbench.core.run_comparison import Absence, RunComparison
from pytest_llmbench.reports.plain import markdown_text, plain

if TYPE_CHECKING:
    from rich.table import Table

MAX_ROWS = 60  # beside those that became worse, which are all shown
_MAX_LINES = 12  # of a section
_MAX_NAMES = 6  # of cells in a line
_COLUMNS = ("cell", "metric", "then", "now", "change", "95 % interval", "verdict")
_ORDER: dict[Change, int] = {"regressed": 0, "inconclusive": 1, "improved": 2, "unchanged": 3}
_STYLE: dict[Change, str] = {
    "regressed": "red",
    "inconclusive": "yellow",
    "improved": "green",
    "unchanged": "dim",
    "not_comparable": "dim",
}

_Section = tuple[str, list[str]]  # a title, and lines below it
_Row = tuple[str, MetricComparison]  # name of the cell, one of its metrics


def render(found: RunComparison, *, width: int, colour: bool) -> list[str]:
    """The comparison as lines for a terminal.

    Args:
        width: columns of the terminal.
        colour: whether escape sequences are welcome.
    """
    from rich.console import Console
    from rich.text import Text

    buffer = io.StringIO()
    console = Console(
        file=buffer, width=max(width, 40), force_terminal=colour, no_color=not colour, legacy_windows=False
    )

    def say(line: str, style: str = "") -> None:
        console.print(Text(plain(line), style=style), soft_wrap=True)

    def say_section(section: _Section) -> None:
        title, lines = section
        say(title, "bold")
        for line in lines:
            console.print(Text("  " + plain(line)), soft_wrap=True)
        console.print()

    say(_title(found))
    console.print()
    for section in _environment(found):
        say_section(section)
    say(f"{found.sentence}.", "bold red" if found.exit_status else "bold")
    console.print()
    rows, omitted = _rows(found)
    if rows:
        console.print(_table(rows))
        console.print()
    for section in _rest(found, omitted):
        say_section(section)
    return [line.rstrip() for line in buffer.getvalue().rstrip("\n").split("\n")]


def markdown(found: RunComparison) -> str:
    """The comparison as Markdown, for a pull request or a job's page."""
    lines = [f"## {markdown_text(_title(found))}", ""]
    lines += _as_markdown(_environment(found))
    lines += [f"**{markdown_text(found.sentence)}.**", ""]
    rows, omitted = _rows(found)
    if rows:
        lines += [_markdown_row(_COLUMNS, str), _markdown_row(["---"] * len(_COLUMNS), str)]
        lines += [_markdown_row(_values(name, metric), markdown_text) for name, metric in rows]
        lines.append("")
    return "\n".join([*lines, *_as_markdown(_rest(found, omitted))]).rstrip("\n") + "\n"


def _title(found: RunComparison) -> str:
    models = {one.model for one in found.cells}
    return f"llmbench compare: {found.old} → {found.new}{f', {models.pop()}' if len(models) == 1 else ''}"


def _environment(found: RunComparison) -> Iterator[_Section]:
    """What the runs differ in, what weighs most first."""
    if not found.differences:
        yield "Environment", ["no difference is known between the two runs' machines, software and configurations"]
    for kind, meaning in MEANING.items():
        sentences = [one.sentence for one in found.differences if one.kind == kind]
        if sentences:
            yield f"{kind.capitalize()}: {meaning}", _cut(sentences)


def _short_names(found: RunComparison) -> dict[str, str]:
    """Of each cell, by node id: without the model where all are of the same, with the test where two would be alike."""
    one_model = len({one.model for one in found.cells}) < 2
    names = {cell.nodeid: cell.name for cell in found.cells}
    if one_model:
        names = {
            cell.nodeid: " ".join(filter(None, (cell.quantization, cell.variant, cell.profile))) for cell in found.cells
        }
    counts = Counter(names.values())
    return {
        nodeid: name if counts[name] == 1 else f"{name} ({nodeid.rpartition('::')[2]})"
        for nodeid, name in names.items()
    }


def _rows(found: RunComparison) -> tuple[list[_Row], int]:
    """What could be compared, the cells with the worst verdicts first, and how many rows are left out."""
    cells = [(cell, [one for one in cell.metrics if one.verdict in _ORDER]) for cell in found.cells]
    cells = [(cell, metrics) for cell, metrics in cells if metrics]
    names = _short_names(found)
    cells.sort(key=lambda pair: min(_ORDER[one.verdict] for one in pair[1]))
    rows = [
        (names[cell.nodeid], one)
        for cell, metrics in cells
        for one in sorted(metrics, key=lambda one: _ORDER[one.verdict])
    ]
    most = max(
        MAX_ROWS, max((index + 1 for index, (_, one) in enumerate(rows) if one.verdict == "regressed"), default=0)
    )
    return rows[:most], max(0, len(rows) - most)


def _rest(found: RunComparison, omitted: int) -> Iterator[_Section]:
    """What the table does not hold."""
    if omitted:
        yield f"… and {omitted} more rows; --json has all", []
    names = _short_names(found)
    yield from _needed(found, names)
    sections: tuple[tuple[str, Iterable[tuple[str, str]]], ...] = (
        ("Broke", _reasons(found.broken)),
        ("Not compared", _refusals(found, names)),
        ("Changed with a cell", ((note, names[cell.nodeid]) for cell in found.cells for note in cell.notes)),
        ("No longer measured", _reasons(found.missing)),
        ("New", _reasons(found.added)),
    )
    for title, pairs in sections:
        if lines := _grouped(pairs):
            yield title, _cut(lines)


def _needed(found: RunComparison, names: Mapping[str, str]) -> Iterator[_Section]:
    """For what is inconclusive, what would tell."""
    open_ = [(cell, one) for cell in found.cells for one in cell.having("inconclusive")]
    lines = _grouped((one.message.partition("; ")[2] or one.message, names[cell.nodeid]) for cell, one in open_)
    if lines:
        yield "What would be needed", _cut(lines)


def _reasons(absent: Sequence[Absence]) -> Iterator[tuple[str, str]]:
    return ((one.reason, one.name) for one in absent)


def _refusals(found: RunComparison, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Cells that are not compared at all, then single metrics."""
    for cell in found.cells:
        if cell.refusal is not None:
            yield cell.refusal, names[cell.nodeid]
    for cell in found.cells:
        for one in cell.having("not_comparable") if cell.refusal is None else ():
            yield f"{one.metric}: {one.message}", names[cell.nodeid]


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Equal sentences once, with what they are about."""
    groups: dict[str, list[str]] = {}
    for sentence, about in pairs:
        groups.setdefault(sentence, []).append(about)
    return [f"{sentence} [{_names(about)}]" for sentence, about in groups.items()]


def _names(about: Iterable[str]) -> str:
    names = list(dict.fromkeys(about))
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _cut(lines: list[str]) -> list[str]:
    more = len(lines) - _MAX_LINES
    return lines if more <= 0 else [*lines[:_MAX_LINES], f"… and {more} more; --json has all"]


def _table(rows: Sequence[_Row]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in _COLUMNS:
        is_text = title in {"cell", "metric", "verdict"}
        table.add_column(title, justify="left" if is_text else "right", overflow="fold", no_wrap=title == "verdict")
    above = None
    for name, metric in rows:
        *values, verdict = _values("" if name == above else name, metric)
        table.add_row(*(Text(plain(value)) for value in values), Text(verdict, style=_STYLE[metric.verdict]))
        above = name
    return table


def _values(name: str, one: MetricComparison) -> list[str]:
    """A row of the table."""
    old, new = (format_quantity(one.metric, value) if value is not None else "–" for value in (one.old, one.new))
    low, high = (_change(one, ratio) for ratio in (one.ci_low, one.ci_high))
    interval = f"{low} to {high}" if low is not None and high is not None else "–"
    unit = "" if one.ratio is None else " points" if one.metric == SCORE else " %"
    return [name, one.metric, old, new, f"{_change(one, one.ratio) or '–'}{unit}", interval, one.verdict]


def _change(one: MetricComparison, ratio: float | None) -> str | None:
    """What a ratio comes to, with its sign, in percent of the earlier value; of scores in percentage points."""
    if ratio is None or one.old is None:
        return None
    change = (ratio - 1) * (one.old if one.metric == SCORE else 100)
    return f"{change:+.1f}".replace("-", "−")


def _as_markdown(sections: Iterable[_Section]) -> list[str]:
    lines: list[str] = []
    for title, below in sections:
        lines += [
            f"{markdown_text(title)}",
            "",
            *(f"- {markdown_text(line)}" for line in below),
            *([""] if below else []),
        ]
    return lines


def _markdown_row(cells: Iterable[str], escape: Callable[[str], str]) -> str:
    return "| " + " | ".join(map(escape, cells)) + " |"
