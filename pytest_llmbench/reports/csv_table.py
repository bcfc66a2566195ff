"""``results.csv``: one row per model, quantization and variant, the profiles side by side.

First the founding columns, always all of them; then what else was measured, under the metrics' own names.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pytest_llmbench.core.metrics import METRICS, PROFILE_NAMES
from pytest_llmbench.core.records import CellRecord, MetricValue
from pytest_llmbench.core.scores import COST_BENEFIT
from pytest_llmbench.reports.columns import columns_of
from pytest_llmbench.reports.files import replaced
from pytest_llmbench.reports.grouping import ConfigurationCells, by_configuration
from pytest_llmbench.reports.plain import plain
from pytest_llmbench.reports.run_data import RunData

MAX_TEXT = 1000
# Founding column of a profile's metric.
_FOUNDING = {
    ("interactive", "ttft_seconds"): "interactive_ttft",
    ("interactive", "decode_tokens_per_second"): "interactive_tps",
    ("long_context", "context_load_seconds"): "long_context_load",
    ("long_context", "largest_usable_context_tokens"): "long_context_max",
    ("batch", "documents_per_hour"): "batch_throughput",
}
FOUNDING_COLUMNS = (
    *("model", "quant", "size_gb", "memory_gb", "interactive_ttft", "interactive_tps", "interactive_rating"),
    *("long_context_load", "long_context_max", "batch_throughput"),
)
# What a spreadsheet takes for the beginning of a formula (full-width signs, too), also where it takes a semicolon for
# the end of a cell.
_FORMULA = re.compile(r"(^|;)(?=\s*[=+\-@＝＋－＠])")


def write_csv(run: RunData) -> Path:
    """Write ``results.csv`` into a run's folder; texts are one line each, cut at ``MAX_TEXT`` characters."""
    rows = [_row(one) for one in by_configuration(run.records)]
    known = [*FOUNDING_COLUMNS, "variant", "predicted_memory_gb", *_of_profiles(run.records), COST_BENEFIT]
    columns = list(dict.fromkeys(known))
    path = run.folder / "results.csv"
    with replaced(path) as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([row.get(column, "") for column in columns] for row in rows)
    return path


def _row(one: ConfigurationCells) -> dict[str, str]:
    row = {
        "model": _text(one.model),
        "quant": _text(one.quantization),
        "variant": _text(one.variant or ""),
        "size_gb": _number(one.size_gb),
        "memory_gb": _number(one.memory_gb),
        "predicted_memory_gb": _number(one.predicted_memory_gb),
        COST_BENEFIT: _number(one.cost_benefit_score),
    }
    for profile, record in one.measured.items():
        for name, metric in record.metrics.items():
            row |= _metric(_column(profile, name), metric)
        row |= {_text(f"{profile}_{name}"): value for name, value in _outcome(record).items()}
    return row


def _metric(column: str, metric: MetricValue) -> dict[str, str]:
    return {
        column: _number(metric.value),
        f"{column}_low": _number(metric.ci_low),
        f"{column}_high": _number(metric.ci_high),
    }


def _outcome(record: CellRecord) -> dict[str, str]:
    """What became of a cell; several codes are parted by spaces."""
    missed = {
        verdict: [result.key for result in record.thresholds if result.verdict == verdict]
        for verdict in ("fail", "inconclusive")
    }
    return {
        "rating": record.rating or "",
        "status": record.status,
        "reason": _text(record.reason.code) if record.reason else "",
        "failed_thresholds": _text(" ".join(missed["fail"])),
        "inconclusive_thresholds": _text(" ".join(missed["inconclusive"])),
        "flags": _text(" ".join(record.flags)),
    }


def _of_profiles(records: Sequence[CellRecord]) -> list[str]:
    """Of each profile, in the founding order: what became of it, its metrics, and the main ones' 95 % intervals."""
    columns: list[str] = []
    profiles = dict.fromkeys(record.profile for record in records)
    for profile in sorted(profiles, key=lambda name: _place(name, PROFILE_NAMES)):
        cells = [record for record in records if record.profile == profile]
        measured = {name for record in cells for name in record.metrics}
        main = {name for name, _ in columns_of(profile, cells) if not METRICS[name].exact}
        columns += [_text(f"{profile}_{name}") for name in _outcome(cells[0])]
        for name in METRICS:
            if name in measured:
                column = _column(profile, name)
                columns += [column, f"{column}_low", f"{column}_high"] if name in main else [column]
    return columns


def _place(name: str, order: Sequence[str]) -> int:
    """A sort key: what has no place in the order comes last, as it was found."""
    return order.index(name) if name in order else len(order)


@lru_cache(maxsize=1024)
def _column(profile: str, metric: str) -> str:
    """The founding name where there is one; else the metric's after its profile's, which is not said twice."""
    own = metric if metric.startswith(f"{profile}_") else f"{profile}_{metric}"
    return _text(_FOUNDING.get((profile, metric), own))


def _number(value: float | None) -> str:
    """All its digits; whole numbers without a point."""
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() else repr(value)


def _text(text: str) -> str:
    """On one line, without what a terminal obeys, and with an apostrophe before what a spreadsheet would compute."""
    return _FORMULA.sub(r"\1'", plain(text[:MAX_TEXT]))
