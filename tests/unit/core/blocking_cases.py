"""Cells that ran and cells that may run, for tests of the blocking rules."""

from __future__ import annotations

from typing import Any

from pytest_llmbench.core.blocking import Blocking, Candidate
from pytest_llmbench.core.config import BlockingConfig
from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import CellRecord, MemoryRecord, Reason, ThresholdResult
from pytest_llmbench.core.thresholds import Limit
from tests.unit.factories import cell_record

RATE = "decode_tokens_per_second"
TTFT = "ttft_seconds"
HOST = "0123456789abcdef"
SETTINGS = {"context_size": 4096, "threads": 4}
AT_LEAST_TWO = Limit("min_tokens_per_sec", RATE, "min", 2.0, critical=True)


def limit(metric: str, value: float, side: Any = None, key: str | None = None) -> Limit:
    side = side or ("min" if METRICS[metric].better == "higher" else "max")
    return Limit(key or f"{side}_{metric}", metric, side, value, critical=True)


def result(of: Limit, observed: float, low: float, high: float, verdict: Any = "fail") -> ThresholdResult:
    return ThresholdResult(
        key=of.key,
        metric=of.metric,
        side=of.side,
        limit=of.value,
        critical=of.critical,
        observed=observed,
        ci_low=low,
        ci_high=high,
        n=6,
        verdict=verdict,
        margin_percent=None,
    )


def cell(model: str = "tiny", quantization: str = "Q4_K_M", **changes: Any) -> CellRecord:
    """A cell that passed, of a model whose name ends in its size: ``tiny-7B``; named by what tells it from others."""
    profile, variant = changes.get("profile", "interactive"), changes.get("variant")
    settings = changes.pop("settings", SETTINGS)
    if "context" in changes:
        settings = {**settings, "context_size": changes.pop("context")}
    names = [model, quantization, variant, str(settings.get("context_size"))]
    fields = {
        "nodeid": f"test_{profile}[{'-'.join(filter(None, names))}]",
        "model": model,
        "quantization": quantization,
        "model_size": model.rpartition("-")[2] if "-" in model else "1B",
        "host": HOST,
        "settings": settings,
        "thresholds": [],
        "metrics": {},
    }
    return cell_record(**{**fields, **changes})


def candidate(model: str = "tiny", quantization: str = "Q4_K_M", **changes: Any) -> Candidate:
    limits = changes.pop("limits", (AT_LEAST_TWO,))
    record = cell(model, quantization, **changes)
    return Candidate(
        nodeid=record.nodeid,
        model=record.model,
        model_size=record.model_size,
        quantization=record.quantization,
        profile=record.profile,
        variant=record.variant,
        backend=record.backend,
        host=record.host,
        settings=record.settings,
        limits=tuple(limits),
    )


def broken(code: str, evidence: dict[str, Any] | None = None, **changes: Any) -> CellRecord:
    """A cell whose server failed."""
    reason = Reason(code=code, message="the server failed", evidence=evidence or {})
    return cell(**{"status": "error", "reason": reason, "rating": None, **changes})


def slow(model: str = "tiny-1B", quantization: str = "Q4_K_M", **changes: Any) -> CellRecord:
    """A cell that made 1.2 tokens/s, 1.1 to 1.3, where 2 are wanted."""
    results = changes.pop("thresholds", [result(AT_LEAST_TWO, 1.2, 1.1, 1.3)])
    return cell(model, quantization, **{"status": "failed", "rating": "failed", "thresholds": results, **changes})


def needed(gigabytes: float, **changes: Any) -> CellRecord:
    """A cell whose server had so much memory at its peak."""
    memory = MemoryRecord(observed_peak_bytes=round(gigabytes * 1e9), observed_source="pss")
    return cell(**{"memory": memory, **changes})


def why(
    candidate: Candidate, *learnt: CellRecord, available_bytes: int | None = None, **switches: bool
) -> Reason | None:
    blocking = Blocking(BlockingConfig(**switches))
    for record in learnt:
        blocking.learn(record)
    return blocking.why(candidate, lambda: available_bytes)
