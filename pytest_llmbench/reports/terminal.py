"""The table at the end of a run, rendered to lines so that pytest's own terminal writer prints them."""

from __future__ import annotations

import io
from collections.abc import Sequence

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import FLAGS, CellRecord
from pytest_llmbench.core.thresholds import explain
from pytest_llmbench.reports.plain import plain

_SHOWN = (
    ("decode_tokens_per_second", "tokens/s"),
    ("ttft_seconds", "TTFT s"),
    ("variance_percent", "variance %"),
)
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
    """The table and, below it, what each measured cell means in words and which thresholds it met.

    Args:
        width: columns of the terminal.
        colour: whether escape sequences are welcome.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    several_profiles = len({record.profile for record in records}) > 1
    for title in ("quant", "profile") if several_profiles else ("quant",):
        table.add_column(title, no_wrap=True)
    for _, title in _SHOWN:
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("rating", "status"):
        table.add_column(title, no_wrap=True)
    for record in records[:MAX_ROWS]:
        name = record.model if record.variant is None else f"{record.model} · {record.variant}"
        profile = [record.profile] if several_profiles else []
        cells = [name, record.quantization, *profile, *(_value(record, metric) for metric, _ in _SHOWN)]
        table.add_row(
            *(Text(plain(cell)) for cell in cells),
            Text(record.rating or "–"),
            Text(record.status, style=_STYLE[record.status]),
        )
    buffer = io.StringIO()
    console = Console(
        file=buffer, width=max(width, 40), force_terminal=colour, no_color=not colour, legacy_windows=False
    )
    console.print(table)
    if len(records) > MAX_ROWS:
        console.print(Text(f"… and {len(records) - MAX_ROWS} more cells in the results"))
    for record in records[:MAX_ROWS]:
        for line in _details(record):
            console.print(Text(line), soft_wrap=True)
    return buffer.getvalue().splitlines()


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
