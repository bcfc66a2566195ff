"""What reports of a large run cost: 2,000 cells, with requests and telemetry as a run of that size leaves them.

A run is made up (80 models × 5 quantizations × 5 profiles; a tenth is not measured), written as records, and every
report is written from it by a process of its own, as ``llmbench report`` does. Beside it stands what merely reading
the same files as JSON takes. Then the page of 500 cells, which has to stay small.

Bounds: all reports in less than 5 s and 300 MB; the page of 500 cells below 2 MB. Exit status: 0 inside the bounds, 1
outside. Whether the page answers quickly is a matter for ``report_in_browser.mjs``; ``--keep`` leaves it one.

    python benchmarks/report.py [--cells N] [--keep FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CELLS, SMALL_CELLS = 2000, 500
MAX_SECONDS, MAX_MB, MAX_PAGE_MB = 5.0, 300.0, 2.0
QUANTIZATIONS = {"Q4_K_M": 4.8, "Q5_K_M": 5.7, "Q6_K": 6.6, "Q3_K_M": 3.9, "Q8_0": 8.5}
SIZES = (0.5, 1, 1.5, 3, 4, 7, 8, 14, 32, 70)
LIMITS = {
    "interactive": ("min_tokens_per_sec", "decode_tokens_per_second", "min", 2.0),
    "long_context": ("max_initial_load_time", "context_load_seconds", "max", 60.0),
    "batch": ("max_variance", "variance_percent", "max", 20.0),
    "quality": ("min_math_score", "math_score_percent", "min", 80.0),
    "stress": ("max_temperature", "cpu_temperature_celsius", "max", 85.0),
}
RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
READ_AS_JSON = """\
import json, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.jsonl")):
    for line in path.open("rb"):
        json.loads(line)
"""
WRITE_REPORTS = """\
import json, pathlib, sys, time
from pytest_llmbench.reports import WRITERS
from pytest_llmbench.reports.run_data import RunData
run, took = RunData.read(pathlib.Path(sys.argv[1])), {}
for name, write in WRITERS.items():
    begin = time.perf_counter()
    path = write(run)
    took[name] = {"seconds": time.perf_counter() - begin, "mb": path.stat().st_size / 1e6}
