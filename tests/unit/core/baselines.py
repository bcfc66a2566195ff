"""Runs made up to be compared."""

from __future__ import annotations

import random
from typing import Any

from pytest_llmbench.core.baseline import Baseline, baseline_of
from pytest_llmbench.core.records import CellRecord, MetricValue, ModelFile, ServerInfo
from tests.unit.factories import cell_record

DESCRIPTION: dict[str, Any] = {
    "mode": "full",
    "host": "0123456789abcdef",
    "hardware": {
        "cpu": "A CPU",
        "physical_cores": 4,
        "logical_cores": 8,
        "memory_bytes": 16 * 2**30,
        "machine": "x86_64",
        "os": "Linux-6.1",
    },
    "software": {"python": "3.12.1", "pytest-llmbench": "0.1.0", "numpy": "2.0.0", "xllamacpp": "1.0"},
    "servers": ["embedded xllamacpp 1.0"],
    "git_commit": "c121bb9c7e900d54e40608a504bd1a4e6974c8cb",
    "clock": {"implementation": "clock_gettime(CLOCK_MONOTONIC)"},
    "sensors": {"0123456789abcdef": {"not_available": {}, "facts": {"governor": "performance", "turbo": True}}},
    "calibration": {
        "event_loop": "uvloop",
        "errors": [{"streams": 1, "ttft_error_p99_ms": 0.3, "gap_error_p99_ms": 0.2}],
    },
    "configuration": {
        "embedded": {"default_threads": None, "default_ctx_size": 8192},
        "output": {"dir": "./results"},
        "variants": [],
    },
}


def loads(rate: float, *, count: int = 3, samples: int = 10, spread: float = 0.01, seed: int = 0) -> list[list[float]]:
    """Samples by load of the model around a median, with a spread between loads and half of that within."""
    chance = random.Random(seed)
    factors = [chance.lognormvariate(0, spread) for _ in range(count)]
    return [[rate * factor * chance.lognormvariate(0, spread / 2) for _ in range(samples)] for factor in factors]


def measured(quantization: str = "Q4_1", *, rate: float = 70.0, seed: int = 0, **changes: Any) -> CellRecord:
    """An interactive cell of three loads; ``changes`` replace fields of the record."""
    samples = {
        "decode_tokens_per_second": loads(rate, seed=seed),
        "ttft_seconds": loads(7 / rate, seed=seed + 1000),
    }
    fields: dict[str, Any] = {
        "nodeid": f"suites/test_interactive.py::test_interactive[tiny-{quantization}]",
        "quantization": quantization,
        "samples": samples,
        "metrics": {
            "decode_tokens_per_second": MetricValue(value=rate, unit="tokens/s", n=30),
            "ttft_seconds": MetricValue(value=7 / rate, unit="s", n=30),
            "peak_memory_gb": MetricValue(value=0.4, unit="GB", n=1),
        },
        "sampling": {f"load_{number}.output_tokens": 500 for number in (1, 2, 3)},
        "server": ServerInfo(kind="embedded", version="xllamacpp 1.0", args={"threads": 4}, context_size=8192),
        "model_file": ModelFile(path="models/tiny.gguf", size_bytes=1000, sha256="a" * 64),
    }
    return cell_record(**{**fields, **changes})


def answered(correct: str, **changes: Any) -> CellRecord:
    """A quality cell; ``correct`` holds a 1 for each question answered correctly, else a 0."""
    rows = [{"id": f"math-{number}", "category": "math", "correct": one == "1"} for number, one in enumerate(correct)]
    score = 100 * correct.count("1") / len(correct)
    fields: dict[str, Any] = {
        "nodeid": "suites/test_quality.py::test_quality[tiny-Q4_1]",
        "profile": "quality",
        "details": {"questions": rows},
        "metrics": {"quality_score_percent": MetricValue(value=score, unit="%", n=len(correct))},
        "sampling": {"bank_version": "1.0", "bank_fingerprint": "6271e2aab092", "output_tokens": 256},
    }
    return cell_record(**{**fields, **changes})


def run(run_id: str, *records: CellRecord, **description: Any) -> Baseline:
    """A run of these cells; ``description`` replaces parts of ``run.json``."""
    return baseline_of({**DESCRIPTION, **description}, records, run_id)
