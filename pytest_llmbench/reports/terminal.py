"""The table at the end of a run, rendered to lines so that pytest's own terminal writer prints them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import FLAGS, CellRecord
from pytest_llmbench.core.thresholds import explain
from pytest_llmbench.reports.columns import by_profile, columns_of
from pytest_llmbench.reports.plain import plain

if TYPE_CHECKING:
    from rich.table import Table

_STYLE = {
    "passed": "green",
    "failed": "red",
    "error": "red",
    "invalid": "red",
    "skipped": "yellow",
    "blocked": "yellow",
}
MAX_ROWS = 60


def render(records: Sequence[CellRecord], *, width: int, colour: bool) -> list[str]:
    """A table for each profile and, below them, what each measured cell means in words and which thresholds it met.

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
    groups = by_profile(records[:MAX_ROWS]) or {"": []}
    for number, (profile, group) in enumerate(groups.items()):
        if len(groups) > 1:
            console.print(Text(("\n" if number else "") + plain(profile), style="bold"), soft_wrap=True)
        console.print(_table(profile, group))
    if len(records) > MAX_ROWS:
        console.print(Text(f"… and {len(records) - MAX_ROWS} more cells in the results"))
    for record in records[:MAX_ROWS]:
        for line in _details(record):
            console.print(Text(line), soft_wrap=True)
    return buffer.getvalue().splitlines()


def _table(profile: str, records: Sequence[CellRecord]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table, columns = Table(box=None, pad_edge=False), columns_of(profile, records)
    table.add_column("model", overflow="fold")
    table.add_column("quant", no_wrap=True)
    for _, title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("rating", "status"):
        table.add_column(title, no_wrap=True)
    for record in records:
        name = record.model if record.variant is None else f"{record.model} · {record.variant}"
        cells = [name, record.quantization, *(_value(record, metric) for metric, _ in columns)]
        table.add_row(
            *(Text(plain(cell)) for cell in cells),
            Text(record.rating or "–"),
            Text(record.status, style=_STYLE[record.status]),
        )
    return table


def _details(record: CellRecord) -> list[str]:
    """What the row does not hold: words, thresholds, doubts, and why a cell was not measured."""
    words = f": {record.interpretation}" if record.interpretation else ""
    lines = [explain(result) for result in record.thresholds]
    lines += [f"doubt: {FLAGS.get(flag, flag)}" for flag in record.flags]
    if record.reason is not None and record.reason.code != "below_threshold":
        lines.append(f"{record.status} ({record.reason.code}): {record.reason.message.partition(chr(10))[0]}")
    title = f"{record.nodeid.rpartition('::')[2]}{words}"
    return ["", plain(title), *(f"  {plain(line)}" for line in lines)] if lines else []


def _value(record: CellRecord, name: str) -> str:
    metric = record.metrics.get(name)
    if metric is None:
        return "–"
    return f"{metric.value:.{METRICS[name].decimals}f}"