print(json.dumps(took))
"""


def cells(count: int) -> Iterator[dict[str, Any]]:
    """Records of a made-up run, always the same ones."""
    chance = random.Random(20260131)
    per_model = len(QUANTIZATIONS) * len(LIMITS)
    for place in range(count):
        model, rest = divmod(place, per_model)
        quantization = list(QUANTIZATIONS)[rest // len(LIMITS)]
        yield _cell(
            f"Model-{model:02}-Instruct", SIZES[model % len(SIZES)], quantization, list(LIMITS)[rest % 5], chance
        )


def _cell(model: str, size: float, quantization: str, profile: str, chance: random.Random) -> dict[str, Any]:
    file_bytes = int(size * 1e9 * QUANTIZATIONS[quantization] / 8)
    key, metric, side, limit = LIMITS[profile]
    record: dict[str, Any] = {
        "run_id": "20260131T235959Z-1a2b",
        "nodeid": f"suites/test_{profile}.py::test_{profile}[{model}-{quantization}]",
        "backend": "embedded",
        "model": model,
        "quantization": quantization,
        "model_size": f"{size:g}B",
        "profile": profile,
        "variant": None,
        "settings": {"context_size": 8192, "gpu_layers": 0},
        "device": "cpu",
        "server": {"kind": "embedded", "version": "xllamacpp 2026.10", "args": {"context_size": 8192, "threads": 8}},
        "model_file": {
            "path": f"models/{size:g}B/{model}.{quantization}.gguf",
            "size_bytes": file_bytes,
            "sha256": "ab" * 32,
        },
        "host": "0123456789abcdef",
        "started_at": "2026-01-31T23:59:59.000+00:00",
        "duration_seconds": chance.uniform(20, 200),
        "phases_seconds": {"fetch": 1.0, "load": 2.5, "measure": 40.0},
    }
    if chance.random() < 0.1:
        reason = {
            "code": "does_not_fit",
            "message": f"{model} {quantization} needs 75.0 GB of memory; 14.0 GB may be used",
        }
        return record | {"status": "skipped", "reason": reason}
    values, samples, details = _measured(profile, size, file_bytes, chance)
    observed = values[metric]
    passed = observed >= limit if side == "min" else observed <= limit
    threshold = {
        "key": key,
        "metric": metric,
        "side": side,
        "limit": limit,
        "critical": True,
        "observed": observed,
        "ci_low": observed * 0.97,
        "ci_high": observed * 1.03,
        "n": 12,
    }
    judged = {
        "verdict": "pass" if passed else "fail",
        "margin_percent": (100 if passed else -100) * abs(observed - limit) / limit,
    }
    return record | {
        "status": "passed" if passed else "failed",
        "reason": None if passed else {"code": "below_threshold", "message": f"{metric} is {observed:.1f}"},
        "metrics": {
            name: {
                "value": value,
                "unit": "",
                "n": 12,
                "ci_low": value * 0.97,
                "ci_high": min(value * 1.03, max(value, 100.0)),
            }
            for name, value in values.items()
        },
        "samples": samples,
        "thresholds": [threshold | judged],
        "rating": chance.choice(["excellent", "good", "acceptable"]) if passed else "failed",
        "interpretation": "Faster than people read; starts after a short pause",
        "flags": ["imprecise"] if chance.random() < 0.2 else [],
        "details": details,
        "memory": {
            "method": "header",
            "predicted_bytes": int(file_bytes * 1.2),
            "observed_peak_bytes": int(file_bytes * 1.18),
            "observed_source": "pss",
            "parts": {"weights_bytes": file_bytes},
        },
    }


_Measured = tuple[dict[str, float], dict[str, list[list[float]]], dict[str, list[dict[str, Any]]]]


def _measured(profile: str, size: float, file_bytes: int, chance: random.Random) -> _Measured:
    rate = chance.uniform(0.8, 1.2) * 6e10 / file_bytes
    common = {"load_seconds": 2.0 * size, "peak_memory_gb": file_bytes * 1.18 / 1e9, "swap_gb": 0.0}
    if profile == "interactive":
        ttft = 0.3 * size
        samples = {
            "decode_tokens_per_second": [[chance.gauss(rate, rate / 30) for _ in range(12)]],
            "ttft_seconds": [[chance.gauss(ttft, ttft / 20) for _ in range(12)]],
        }
        more = dict.fromkeys(("steady_tokens_per_second", "prefill_tokens_per_second", "efficiency_score"), rate)
        return (
            {
                "decode_tokens_per_second": rate,
                "ttft_seconds": ttft,
                "variance_percent": chance.uniform(3, 25),
                **more,
                **common,
            },
            samples,
            {},
        )
    if profile == "long_context":
        rows = [
            {
                "context_tokens": 4096 * 2**step,
                "prompt_tokens": 3900 * 2**step,
                "load_seconds": size * 2.0**step,
                "decode_tokens_per_second": rate / (1 + 0.2 * step),
                "warm_seconds": 0.2,
                "recalled": 2,
                "facts": 2,
                "usable": True,
                "reason": None,
            }
            for step in range(4)
        ]
        return (
            {
                "context_load_seconds": size * 8.0,
                "largest_usable_context_tokens": 32768.0,
                "depth_tokens_per_second": rate / 1.6,
                "recall_percent": 100.0,
                **common,
            },
            {},
            {"sizes": rows},
        )
    if profile == "batch":
        documents = [
            {
                "id": f"document-{number}",
                "seconds": chance.gauss(size, size / 10),
                "output_tokens": 150,
                "memory_mb": 900.0,
                "doubt": None,
            }
            for number in range(30)
        ]
        return (
            {
                "document_seconds": size,
                "documents_per_hour": 3600 / size,
                "variance_percent": chance.uniform(3, 25),
                **common,
            },
            {},
            {"documents": documents},
        )
    if profile == "quality":
        score = min(99.0, 40 + 12 * size**0.5 + chance.uniform(-5, 5))
        names = (
            "math_score_percent",
            "comprehension_score_percent",
            "reasoning_score_percent",
            "format_compliance_percent",
            "quality_score_percent",
        )
        asked = [
            {
                "id": f"{category}-{number:03}",
                "category": category,
                "correct": chance.random() < score / 100,
                "why": "",
                "answer": "It is the second of the three doors.",
                "output_tokens": 12,
                "seconds": 0.8,
                "error": None,
            }
            for category in ("math", "comprehension", "reasoning", "format")
            for number in range(32)
        ]
        return {**dict.fromkeys(names, score), "answer_seconds": 0.8, **common}, {}, {"questions": asked}
    hot = chance.uniform(65, 92)
    vitals = [
        {"minute": 0.5 * number, "tokens_per_second": rate, "cpu_temperature_celsius": hot, "memory_gb": 4.0}
        for number in range(60)
    ]
    return (
        {"sustained_tokens_per_second": rate, "decay_percent_per_hour": 1.0, "cpu_temperature_celsius": hot, **common},
        {},
        {"vitals": vitals},
    )


def write_run(folder: Path, count: int) -> None:
    """A run's folder: cells, ten requests of each that was measured, and 60 readings of the sensors."""
    folder.mkdir(parents=True)
    hardware = {"cpu": "Some CPU", "physical_cores": 8, "logical_cores": 16, "memory_bytes": 64 * 10**9, "os": "Linux"}
    described = {
        "run_id": folder.name,
        "started_at": "2026-01-31T23:59:59.000+00:00",
        "selected_cells": count,
        "hardware": hardware,
        "configuration": {"profiles": list(LIMITS)},
    }
    (folder / "run.json").write_text(json.dumps(described), encoding="utf-8")
    tables = [
        (folder / name).open("w", encoding="utf-8") for name in ("cells.jsonl", "requests.jsonl", "telemetry.jsonl")
    ]
    for number, record in enumerate(cells(count)):
        print(json.dumps(record), file=tables[0])
        for index in range(10 if "metrics" in record else 0):
            print(json.dumps(_request(record["nodeid"], index)), file=tables[1])
        for reading in range(60 if "metrics" in record else 0):
            values = {
                "server_rss_bytes": 4e9,
                "cpu_temperature_celsius": 60 + reading / 3,
                "memory_available_bytes": 3e10,
                "load_1m": 8.0,
                "cpu_busy_percent": 100.0,
            }
            line = {
                "schema_version": 1,
                "cell": record["nodeid"],
                "t_ns": (number * 60 + reading) * 500_000_000,
                "values": values,
            }
            print(json.dumps(line), file=tables[2])
    for table in tables:
        table.close()


