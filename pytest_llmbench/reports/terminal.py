"""The summary at the end of a run, rendered to lines so that pytest's own terminal writer prints them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmbench.core.metrics import METRICS, format_quantity
from pytest_llmbench.core.recommendations import Advice
from pytest_llmbench.core.records import FLAGS, CellRecord, MetricComparison
from pytest_llmbench.core.thresholds import explain, explain_comparison
from pytest_llmbench.core.use_cases import OVERALL
from pytest_llmbench.reports.columns import by_profile, columns_of
from pytest_llmbench.reports.conclusions import conclusions
from pytest_llmbench.reports.plain import plain
from pytest_llmbench.reports.run_data import RunData

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STYLE = {
    "passed": "green",
    "failed": "red",
    "error": "red",
    "invalid": "red",
    "skipped": "yellow",
    "blocked": "yellow",
    "✓": "green",
    "⚠": "yellow",
    "✗": "red",
}
MAX_ROWS = 60
MAX_DETAILS = 12
_FEW = 5
_MAX_NAMES = 6
_MOST_OF_A_SENTENCE = 2000
_MOST_OF_A_NAME = 200
_PROBLEMS = ("failed", "error", "invalid")
_FIRST = {status: place for place, status in enumerate((*_PROBLEMS, "passed", "blocked", "skipped"))}
_LEAST_WIDTH = 40
_NARROW = 60  # below, a table has one metric and no rating: with more, no room is left for the model's name


def render(run: RunData, *, width: int, colour: bool, verbosity: int = 0, wrapped: bool = True) -> list[str]:
    """The answer, then a table for each profile, then what each cell means in words and which thresholds it met.

    Args:
        width: columns of the terminal.
        colour: whether escape sequences are welcome.
        verbosity: pytest's: with 0 what is long is cut short, with 1 nothing is, with -1 there are the answer and the
            tables, with -2 there are problems only.
        wrapped: whether sentences are broken to the width, too; a log that is searched has them whole.
    """
    page = _Page(_console(width, colour), wrapped)
    if verbosity < -1:
        _tell_problems(page, run.records)
        return page.lines()
    _answer(page, run, verbosity)
    _baseline(page, run, verbosity)
    if not run.records:
        return page.lines()
    _tables(page, run.records, verbosity)
    if verbosity >= 0:
        _all_details(page, run.records, verbosity)
        for sentence in conclusions(run):
            page.say(sentence)
    return page.lines()


def _console(width: int, colour: bool) -> Console:
    from rich.console import Console

    return Console(
        file=io.StringIO(),
        width=max(width, _LEAST_WIDTH),
        force_terminal=colour,
        no_color=not colour,
        legacy_windows=False,
    )


@dataclass(frozen=True)
class _Page:
    """Lines as they are said; whatever is said is not ours, and made fit to be shown."""

    console: Console
    wrapped: bool

    def say(self, sentence: str, *, indent: int = 0, style: str = "") -> None:
        """One sentence; where it is broken, its other lines stand further in."""
        from rich.text import Text

        text = Text(_short(sentence, _MOST_OF_A_SENTENCE), style=style)
        if not self.wrapped:
            self.console.print(Text(" " * indent) + text, soft_wrap=True)
            return
        for number, line in enumerate(text.wrap(self.console, self.console.width - indent - 2)):
            line.rstrip()
            self.console.print(Text(" " * (indent + 2 * bool(number))) + line, soft_wrap=True)

    def show(self, table: Table) -> None:
        self.console.print(table)

    def lines(self) -> list[str]:
        file = self.console.file
        assert isinstance(file, io.StringIO)  # noqa: S101 -- it was given one
        return file.getvalue().splitlines()


def _short(text: str, most: int) -> str:
    """Fit to be shown: of what a server or a model made megabytes of, the beginning."""
    left = len(text) - most
    return plain(text if left <= 0 else f"{text[:most]} … and {left} more characters, in cells.jsonl")


def _name(record: CellRecord) -> str:
    return record.nodeid.rpartition("::")[2]


def _tell_problems(page: _Page, records: Sequence[CellRecord]) -> None:
    """One line for each cell that is to be looked at."""
    for record in _problems_first(records):
        if record.status in _PROBLEMS:
            reason = record.reason
            why = f" ({reason.code}): {reason.message.partition(chr(10))[0]}" if reason is not None else ""
            page.say(f"{_name(record)}: {record.status}{why}", style=_STYLE[record.status])
    for record, comparison in _regressed(records):
        page.say(_comparison(record, comparison), style="red")


def _answer(page: _Page, run: RunData, verbosity: int) -> None:
    """What to run: in a sentence or two, and for each use."""
    found = run.recommendations
    if found.headline:
        page.say(found.headline, style="bold")
    if verbosity < 0:
        return
    for advice in found.advice:
        if verbosity > 0 or advice.use_case != OVERALL:  # of which the headline tells
            _advise(page, advice, verbosity)
    following = found.next if verbosity > 0 else found.next[:1]
    for sentence in following:
        page.say(f"next: {sentence}")
    if found.headline or found.advice or following:
        page.say("")


def _advise(page: _Page, advice: Advice, verbosity: int) -> None:
    best = advice.ranked[0] if advice.ranked else None
    if best is None:
        page.say(f"– {advice.title}: {advice.answer}", indent=2)
    elif best.mark == "✗":
        page.say(f"✗ {advice.title}: {advice.answer}", indent=2, style=_STYLE["✗"])
    else:
        figures = ", ".join(figure.text for figure in best.figures[:2])
        others = sum(other.tied and other.mark != "✗" for other in advice.ranked[1:])
        line = f"{best.mark} {advice.title}: {best.configuration}"
        line += f", {best.usability}" if best.usability else ""
        line += f" ({figures})" if figures else ""
        line += f"; {others} more within noise of it" if others else ""
        page.say(line, indent=2, style=_STYLE[best.mark])
    if verbosity > 0:
        for candidate in advice.ranked[1:]:
            page.say(f"{candidate.mark} {candidate.configuration}: {'; '.join(candidate.reasons)}", indent=4)
        for sentence in (*advice.remarks, *advice.excluded):
            page.say(sentence, indent=4)


def _regressed(records: Iterable[CellRecord]) -> list[tuple[CellRecord, MetricComparison]]:
    return [(record, one) for record in records for one in record.comparisons if one.verdict == "regressed"]


def _baseline(page: _Page, run: RunData, verbosity: int) -> None:
    """What became worse than in the run that this one was compared with, and how much was looked at."""
    records = run.records
    counts = Counter(one.verdict.replace("_", " ") for record in records for one in record.comparisons)
    if not counts:
        return
    listed = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items(), key=lambda pair: -pair[1]))
    page.say(f"compared with the baseline: {listed}", style="bold")
    for record, one in _regressed(records):
        page.say(_comparison(record, one), indent=2, style="red")
    for record in records if verbosity > 0 else ():
        for one in record.comparisons:
            if one.verdict != "regressed":
                page.say(f"{_name(record)}: {explain_comparison(one)}", indent=2)
    page.say("")


def _comparison(record: CellRecord, one: MetricComparison) -> str:
    old, new = (format_quantity(one.metric, value) if value is not None else "–" for value in (one.old, one.new))
    ratio = f"× {one.ratio:.3f}" if one.ratio is not None else "no ratio"
    if one.ci_low is not None and one.ci_high is not None:
        ratio += f" (95 % interval {one.ci_low:.3f} to {one.ci_high:.3f})"
    return f"✗ {_name(record)}: {one.metric} {old} → {new}, {ratio}; worse than the limit of {one.limit_percent:g} %"


def _tables(page: _Page, records: Sequence[CellRecord], verbosity: int) -> None:
    """A table for each profile; of very many cells the first, and those to be looked at are the first."""
    is_cut = verbosity < 1 and len(records) > MAX_ROWS
    groups = by_profile(_problems_first(records)[:MAX_ROWS] if is_cut else records)
    for number, (profile, group) in enumerate(groups.items()):
        if len(groups) > 1:
            if number:
                page.say("")
            page.say(profile, style="bold")
        page.show(_table(profile, group, is_narrow=page.console.width < _NARROW))
    if is_cut:
        page.say(f"… and {len(records) - MAX_ROWS} more cells; -v shows them, results.csv has them")


def _problems_first(records: Sequence[CellRecord]) -> list[CellRecord]:
    return sorted(records, key=lambda record: _FIRST[record.status])


def _table(profile: str, records: Sequence[CellRecord], *, is_narrow: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table, columns = Table(box=None, pad_edge=False), columns_of(profile, records)[: 1 if is_narrow else None]
    table.add_column("model", overflow="fold")
    table.add_column("quant", no_wrap=True)
    for _, title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    is_rated = not is_narrow and any(record.rating for record in records)
    for title in ("rating", "status") if is_rated else ("status",):
        table.add_column(title, no_wrap=True)
    for record in records:
        name = record.model if record.variant is None else f"{record.model} · {record.variant}"
        cells = [name, record.quantization, *(_value(record, metric) for metric, _ in columns)]
        cells += [record.rating or "–"] if is_rated else []
        table.add_row(
            *(Text(_short(cell, _MOST_OF_A_NAME)) for cell in cells), Text(record.status, style=_STYLE[record.status])
        )
    return table


def _all_details(page: _Page, records: Sequence[CellRecord], verbosity: int) -> None:
    """Of each cell what its row does not hold; cells that were not measured for one reason are told of together.

    Of more than a few cells, those that met every limit are only counted, and a doubt is told once for all.
    """
    is_brief = verbosity < 1 and sum(bool(record.metrics) for record in records) > _FEW
    groups: dict[tuple[str, ...], list[CellRecord]] = {}
    for record in _problems_first(records):
        alone = verbosity > 0 or record.reason is None or bool(record.thresholds)
        key = (record.nodeid,) if alone else (record.status, record.reason.code if record.reason else "")
        groups.setdefault(key, []).append(record)
    told = [(group, lines) for group in groups.values() if (lines := _details(group[0], verbosity, is_brief))]
    shown = told if verbosity > 0 else told[:MAX_DETAILS]
    for group, lines in shown:
        page.say("")
        _tell_details(page, group, lines)
    page.say("")
    if left := sum(len(group) for group, _ in told[len(shown) :]):
        page.say(f"… and {left} more cells; -v tells of them, summary.md has them")
    if is_brief:
        _tell_briefly(page, records)


def _tell_briefly(page: _Page, records: Sequence[CellRecord]) -> None:
    """What many cells have in common."""
    clear = [r for r in records if r.thresholds and all(result.verdict == "pass" for result in r.thresholds)]
    if clear:
        page.say(f"{len(clear)} cells met every threshold; -v shows by how much")
    for flag in dict.fromkeys(flag for record in records for flag in record.flags):
        doubtful = [_name(record) for record in records if flag in record.flags]
        page.say(f"doubt about {_some(doubtful)}: {FLAGS.get(flag, flag)}")


def _tell_details(page: _Page, group: Sequence[CellRecord], lines: Sequence[str]) -> None:
    words = f": {group[0].interpretation}" if group[0].interpretation else ""
    page.say(f"{_name(group[0])}{words}")
    for line in lines:
        page.say(line, indent=2)
    if len(group) > 1:
        page.say(f"likewise: {_some([_name(record) for record in group[1:]])}", indent=2)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _details(record: CellRecord, verbosity: int, is_brief: bool) -> list[str]:
    """Thresholds, doubts, and why a cell was not measured."""
    told = [result for result in record.thresholds if not is_brief or result.verdict != "pass"]
    lines = [explain(result) for result in told]
    lines += [f"doubt: {FLAGS.get(flag, flag)}" for flag in record.flags if not is_brief]
    if record.reason is not None and record.reason.code != "below_threshold":
        lines.append(f"{record.status} ({record.reason.code}): {record.reason.message.partition(chr(10))[0]}")
    return [*lines, *(f"note: {note}" for note in record.notes)] if verbosity > 0 else lines


def _value(record: CellRecord, name: str) -> str:
    metric = record.metrics.get(name)
    if metric is None:
        return "–"
    return f"{metric.value:.{METRICS[name].decimals}f}"
