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
from pytest_llmbench.errors import Primitive
from pytest_llmbench.reports.columns import by_profile
from pytest_llmbench.reports.conclusions import conclusions
from pytest_llmbench.reports.plain import plain
from pytest_llmbench.reports.remarks import remarks
from pytest_llmbench.reports.run_data import RunData

MAX_DETAIL_ROWS = 16
# What means something to Markdown or HTML in the middle of a line; model names and server logs are not ours.
_ACTIVE = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def write_markdown(run: RunData) -> Path:
    """Write ``summary.md`` into a run's folder."""
    path, records = run.folder / "summary.md", run.records
    text = render(records, run.run_id, remarks(run), conclusions(run))
    path.write_text(text, encoding="utf-8", errors="replace")
    return path


def render(
    records: Sequence[CellRecord],
    run_id: str,
    about_the_run: Sequence[str] = (),
    about_several: Sequence[str] = (),
) -> str:
    """The summary as Markdown text.

    Args:
        about_the_run: what a reader has to know of the run as a whole.
        about_several: what cells come to together.
    """
    counts = Counter(record.status for record in records)
    totals = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none was finished"
    lines = [f"# Benchmark run {_escape(run_id)}", "", f"Cells: {totals}.", ""]
    lines += [f"**{_escape(line)}.**\n" for line in about_the_run]
    for profile, group in by_profile(records).items():
        lines += _table(profile, group)
    lines += _section("Together", about_several)
    shown = [name for name in METRICS if any(name in record.metrics for record in records)]
    lines += ["Values are medians with 95 % intervals where it says so; a dash means not measured.", ""]
    lines += [*(f"- {_escape(name)}: {_escape(_meaning(name))}" for name in shown), ""]
    for record in records:
        lines += _details(record)
    return "\n".join(lines) + "\n"


def _table(profile: str, records: Sequence[CellRecord]) -> list[str]:
    """The cells of one profile, with all that was measured."""
    shown = [name for name in METRICS if any(name in record.metrics for record in records)]
    header = ["model", "quant", *(f"{name} ({METRICS[name].unit})" for name in shown), "rating", "status"]
    lines = [f"## {_escape(profile)}", "", _row(header), _row(["---"] * len(header))]
    for record in records:
        name = record.model if record.variant is None else f"{record.model} · {record.variant}"
        numbers = [_interval(record, metric) for metric in shown]
        lines.append(_row([name, record.quantization, *numbers, record.rating or "–", record.status]))
    return [*lines, ""]


def _section(title: str, sentences: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {_escape(sentence)}" for sentence in sentences), ""] if sentences else []


def _meaning(name: str) -> str:
    formula = METRICS[name].formula
    return METRICS[name].meaning + (f" ({formula})" if formula else "")


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
    return [*lines, *_rows(record), ""]


def _rows(record: CellRecord) -> list[str]:
    """The tables behind the metrics, where they are short; the others are in the records."""
    lines: list[str] = []
    for table, rows in record.details.items():
        if not rows or len(rows) > MAX_DETAIL_ROWS:
            lines += [f"- {_escape(table)}: {len(rows)} rows in cells.jsonl"] if rows else []
            continue
        keys = list(dict.fromkeys(key for row in rows for key in row))
        lines += ["", f"### {_escape(table)}", "", _row(keys), _row(["---"] * len(keys))]
        lines += [_row([_cell(row.get(key)) for key in keys]) for row in rows]
    return lines


def _cell(value: Primitive) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
    if metric.ci_low is None or metric.ci_high is None or METRICS[name].exact:
        return text
    digits = METRICS[name].decimals
    return f"{text} ({metric.ci_low:.{digits}f}–{metric.ci_high:.{digits}f})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell if cell == "---" else _escape(cell) for cell in cells) + " |"


def _escape(text: str) -> str:
    return _ACTIVE.sub(r"\\\1", plain(text))
