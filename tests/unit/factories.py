"""Records for tests of what reads and writes them."""

from __future__ import annotations

from typing import Any

from pytest_llmbench.core.records import (
    CellRecord,
    MetricComparison,
    MetricValue,
    ModelFile,
    Reason,
    ServerInfo,
    ThresholdResult,
)


def cell_record(**changes: Any) -> CellRecord:
    """A passed cell with metrics and thresholds; ``changes`` replace fields."""
    fields: dict[str, Any] = {
        "run_id": "20260131T235959Z-1a2b",
        "nodeid": "suites/test_interactive.py::test_interactive[tiny-Q4_1]",
        "backend": "embedded",
        "model": "tiny",
        "quantization": "Q4_1",
        "model_size": "135M",
        "profile": "interactive",
        "variant": None,
        "status": "passed",
        "metrics": {
            "decode_tokens_per_second": MetricValue(value=71.25, unit="tokens/s", n=6, ci_low=70.5, ci_high=72.0),
            "ttft_seconds": MetricValue(value=0.125, unit="s", n=6),
        },
        "thresholds": [
            ThresholdResult(
                key="min_tokens_per_sec",
                metric="decode_tokens_per_second",
                side="min",
                limit=2,
                critical=True,
                observed=71.25,
                ci_low=70.5,
                ci_high=72.0,
                n=6,
                verdict="pass",
                margin_percent=3462.5,
            )
        ],
        "rating": "excellent",
        "interpretation": "reads faster than people do",
        "server": ServerInfo(kind="embedded"),
        "model_file": ModelFile(path="models/135M/tiny.gguf", size_bytes=98_362_432, sha256=None),
        "host": "0123456789abcdef",
        "started_at": "2026-01-31T23:59:59.000+00:00",
        "duration_seconds": 1.5,
    }
    return CellRecord(**{**fields, **changes})


def broken_record(message: str, **changes: Any) -> CellRecord:
    """A cell that could not be measured."""
    reason = Reason(code="server_start_failed", message=message)
    return cell_record(
        status="error", reason=reason, metrics={}, thresholds=[], rating=None, interpretation=None, **changes
    )


def metric_comparison(**changes: Any) -> MetricComparison:
    """A metric that became worse by 25 %; ``changes`` replace fields."""
    fields: dict[str, Any] = {
        "metric": "ttft_seconds",
        "old": 0.1,
        "new": 0.125,
        "ratio": 1.25,
        "ci_low": 1.2,
        "ci_high": 1.3,
        "p_value": 0.001,
        "limit_percent": 5.0,
        "verdict": "regressed",
        "message": "25 % slower",
    }
    return MetricComparison(**{**fields, **changes})
