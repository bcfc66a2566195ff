"""The table at the end of a run, rendered to lines so that pytest's own terminal writer prints them."""

from __future__ import annotations

import io
from collections.abc import Sequence

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.core.thresholds import explain

_SHOWN = (
    ("decode_tokens_per_second", "tokens/s"),
    ("ttft_seconds", "first token s"),
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

    table = Table(box=None, pad_edge=False, expand=False)
    for title in ("model", "quant", "profile"):
        table.add_column(title, overflow="fold")
    for _, title in _SHOWN:
        table.add_column(title, justify="right")
    table.add_column("rating")
    table.add_column("status")
    for record in records[:MAX_ROWS]:
        name = record.model if record.variant is None else f"{record.model} · {record.variant}"
        cells = [name, record.quantization, record.profile, *(_value(record, metric) for metric, _ in _SHOWN)]
        status = record.status if record.reason is None else f"{record.status}: {record.reason.code}"
        status += "".join(f" ⚑{flag}" for flag in record.flags if record.status != "invalid")
        table.add_row(*map(Text, cells), Text(record.rating or "–"), Text(status, style=_STYLE[record.status]))
    buffer = io.StringIO()
    console = Console(
        file=buffer, width=max(width, 40), force_terminal=colour, no_color=not colour, legacy_windows=False
    )
    console.print(table)
    if len(records) > MAX_ROWS:
        console.print(Text(f"… and {len(records) - MAX_ROWS} more cells in the results"))
    for record in records[:MAX_ROWS]:
        if record.thresholds:
            words = f": {record.interpretation}" if record.interpretation else ""
            console.print(Text(f"\n{record.model} {record.quantization} {record.profile}{words}"))
            for result in record.thresholds:
                console.print(Text(f"  {explain(result)}"), soft_wrap=True)
    return buffer.getvalue().splitlines()


def _value(record: CellRecord, name: str) -> str:
    metric = record.metrics.get(name)
    if metric is None:
        return "–"
    digits = METRICS[name].decimals
    text = f"{metric.value:.{digits}f}"
    if metric.ci_low is None or metric.ci_high is None:
        return text
    return f"{text} [{metric.ci_low:.{digits}f}, {metric.ci_high:.{digits}f}]"
