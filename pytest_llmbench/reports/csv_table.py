"""``results.csv``: one row per model, quantization and variant, the profiles side by side.

Columns have the founding names where there is one.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import CellRecord, MemoryRecord
from pytest_llmbench.core.scores import COST_BENEFIT, configurations
from pytest_llmbench.reports.run_data import RunData

# Metric → the founding column's suffix; a metric that is not here keeps its own name.
_FOUNDING_SUFFIX = {
    "ttft_seconds": "ttft",
    "decode_tokens_per_second": "tps",
    "variance_percent": "variance",
}


def write_csv(run: RunData) -> Path:
    """Write ``results.csv`` into a run's folder."""
    records = run.records
    rows: dict[tuple[str, str, str | None], dict[str, str]] = {}
    columns = ["model", "quant", "variant", "size_gb", "memory_gb", "predicted_memory_gb", *_columns_of(records)]
    scores = {(one.model, one.quantization, one.variant): one.cost_benefit_score for one in configurations(records)}
    columns += [COST_BENEFIT] if any(score is not None for score in scores.values()) else []
    for record in records:
        row = rows.setdefault((record.model, record.quantization, record.variant), {})
        if f"{record.profile}_status" in row and not record.metrics:
            continue  # a user's own test of this profile: it must not stand beside the numbers of a measurement
        row |= {"model": record.model, "quant": record.quantization, "variant": record.variant or ""}
        if record.model_file is not None:
            row["size_gb"] = f"{record.model_file.size_bytes / 1e9:.3f}"
        if record.memory is not None:
            _add_memory(row, record.memory)
        values = {
            **{_FOUNDING_SUFFIX.get(name, name): repr(metric.value) for name, metric in record.metrics.items()},
            "rating": record.rating or "",
            "status": record.status,
            "reason": record.reason.code if record.reason else "",
        }
        for name, value in values.items():
            row[f"{record.profile}_{name}"] = value
    for key, row in rows.items():
        if (score := scores.get(key)) is not None:
            row[COST_BENEFIT] = repr(score)
    path = run.folder / "results.csv"
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(_inert, columns))
        writer.writerows([_inert(row.get(column, "")) for column in columns] for row in rows.values())
    return path


def _columns_of(records: Sequence[CellRecord]) -> list[str]:
    """Of each profile its metrics, in the registry's order, then what became of it: whatever came first."""
    columns = []
    for profile in dict.fromkeys(record.profile for record in records):
        measured = {name for record in records if record.profile == profile for name in record.metrics}
        names = [_FOUNDING_SUFFIX.get(name, name) for name in METRICS if name in measured]
        columns += [f"{profile}_{name}" for name in (*names, "rating", "status", "reason")]
    return columns


def _add_memory(row: dict[str, str], memory: MemoryRecord) -> None:
    """Observed peak and prediction; of several profiles on one server, the highest."""
    sizes = {"memory_gb": memory.observed_peak_bytes, "predicted_memory_gb": memory.predicted_bytes}
    for column, size in sizes.items():
        if size is not None:
            row[column] = f"{max(size / 1e9, float(row.get(column, 0))):.3f}"


def _inert(value: str) -> str:
    """Keep a spreadsheet from running a name as a formula; a number is none, whatever its sign."""
    if not value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return value
    try:
        float(value)
    except ValueError:
        return "'" + value
    return value
