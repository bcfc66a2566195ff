"""``llmbench export``: a run as pytest-benchmark would have saved it, for its ``compare`` and histograms.

pytest-benchmark knows times only, so rates become the time per token; its OPS are then tokens per second.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.errors import RecordError
from pytest_llmbench.reports.plain import plain
from pytest_llmbench.reports.run_data import RunData
from pytest_llmbench.runtime.run_folder import find_run

FORMAT = "5.0.0"  # the version of pytest-benchmark whose files these are like
MAX_TEXT = 500
_SECONDS_PER_TOKEN = {
    "decode_tokens_per_second": "time_per_output_token",
    "depth_tokens_per_second": "time_per_output_token_at_depth",
    "prefill_tokens_per_second": "time_per_prompt_token",
}


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        RecordError: no such run, one that holds no times, or a file that can not be written.
    """
    found = RunData.read(find_run(options.output, options.run))
    exported = export(found)
    if not exported["benchmarks"]:
        raise RecordError(
            f"run {plain(found.run_id)} has no cell that was measured and holds its samples, so there is nothing to "
            "export; runs of earlier versions hold none: measure again"
        )
    path: Path = options.file
    try:
        path.write_text(json.dumps(exported, indent=4) + "\n", encoding="ascii")
    except OSError as exc:
        raise RecordError(f"{path} can not be written: {exc.strerror}; choose another file") from exc
    sys.stdout.write(f"{path}: {len(exported['benchmarks'])} benchmarks; pytest-benchmark compare {path} reads it\n")
    return 0


def export(found: RunData) -> dict[str, Any]:
    """What pytest-benchmark writes with ``--benchmark-json``. Left out are cells that are not to be believed."""
    description = found.description
    return {
        "machine_info": _machine_info(description),
        "commit_info": {
            "id": description.get("git_commit") or "unversioned",
            "time": None,
            "author_time": None,
            "dirty": False,
            "project": "pytest-llmbench",
            "branch": "(unknown)",
        },
        "benchmarks": [
            benchmark
            for record in found.records
            if record.status in {"passed", "failed"}
            for benchmark in _benchmarks(record)
        ],
        "datetime": description.get("started_at") or "",
        "version": FORMAT,
    }


def _machine_info(description: Mapping[str, Any]) -> dict[str, Any]:
    """The hardware under pytest-benchmark's names."""
    hardware, software = (_mapping(description.get(key)) for key in ("hardware", "software"))
    system, _, release = str(hardware.get("os", "")).partition("-")
    return {
        "node": hardware.get("label") or description.get("host") or "",
        "processor": hardware.get("machine", ""),
        "machine": hardware.get("machine", ""),
        "python_version": software.get("python", ""),
        "release": release,
        "system": system,
        "cpu": {"brand_raw": hardware.get("cpu", ""), "count": hardware.get("logical_cores")},
    }


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _benchmarks(record: CellRecord) -> Iterator[dict[str, Any]]:
    """One for each of a cell's metrics that is a time, or a rate of which there are samples."""
    nodeid = plain(record.nodeid[-MAX_TEXT:])
    name = nodeid.rpartition("::")[2]
    _, bracket, parameter = name.removesuffix("]").partition("[")
    params = {"model": record.model, "quantization": record.quantization, "variant": record.variant or ""}
    for metric, loads in record.samples.items():
        times = _seconds(metric, [sample for load in loads for sample in load])
        if not times:
            continue
        shown = _SECONDS_PER_TOKEN.get(metric, metric)
        yield {
            "group": plain(f"{record.profile} {shown}"[-MAX_TEXT:]),
            "name": f"{name}:{shown}",
            "fullname": f"{nodeid}:{shown}",
            "params": {key: plain(value[:MAX_TEXT]) for key, value in params.items()},
            "param": parameter if bracket else None,
            "extra_info": {
                "metric": metric,
                "status": record.status,
                "rating": record.rating,
                "loads": len(loads),
                "flags": [plain(flag[:MAX_TEXT]) for flag in record.flags],
            },
            "options": {},
            "stats": _stats(times),
        }


def _seconds(metric: str, samples: Sequence[float]) -> list[float]:
    """Samples as seconds; none of a metric that is neither a time nor a rate that has one."""
    if metric in _SECONDS_PER_TOKEN:
        return [1 / sample for sample in samples if sample > 0 and math.isfinite(1 / sample)]
    known = METRICS.get(metric)
    return list(samples) if known is not None and known.unit == "s" else []


def _stats(times: Sequence[float]) -> dict[str, Any]:
    """By pytest-benchmark's own arithmetic, so that what it compares is computed in the same way."""
    from pytest_benchmark.stats import Stats

    make: Callable[[], Any] = Stats  # its methods are not annotated
    stats = make()
    for seconds in times:
        stats.update(seconds)
    return {**stats.as_dict(), "data": list(times), "iterations": 1}
