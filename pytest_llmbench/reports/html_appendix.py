"""The end of the page: memory and heat, quality, what has no numbers, configuration, logs, and what words mean."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.ratings import INTERPRETATIONS
from pytest_llmbench.core.records import FLAGS, CellRecord, MetricValue
from pytest_llmbench.core.redaction import redacted
from pytest_llmbench.reports.columns import columns_of
from pytest_llmbench.reports.html_subjects import Subject
from pytest_llmbench.reports.html_text import interval, lines_shown, metric_words, quantity, shown
from pytest_llmbench.reports.html_views import MARKS, Grid
from pytest_llmbench.reports.run_data import RunData

MOST_ROWS = 400
_LOG_BYTES, _LOGS_BYTES = 4_000, 100_000
_CONFIGURATION_CHARACTERS = 60_000
_UNMEASURED = ("error", "invalid", "skipped", "blocked")
_RESOURCES = (
    "peak_memory_gb",
    "swap_gb",
    "load_seconds",
    "cpu_temperature_celsius",
    "gpu_temperature_celsius",
    "frequency_drop_percent",
    "throttle_events",
    "package_joules_per_token",
    "gpu_joules_per_token",
)


@dataclass(frozen=True, slots=True)
class Term:
    """An entry of the glossary; ``bands`` say what values feel like."""

    key: str
    title: str
    meaning: str
    formula: str = ""
    bands: Sequence[str] = ()


def resources(measured: Sequence[Subject]) -> Grid | None:
    """Memory, heat and energy of each configuration; None where nothing of it was measured."""
    names = [name for name in _RESOURCES if any(one.most(name) is not None for one in measured)]
    if not names:
        return None
    rows = []
    for one in measured:
        found = [one.most(name) for name in names]
        values = [quantity(name, metric.value) if metric else "–" for name, metric in zip(names, found, strict=True)]
        predicted = next((cell.memory.predicted_bytes for cell in one.cells if cell.memory is not None), None)
        beside = f"{predicted / 1e9:.3f} GB" if predicted is not None else "–"
        rows.append([one.name, beside, *values])
    note = f"The first {MOST_ROWS} of {len(rows):,} configurations." if len(rows) > MOST_ROWS else ""
    head = ["configuration", "memory predicted", *map(metric_words, names)]
    return Grid("The most of all cells of a configuration", head, rows[:MOST_ROWS], note)


def unseen(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the machine's sensors do not tell, and why."""
    sensors = description.get("sensors")
    found: dict[str, str] = {}
    for machine in sensors.values() if isinstance(sensors, Mapping) else ():
        missing = machine.get("not_available") if isinstance(machine, Mapping) else None
        for name, why in missing.items() if isinstance(missing, Mapping) else ():
            found.setdefault(shown(name, 60), shown(why))
    return list(found.items())[:20]


def quality(measured: Sequence[Subject]) -> Grid | None:
    """Scores by category; None where no question was asked."""
    rows = []
    columns = columns_of("quality", ())
    for one in measured:
        for cell in one.of("quality"):
            if any(name in cell.metrics for name, _ in columns):
                scores = [cell.metrics.get(name) for name, _ in columns]
                words = [_of_asked(name, score) for (name, _), score in zip(columns, scores, strict=True)]
                rows.append([one.name, *words])
    if not rows:
        return None
    head = ["configuration", *(metric_words(name) for name, _ in columns)]
    return Grid("Questions answered correctly, with 95 % intervals (Wilson)", head, rows[:MOST_ROWS])


def _of_asked(name: str, score: MetricValue | None) -> str:
    if score is None:
        return "–"
    bounds = interval(name, score)
    return quantity(name, score.value) + (f" ({bounds})" if bounds else "") + f" of {score.n}"


def unmeasured(records: Sequence[CellRecord], names: Mapping[str, str]) -> Grid | None:
    """Cells that have no numbers to be believed, and why; None where all have.

    Args:
        names: of cells, by node id.
    """
    found = [record for record in records if record.status in _UNMEASURED]
    if not found:
        return None
    found.sort(key=lambda record: _UNMEASURED.index(record.status))
    rows = [
        [
            f"{MARKS[record.status]} {record.status}",
            f"{names[record.nodeid]}, {shown(record.profile, 40)}",
            shown(record.reason.code, 60) if record.reason else "–",
            shown(record.reason.message, 320) if record.reason else "–",
        ]
        for record in found[:MOST_ROWS]
    ]
    note = f"{len(found) - MOST_ROWS:,} more are in cells.jsonl." if len(found) > MOST_ROWS else ""
    return Grid("Cells without numbers", ["status", "cell", "code", "why"], rows, note)


def configuration(description: Mapping[str, Any]) -> str:
    """What the run was told to do, as JSON; what could be a key or a password is left out."""
    told = {key: description[key] for key in ("mode", "configuration", "models", "software") if key in description}
    text = json.dumps(redacted(told), indent=2, ensure_ascii=False, default=str)
    return lines_shown(text, _CONFIGURATION_CHARACTERS) if told else ""


def logs(run: RunData) -> list[tuple[str, str]]:
    """The end of each server's log, by file; none where the run keeps none."""
    output = run.description.get("configuration")
    output = output.get("output") if isinstance(output, Mapping) else None
    if isinstance(output, Mapping) and output.get("include_logs") is False:
        return []
    found, left = [], _LOGS_BYTES
    for path in sorted((run.folder / "logs").glob("*.log")):
        text = _tail(path, min(_LOG_BYTES, left))
        if text:
            left -= len(text.encode("utf-8", "replace"))
            found.append((shown(path.name, 120), text))
        if left <= 0:
            break
    return found


def _tail(path: Path, most_bytes: int) -> str:
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - most_bytes))
        text = file.read(most_bytes).decode("utf-8", "replace")
        return lines_shown(text.partition("\n")[2] if size > most_bytes else text, _LOG_BYTES).strip("\n")
    return ""


def glossary(records: Sequence[CellRecord]) -> list[Term]:
    """Every metric of the registry that was measured."""
    measured = {name for record in records for name in record.metrics}
    return [
        Term(name, metric_words(name), metric.meaning, metric.formula or "", list(_bands(name)))
        for name, metric in METRICS.items()
        if name in measured
    ]


def doubts(records: Sequence[CellRecord]) -> list[tuple[str, str]]:
    """Flags that a cell has, with their meaning."""
    raised = {flag for record in records for flag in record.flags}
    return [(flag, meaning) for flag, meaning in FLAGS.items() if flag in raised]


def _bands(name: str) -> Iterator[str]:
    low = None
    for bound, words in INTERPRETATIONS.get(name, ()):
        unbounded = bound == float("inf")
        if unbounded:
            yield f"{low:g} and more: {words}"
        else:
            yield f"{'below' if low is None else f'{low:g} to'} {bound:g}: {words}"
        low = bound
