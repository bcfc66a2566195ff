"""Derived scores: the founding formulas, and what is not known."""

from __future__ import annotations

import pytest

from pytest_llmbench.core.records import CellRecord, MetricValue, ServerInfo
from pytest_llmbench.core.scores import configurations, efficiency


def value(number: float, unit: str = "", *, half_width: float | None = None) -> MetricValue:
    low, high = (None, None) if half_width is None else (number - half_width, number + half_width)
    return MetricValue(value=number, unit=unit, n=6, ci_low=low, ci_high=high)


def cell(quantization: str, profile: str, host: str = "h", **metrics: float) -> CellRecord:
    return CellRecord(
        run_id="r",
        nodeid=f"{profile}[{quantization}]",
        backend="embedded",
        model="m",
        quantization=quantization,
        model_size="1B",
        profile=profile,
        variant=None,
        status="passed",
        metrics={name: value(number) for name, number in metrics.items()},
        server=ServerInfo(kind="embedded"),
        host=host,
        started_at="2026-01-01T00:00:00Z",
        duration_seconds=1,
    )


def test_efficiency_is_speed_times_context_for_memory_and_keeps_the_rates_interval() -> None:
    metrics = {"decode_tokens_per_second": value(20, half_width=2), "peak_memory_gb": value(4)}
    score = efficiency(metrics, 8192)
    assert score is not None
    assert (score.value, score.ci_low, score.ci_high) == (20 * 8192 / 4, 18 * 8192 / 4, 22 * 8192 / 4)


@pytest.mark.parametrize(
    ("metrics", "context_size"),
    [
        ({"decode_tokens_per_second": 20.0}, 8192),
        ({"peak_memory_gb": 4.0}, 8192),
        ({"decode_tokens_per_second": 20.0, "peak_memory_gb": 0.0}, 8192),
        ({"decode_tokens_per_second": 20.0, "peak_memory_gb": 4.0}, None),
    ],
)
def test_efficiency_of_what_is_not_known_does_not_exist(metrics: dict[str, float], context_size: int | None) -> None:
    assert efficiency({name: value(number) for name, number in metrics.items()}, context_size) is None


def test_cost_benefit_is_quality_times_speed_for_memory_beside_the_best_of_the_host() -> None:
    cells = [
        cell("Q4", "interactive", decode_tokens_per_second=20, peak_memory_gb=4, efficiency_score=7),
        cell("Q4", "quality", quality_score_percent=80, peak_memory_gb=5),
        cell("Q8", "interactive", decode_tokens_per_second=10, peak_memory_gb=8),
        cell("Q8", "quality", quality_score_percent=90, peak_memory_gb=8),
        cell("Q2", "interactive", decode_tokens_per_second=30, peak_memory_gb=3),
    ]
    q4, q8, q2 = configurations(cells)
    assert (q4.peak_memory_gb, q4.efficiency_score, q4.cost_benefit_score) == (5, 7, 100)
    assert q8.cost_benefit_score == pytest.approx(100 * (90 * 10 / 8) / (80 * 20 / 5))
    assert (q2.cost_benefit_score, q2.quality_score_percent, q2.decode_tokens_per_second) == (None, None, 30)


def test_machines_are_not_compared_with_each_other() -> None:
    known = {"decode_tokens_per_second": 20.0, "peak_memory_gb": 4.0, "quality_score_percent": 50.0}
    slow = {**known, "decode_tokens_per_second": 2.0}
    found = configurations([cell("Q4", "a", "one", **known), cell("Q4", "a", "two", **slow)])
    assert [one.cost_benefit_score for one in found] == [100, 100]


def test_where_nothing_was_answered_correctly_the_score_is_nought() -> None:
    (one,) = configurations([cell("Q4", "a", decode_tokens_per_second=20, peak_memory_gb=4, quality_score_percent=0)])
    assert one.cost_benefit_score == 0
    assert configurations([cell("Q4", "a")]) == []