def _request(nodeid: str, index: int) -> dict[str, Any]:
    offsets = list(range(500_000, 500_000 + 128 * 12_000, 12_000))
    return {
        "cell": nodeid,
        "index": index,
        "phase": "sample",
        "ok": True,
        "protocol": "llama_cpp",
        "t_send_ns": 0,
        "t_end_ns": 1,
        "token_offsets_us": offsets,
        "output": "Once upon a time " * 32,
    }


def run_child(program: str, folder: Path) -> tuple[float, float, str]:
    """Run a program over a folder, in a process of its own: seconds, MB at most of all children so far, output."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, str(folder)], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * RSS_UNIT_BYTES / 1e6, done.stdout


def _processor_seconds() -> float:
    """That all children have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(base: Path, count: int) -> dict[str, Any]:
    """Everything, in this order: memory is known only as the most of all children, and reports take the most."""
    large, small = base / "large", base / "small"
    write_run(large, count)
    write_run(small, SMALL_CELLS)
    read_seconds, _, _ = run_child(READ_AS_JSON, large)
    before = _processor_seconds()
    seconds, mb, output = run_child(WRITE_REPORTS, large)
    processor_seconds = _processor_seconds() - before
    run_child(WRITE_REPORTS, small)
    return {
        "cells": count,
        "input_mb": sum(path.stat().st_size for path in large.glob("*.jsonl")) / 1e6,
        "read_as_json_seconds": read_seconds,
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "ratio": seconds / read_seconds,
        "peak_mb": mb,
        "reports": json.loads(output),
        "page_of_500_mb": (small / "report.html").stat().st_size / 1e6,
    }


def show(found: Mapping[str, Any]) -> None:
    print(f"{found['cells']} cells, {found['input_mb']:.0f} MB of records")
    for name, one in found["reports"].items():
        print(f"  {name:<9} {one['seconds']:6.2f} s {one['mb']:7.2f} MB")
    print(f"all, with starting and reading: {found['seconds']:.2f} s (at most {MAX_SECONDS:g})")
    print(
        f"  of processor time {found['processor_seconds']:.2f} s; memory {found['peak_mb']:.0f} MB (at most {MAX_MB:g})"
    )
    plain, ratio = found["read_as_json_seconds"], found["ratio"]
    print(f"reading the same files as JSON takes {plain:.2f} s, reports {ratio:.1f} times that")
    print(f"report.html of {SMALL_CELLS} cells: {found['page_of_500_mb']:.2f} MB (at most {MAX_PAGE_MB:g})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=CELLS)
    parser.add_argument("--keep", type=Path, help="an empty folder for the made-up runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.keep is not None:
        found = measure(options.keep, options.cells)
    else:
        with TemporaryDirectory() as folder:
            found = measure(Path(folder), options.cells)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    inside = found["seconds"] <= MAX_SECONDS and found["peak_mb"] <= MAX_MB and found["page_of_500_mb"] <= MAX_PAGE_MB
    return 0 if inside else 1


if __name__ == "__main__":
    sys.exit(main())
