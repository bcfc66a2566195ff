"""Which metrics of a profile stand in its table: what its use is about, few enough for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_llmbench.core.metrics import COMMON_METRICS, METRICS
from pytest_llmbench.core.records import CellRecord

_HEADLINES: dict[str, tuple[tuple[str, str], ...]] = {
    "interactive": (
        ("decode_tokens_per_second", "tokens/s"),
        ("ttft_seconds", "TTFT s"),
        ("variance_percent", "variance %"),
    ),
    "long_context": (
        ("largest_usable_context_tokens", "usable"),
        ("context_load_seconds", "load s"),
        ("depth_tokens_per_second", "tok/s"),
        ("warm_continuation_seconds", "warm s"),
        ("recall_percent", "recall %"),
    ),
    "batch": (
        ("document_seconds", "s/doc"),
        ("documents_per_hour", "per hour"),
        ("variance_percent", "variance %"),
        ("degradation_percent", "slower %"),
    ),
    "quality": (
        ("math_score_percent", "math"),
        ("comprehension_score_percent", "compr."),
        ("reasoning_score_percent", "reason."),
        ("format_compliance_percent", "format"),
        ("quality_score_percent", "all %"),
    ),
    "stress": (
        ("sustained_tokens_per_second", "tok/s"),
        ("decay_percent_per_hour", "decay %/h"),
        ("cpu_temperature_celsius", "max °C"),
        ("throttle_events", "throttl."),
        ("scheduling_delay_ms", "delay ms"),
    ),
}
_MOST_OF_OTHERS = 3


def columns_of(profile: str, records: Iterable[CellRecord]) -> Sequence[tuple[str, str]]:
    """Metric and title of each column; of a profile that a user registered, the first of what it measured."""
    if profile in _HEADLINES:
        return _HEADLINES[profile]
    measured = {name for record in records for name in record.metrics}
    own = [name for name in METRICS if name in measured and name not in COMMON_METRICS]
    return tuple((name, name) for name in own[:_MOST_OF_OTHERS])


def by_profile(records: Sequence[CellRecord]) -> dict[str, list[CellRecord]]:
    """Records by profile, whatever came first."""
    groups: dict[str, list[CellRecord]] = {}
    for record in records:
        groups.setdefault(record.profile, []).append(record)
    return groups
