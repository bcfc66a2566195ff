"""A plan for people: one row per cell, then why some would not run, what is fetched, and the totals."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_llmbench.core.plan import Plan, PlannedCell, total_bytes
from pytest_llmbench.core.quantities import BOUND_WORDS, gigabytes
from pytest_llmbench.reports.plain import plain

if TYPE_CHECKING:
    from rich.console import Console

MAX_ROWS = 300
_LEAST_WIDTH = 72  # in less, the columns of figures would leave nothing for the cells' names
_STYLE = {"run": "green", "skip": "yellow", "error": "red"}
_OUTCOMES = {"skip": "would be skipped", "error": "would be an error"}
_LEGEND = {
    "~": "~ from the file's size × 1.2, because its header can not be read before the download",
    "≥": "≥ at least: the model's architecture is not known",
}


def render(plan: Plan, *, width: int, colour: bool) -> list[str]:
    """The plan as lines.

    Args:
        width: columns of the terminal.
        colour: whether escape sequences are welcome.
    """
    from rich.console import Console
    from rich.text import Text

    buffer = io.StringIO()
    console = Console(
        file=buffer, width=max(width, _LEAST_WIDTH), force_terminal=colour, no_color=not colour, legacy_windows=False
    )
    shown = plan.cells[:MAX_ROWS]
    if shown:
        _print_table(console, plan, shown)
    if len(plan.cells) > len(shown):
        console.print(Text(f"… and {len(plan.cells) - len(shown)} more cells; llmbench plan --json lists them all"))
    if shown:
        console.print()
    for line in (*_legend(shown), *_reasons(shown), *_sources(shown), *_totals(plan)):
        console.print(Text(plain(line)), soft_wrap=True)
    return [line.rstrip() for line in buffer.getvalue().splitlines()]


def duration(seconds: float) -> str:
    """Seconds in the two largest units: ``45 s``, ``2 min 10 s``, ``1 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def _print_table(console: Console, plan: Plan, shown: Sequence[PlannedCell]) -> None:
    from rich.table import Table
    from rich.text import Text

    functions = {_function(cell) for cell in plan.cells}
    table = Table(box=None, pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("cell", overflow="fold")
    table.add_column("server", no_wrap=True)
    table.add_column(f"needs\nof {gigabytes(plan.room.available_bytes)}", justify="right", no_wrap=True)
    table.add_column("download", justify="right", no_wrap=True)
    table.add_column("expected", no_wrap=True)
    for number, cell in enumerate(shown, 1):
        name = cell.id if len(functions) == 1 else f"{_function(cell)}[{cell.id}]"
        texts = [str(number), name, _server(cell), _memory(cell), _download(cell)]
        table.add_row(*(Text(plain(text)) for text in texts), Text(_expected(cell), style=_STYLE[cell.expected]))
    console.print(table)


def _function(cell: PlannedCell) -> str:
    return cell.nodeid.rpartition("::")[2].partition("[")[0]


def _server(cell: PlannedCell) -> str:
    """The kind of server where one is started, or, if it runs already, looked at anew."""
    if cell.expected != "run":
        return ""
    return cell.backend if cell.starts_server else "same"


def _memory(cell: PlannedCell) -> str:
    if cell.memory is None:
        return "–" if cell.file is None else "?"
    record = cell.memory.record
    text = _sign(cell) + gigabytes(record.required_bytes or 0)
    return f"{text} + GPU {gigabytes(record.device_bytes)}" if record.device_bytes else text


def _sign(cell: PlannedCell) -> str:
    if cell.memory is None:
        return ""
    if cell.memory.record.method == "file_size":
        return "~"
    return "" if cell.memory.exact else "≥"


def _download(cell: PlannedCell) -> str:
    if cell.file is None:
        return "–"
    if cell.download_bytes is None:
        return "?"
    return "present" if cell.download_bytes == 0 and cell.source is None else gigabytes(cell.download_bytes)


def _expected(cell: PlannedCell) -> str:
    if cell.expected != "run":
        return cell.expected
    return f"run, {duration(cell.expected_seconds) if cell.expected_seconds is not None else '?'}"


def _legend(cells: Sequence[PlannedCell]) -> Iterator[str]:
    signs = {_sign(cell) for cell in cells}
    yield from (text for sign, text in _LEGEND.items() if sign in signs)
    if any(cell.file is None for cell in cells):
        yield "– the server brings its model, or the test asks for no server"


def _reasons(cells: Sequence[PlannedCell]) -> Iterator[str]:
    """One line per reason, with the cells it holds for."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for number, cell in enumerate(cells, 1):
        if cell.reason is not None:
            groups[cell.expected, cell.reason.code, cell.reason.message].append(number)
    for (expected, code, message), numbers in groups.items():
        yield f"{_numbers(numbers)} {_OUTCOMES[expected]} ({code}): {message}"


def _sources(cells: Sequence[PlannedCell]) -> Iterator[str]:
    """One line per origin of downloads, with the cells that need them."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, cell in enumerate(cells, 1):
        if cell.expected == "run" and cell.source is not None:
            groups[cell.source].append(number)
    for source, numbers in groups.items():
        yield f"{_numbers(numbers)} to be downloaded from {source}"


def _totals(plan: Plan) -> Iterator[str]:
    room, counts = plan.room, [f"{plan.count('run')} to run"]
    if plan.server_starts:
        counts[0] += f" ({_some(plan.server_starts, 'server start')})"
    counts += [f"{plan.count('skip')} to skip"] if plan.count("skip") else []
    counts += [f"{plan.count('error')} in error"] if plan.count("error") else []
    yield f"{_some(len(plan.cells), 'cell')}: {', '.join(counts)}"
    if plan.other_tests:
        yield f"{_some(plan.other_tests, 'other test')} without a model, not planned"
    yield f"memory: {gigabytes(room.available_bytes)} may be used ({BOUND_WORDS[room.bound_by]})"
    if plan.downloads:
        unknown = sum(size is None for size in plan.downloads.values())
        sizes = [f"{_some(unknown, 'model')} of unknown size"] if unknown else []
        if unknown < len(plan.downloads):
            sizes.insert(0, gigabytes(total_bytes(plan.downloads)))
        yield f"download: {' and '.join(sizes)}; {gigabytes(room.free_bytes)} free for {room.model_dir}"
    if room.disk_warning is not None:
        yield f"warning: the downloads do not fit: {room.disk_warning}"
    yield _time(plan)


def _time(plan: Plan) -> str:
    seconds, known = plan.expected_seconds
    if not known:
        return "time: unknown, there is no earlier run of these cells on this machine"
    of = "" if known == plan.count("run") else f" for {known} of {_some(plan.count('run'), 'cell')}; the others are new"
    return f"time: about {duration(seconds)}{of}"


def _some(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _numbers(numbers: Iterable[int]) -> str:
    """``1–3, 7``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)
