"""Records from which recommendations are made in tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_llmbench.core.metrics import FOUNDING_THRESHOLDS, METRICS
from pytest_llmbench.core.ratings import rate
from pytest_llmbench.core.recommendations import Advice, Candidate, Recommendations
from pytest_llmbench.core.records import CellRecord, MemoryRecord, MetricValue, Reason
from pytest_llmbench.core.thresholds import Limit, judge
from tests.unit.factories import cell_record

GB = 1_000_000_000


def value(name: str, number: float, half_width_percent: float = 3) -> MetricValue:
    """A metric with an interval of so many percent of it on either side; an exact one has none but itself."""
    half = 0.0 if METRICS[name].exact else abs(number) * half_width_percent / 100
    most = METRICS[name].maximum
    high = number + half if most is None else min(most, number + half)
    return MetricValue(value=number, unit=METRICS[name].unit, n=6, ci_low=number - half, ci_high=high)


def cell(
    profile: str,
    model: str,
    quantization: str,
    limits: Mapping[str, float] | None = None,
    half_width_percent: float = 3,
    memory: MemoryRecord | None = None,
    changes: Mapping[str, Any] | None = None,
    **metrics: float,
) -> CellRecord:
    """A measured cell, judged and rated by the founding limits of its profile, some of them replaced."""
    found = {name: value(name, number, half_width_percent) for name, number in metrics.items()}
    in_force = [
        Limit(key.key, key.metric, key.side, (limits or {}).get(key.key, key.default), key.critical)
        for key in FOUNDING_THRESHOLDS.get(profile, ())
        if key.metric in found
    ]
    thresholds = judge(in_force, found)
    fields: dict[str, Any] = {
        "nodeid": f"suites/test_{profile}.py::test_{profile}[{model}-{quantization}]",
        "model": model,
        "quantization": quantization,
        "profile": profile,
        "status": "failed" if any(result.verdict == "fail" for result in thresholds) else "passed",
        "metrics": found,
        "thresholds": thresholds,
        "rating": rate(thresholds),
        "interpretation": None,
        "memory": memory,
    }
    return cell_record(**{**fields, **(changes or {})})


def unmeasured(
    profile: str, model: str, quantization: str, status: str, code: str, message: str = "why", **evidence: Any
) -> CellRecord:
    """A cell without numbers."""
    reason = Reason(code=code, message=message, evidence=evidence)
    return cell(profile, model, quantization, changes={"status": status, "reason": reason, "rating": None})


def too_large(profile: str, model: str, quantization: str, needed_gb: float) -> CellRecord:
    """A cell that was skipped because it does not fit into 14 GB."""
    facts = {"required_bytes": int(needed_gb * GB), "available_bytes": 14 * GB}
    return unmeasured(profile, model, quantization, "skipped", "does_not_fit", "needs more memory", **facts)


def of(found: Recommendations, use: str) -> Advice:
    """The advice for one use."""
    return next(advice for advice in found.advice if advice.use_case == use)


def places(advice: Advice) -> list[tuple[str, str, str | None]]:
    """Mark, configuration and usability of what is ranked, in order."""
    return [(one.mark, one.configuration, one.usability) for one in advice.ranked]


def named(advice: Advice, configuration: str) -> Candidate:
    """A candidate by its name."""
    return next(one for one in advice.ranked if one.configuration == configuration)
