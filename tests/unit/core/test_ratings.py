"""Ratings and plain words: the founding bands and margins."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.core.ratings import interpret, rate
from pytest_llmbench.core.records import MetricValue, ThresholdResult
from pytest_llmbench.core.thresholds import Limit, judge


def _result(
    observed: float | None, limit: float = 10, side: Literal["min", "max"] = "min", *, critical: bool = True
) -> ThresholdResult:
    metrics = (
        {} if observed is None else {"m": MetricValue(value=observed, unit="u", n=6, ci_low=observed, ci_high=observed)}
    )
    return judge([Limit("k", "m", side, limit, critical)], metrics)[0]


@pytest.mark.parametrize(
    ("observed", "side", "critical", "rating"),
    [
        (15, "min", True, "excellent"),
        (14.9, "min", True, "good"),
        (12, "min", True, "good"),
        (11.9, "min", True, "acceptable"),
        (10, "min", True, "acceptable"),
        (9.9, "min", True, "failed"),
        (9.9, "min", False, "poor"),
        (5, "max", True, "excellent"),
        (8, "max", True, "good"),
        (10, "max", True, "acceptable"),
        (10.1, "max", True, "failed"),
        (10.1, "max", False, "poor"),
    ],
)
def test_the_margin_to_the_limit_makes_the_rating(
    observed: float, side: Literal["min", "max"], critical: bool, rating: str
) -> None:
    assert rate([_result(observed, side=side, critical=critical)]) == rating


def test_the_tightest_margin_counts() -> None:
    assert rate([_result(100), _result(12)]) == "good"


def test_one_critical_miss_outweighs_a_lesser_one() -> None:
    assert rate([_result(9, critical=False), _result(100)]) == "poor"
    assert rate([_result(9, critical=False), _result(9)]) == "failed"


def test_a_limit_of_zero_is_met_with_ease_or_missed() -> None:
    assert rate([_result(0.1, limit=0)]) == "excellent"
    assert rate([_result(0.1, limit=0), _result(10)]) == "acceptable"
    assert rate([_result(0.1, limit=0, side="max")]) == "failed"


def test_an_undecided_limit_is_neither_missed_nor_met_with_ease() -> None:
    wide = {"m": MetricValue(value=50, unit="u", n=6, ci_low=5, ci_high=100)}
    undecided = judge([Limit("k", "m", "min", 10, critical=True)], wide)[0]
    assert undecided.verdict == "inconclusive"
    assert rate([undecided, _result(100)]) == "acceptable"
    assert rate([undecided, _result(9)]) == "failed"


def test_there_is_no_rating_without_an_observation_for_every_limit() -> None:
    assert rate([]) is None
    assert rate([_result(100), _result(None)]) is None


def test_a_miss_is_one_whatever_else_was_not_observed() -> None:
    assert rate([_result(9), _result(None)]) == "failed"
    assert rate([_result(None), _result(9, critical=False)]) == "poor"


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_higher_rate_never_rates_worse(one: float, other: float) -> None:
    order = ["failed", "acceptable", "good", "excellent"]
    lower, higher = (rate([_result(value)]) for value in sorted((one, other)))
    assert lower is not None
    assert higher is not None
    assert order.index(lower) <= order.index(higher)


def _words(profile: str = "interactive", **metrics: float) -> str | None:
    return interpret({name: MetricValue(value=value, unit="u", n=6) for name, value in metrics.items()}, profile)


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0, "Too slow to follow as it appears"),
        (1.99, "Too slow to follow as it appears"),
        (2, "Slow but readable, at dictation pace"),
        (5, "Unhurried, fine for a patient reader"),
        (10, "About as fast as people read"),
        (15, "Faster than people read"),
        (20, "Very fast"),
        (30, "Faster than anyone can follow"),
        (40, "Most answers appear almost at once"),
        (1e300, "Most answers appear almost at once"),
    ],
)
def test_a_rate_is_put_into_words(rate: float, words: str) -> None:
    assert _words(decode_tokens_per_second=rate) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.1, "Starts answering at once"),
        (2, "Starts after a short pause"),
        (5, "Starts after a pause one notices"),
        (10, "Starts after a wait that breaks the flow"),
        (30, "Takes too long to start for interactive use"),
    ],
)
def test_a_wait_is_put_into_words(seconds: float, words: str) -> None:
    assert _words(ttft_seconds=seconds) == words


def test_rate_and_wait_make_one_sentence() -> None:
    assert _words(ttft_seconds=1, decode_tokens_per_second=25) == "Very fast; starts answering at once"


def test_metrics_without_words_have_none() -> None:
    assert _words(variance_percent=3) is None
    assert _words() is None


def test_temperature_is_put_into_words_only_where_it_is_the_point() -> None:
    assert _words(cpu_temperature_celsius=60) is None
    assert _words("stress", cpu_temperature_celsius=60) == "The machine stays cool"
    assert _words("stress", cpu_temperature_celsius=91) == "The machine becomes too hot: reduce the load"


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"context_load_seconds": 4.9}, "The largest context loads without breaking the flow"),
        ({"context_load_seconds": 61}, "The largest context takes too long to load to be worked with"),
        ({"documents_per_hour": 9}, "Only for a handful of documents"),
        ({"quality_score_percent": 90}, "Gets nearly all right"),
    ],
)
def test_the_other_profiles_have_words_too(metrics: dict[str, float], words: str) -> None:
    assert _words("any", **metrics) == words
