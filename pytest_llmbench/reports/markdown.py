"""``summary.md``: what was measured, judged, and not run, short enough for a CI job's page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pytest_llmbench.core.metrics import METRICS, format_quantity
from pytest_llmbench.core.quantities import gigabytes
from pytest_llmbench.core.records import FLAGS, CellRecord, MemoryRecord
from pytest_llmbench.core.thresholds import explain
from pytest_llmbench.reports.plain import plain
from pytest_llmbench.reports.remarks import remarks

# What means something to Markdown or HTML in the middle of a line; model names and server logs are not ours.
_ACTIVE = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def write_markdown(folder: Path, records: Sequence[CellRecord]) -> Path:
    """Write ``summary.md`` into a run's folder."""
    path = folder / "summary.md"
    text = render(records, folder.resolve().name, remarks(folder, records))
    path.write_text(text, encoding="utf-8", errors="replace")
    return path


def render(records: Sequence[CellRecord], run_id: str, about_the_run: Sequence[str] = ()) -> str:
    """The summary as Markdown text."""
    counts = Counter(record.status for record in records)
    totals = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none was finished"
    lines = [f"# Benchmark run {_escape(run_id)}", "", f"Cells: {totals}.", ""]
    lines += [f"**{_escape(line)}.**\n" for line in about_the_run]
    shown = [name for name in METRICS if any(name in record.metrics for record in records)]
    header = ["model", "quant", "profile", *(f"{name} ({METRICS[name].unit})" for name in shown), "rating", "status"]
    lines += [_row(header), _row(["---"] * len(header))]
    for record in records:
        name = record.model if record.variant is None else f"{record.model} · {record.variant}"
        numbers = [_interval(record, metric) for metric in shown]
        lines.append(_row([name, record.quantization, record.profile, *numbers, record.rating or "–", record.status]))
    lines += ["", "Values are medians with 95 % intervals; a dash means not measured.", ""]
    lines += [*(f"- {_escape(name)}: {METRICS[name].meaning}" for name in shown), ""]
    for record in records:
        lines += _details(record)
    return "\n".join(lines) + "\n"


def _details(record: CellRecord) -> list[str]:
    lines = [f"## {_escape(record.nodeid)}", ""]
    if record.interpretation:
        lines += [f"{_escape(record.interpretation)}.", ""]
    lines += [f"- {_escape(explain(result))}" for result in record.thresholds]
    if record.reason is not None and record.reason.code != "below_threshold":
        lines.append(f"- **{record.status}** ({_escape(record.reason.code)}): {_escape(record.reason.message)}")
    if record.memory is not None and record.memory.observed_peak_bytes is not None:
        lines.append(f"- {_memory(record.memory)}")
    lines += [f"- doubt: {_escape(flag)}: {FLAGS.get(flag, 'see the reason')}" for flag in record.flags]
    lines += [f"- note: {_escape(note)}" for note in record.notes]
    return [*lines, ""]


def _memory(memory: MemoryRecord) -> str:
    text = f"memory: at most {gigabytes(memory.observed_peak_bytes or 0)} observed"
    if memory.predicted_bytes is None:
        return text
    text += f", {gigabytes(memory.predicted_bytes)} predicted"
    if memory.correction_factor is not None:
        text += f" (by earlier runs × {memory.correction_factor:.2f})"
    return text


def _interval(record: CellRecord, name: str) -> str:
    metric = record.metrics.get(name)
    if metric is None:
        return "–"
    text = format_quantity(name, metric.value)
    if metric.ci_low is None or metric.ci_high is None:
        return text
    digits = METRICS[name].decimals
    return f"{text} ({metric.ci_low:.{digits}f}–{metric.ci_high:.{digits}f})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell if cell == "---" else _escape(cell) for cell in cells) + " |"


def _escape(text: str) -> str:
    return _ACTIVE.sub(r"\\\1", plain(text))
