"""``report.json``: the whole run as one document, in the founding structure; ``report.schema.json`` describes it.

One line for each configuration: a large run needs no more memory than its largest configuration, and two reports can be
compared line by line.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import FLAGS, CellRecord
from pytest_llmbench.core.redaction import redacted
from pytest_llmbench.core.scores import COST_BENEFIT
from pytest_llmbench.reports.files import replaced
from pytest_llmbench.reports.grouping import ConfigurationCells, by_configuration
from pytest_llmbench.reports.remarks import remarks
from pytest_llmbench.reports.run_data import RunData

REPORT_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
MAX_TEXT = 10_000
_LARGE = 200_000  # below so many characters of JSON, there is no use in looking for texts to cut

# The founding design's name of a metric, which stands beside ours.
_FOUNDING_NAMES = {"decode_tokens_per_second": "tokens_per_second"}
# What the configuration's heading says already.
_SAID_ABOVE = {"schema_version", "run_id", "model", "quantization", "variant", "model_size"}


def write_json(run: RunData) -> Path:
    """Write ``report.json`` into a run's folder: ASCII, finite numbers, texts cut at ``MAX_TEXT`` characters.

    What could be a key or a password is left out.
    """
    path = run.folder / "report.json"
    with replaced(path, "ascii") as file:
        file.writelines(_pieces(run))
    return path


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``report.json``."""
    read: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return read


def _pieces(run: RunData) -> Iterator[str]:
    yield f'{{\n"schema_version": {REPORT_VERSION},\n"metadata": {_dump(_metadata(run))},\n"results": ['
    separator = "\n"
    for one in by_configuration(run.records):
        yield separator + _dump(_result(one))
        separator = ",\n"
    yield f'\n],\n"recommendations": {_dump(asdict(run.recommendations))},\n'
    yield f'"conclusions": {_dump(run.conclusions)},\n"definitions": {_dump(_definitions(run))}\n}}\n'


def _metadata(run: RunData) -> dict[str, Any]:
    """What ``run.json`` says, under the founding names where there are some; null where it does not say it."""
    description, records = redacted(run.description), run.records
    hardware = description.get("hardware")
    machine = dict(hardware) if isinstance(hardware, Mapping) else {}
    memory_bytes = machine.get("memory_bytes")
    host = description.get("host") or next((record.host for record in records), None)
    placed = {
        "run_id": run.run_id,
        "timestamp": description.get("started_at") or next((record.started_at for record in records), None),
        "finished_at": description.get("finished_at"),
        "hostname": machine.get("label") or host,
        "hardware": {
            "cpu": machine.get("cpu"),
            "ram_gb": round(memory_bytes / 1e9, 1) if isinstance(memory_bytes, int | float) else None,
            "os": machine.get("os"),
            **{key: value for key, value in machine.items() if key not in {"cpu", "ram_gb", "os"}},
        },
        "config": description.get("configuration"),
        "test_duration_seconds": _duration_seconds(run),
        "cells": dict(Counter(record.status for record in records)),
        "remarks": remarks(run),
    }
    elsewhere = {"schema_version", "started_at", "configuration"}
    return placed | {key: value for key, value in description.items() if key not in placed.keys() | elsewhere}


def _duration_seconds(run: RunData) -> float:
    """From the run's start to its end; of one that was resumed, or has no end, the time that its cells took."""
    if not run.description.get("resumed"):
        with suppress(KeyError, TypeError, ValueError):
            begin, end = (datetime.fromisoformat(run.description[key]) for key in ("started_at", "finished_at"))
            return max(0.0, (end - begin).total_seconds())
    return math.fsum(record.duration_seconds for record in run.records)


def _result(one: ConfigurationCells) -> dict[str, Any]:
    first = one.cells[0]
    return {
        "model": one.model,
        "quantization": one.quantization,
        "variant": one.variant,
        "backend": first.backend,
        "model_size": first.model_size,
        "model_size_gb": one.size_gb,
        "memory_gb": one.memory_gb,
        "predicted_memory_gb": one.predicted_memory_gb,
        COST_BENEFIT: one.cost_benefit_score,
        "profiles": {profile: _cell(record) for profile, record in one.measured.items()},
        "other_cells": [_cell(record) for record in one.others],
    }


def _cell(record: CellRecord) -> dict[str, Any]:
    """A cell's record; of its metrics plain numbers, and beside them what they are worth."""
    data = record.model_dump()
    data |= {"settings": redacted(data["settings"]), "server": redacted(data["server"])}
    values = {name: metric.value for name, metric in record.metrics.items()}
    founding = {alias: values[name] for name, alias in _FOUNDING_NAMES.items() if name in values}
    own = {"metrics": founding | values, "metrics_detail": data["metrics"]}
    return {
        "status": record.status,
        **own,
        "rating": record.rating,
        **{key: value for key, value in data.items() if key not in {"status", "rating", "metrics", *_SAID_ABOVE}},
    }


def _definitions(run: RunData) -> dict[str, Any]:
    """What the metrics and flags of this run mean."""
    measured = {name for record in run.records for name in record.metrics}
    flags = {flag for record in run.records for flag in record.flags}
    return {
        "metrics": {
            name: {"unit": metric.unit, "better": metric.better, "meaning": metric.meaning, "formula": metric.formula}
            for name, metric in METRICS.items()
            if name in measured
        },
        "flags": {flag: meaning for flag, meaning in FLAGS.items() if flag in flags},
    }


def _dump(data: Any) -> str:
    """ASCII on one line: model output may hold what UTF-8 can not (lone surrogates), and what a terminal obeys."""
    try:
        text = json.dumps(data, allow_nan=False)
    except ValueError:
        return json.dumps(_harmless(data))
    return text if len(text) < _LARGE else json.dumps(_harmless(data))


def _harmless(data: Any) -> Any:
    """The same with long texts cut, and with text for numbers that JSON can not hold, as in the records."""
    if isinstance(data, Mapping):
        return {_harmless(key): _harmless(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_harmless(value) for value in data]
    if isinstance(data, str) and len(data) > MAX_TEXT:
        return f"{data[:MAX_TEXT]}… ({len(data)} characters in all)"
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data
