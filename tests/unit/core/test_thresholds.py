"""Thresholds: which limits are possible, and the verdict with its three values."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import MetricValue, ThresholdResult
from pytest_llmbench.core.thresholds import (
    Limit,
    UnusableThreshold,
    Verdict,
    check_limit,
    explain,
    judge,
    known_keys,
    limits_in_force,
)
from pytest_llmbench.core.yaml_source import parse_yaml
from pytest_llmbench.errors import ThresholdFailure
from tests.unit.factories import metric_comparison

EMITTED = ("decode_tokens_per_second", "ttft_seconds", "variance_percent")
Side = Literal["min", "max"]
limits = st.floats(0, allow_nan=False, allow_infinity=False)
finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates()


def _check(key: str, value: Any, profile: str = "interactive") -> Limit | None:
    return check_limit(profile, key, value, known_keys(profile, EMITTED))


def _refusal(key: str, value: Any, profile: str = "interactive") -> str:
    with pytest.raises(UnusableThreshold) as caught:
        _check(key, value, profile)
    return str(caught.value)


def _judge(limit: float, side: Side, value: float, low: float | None, high: float | None) -> ThresholdResult:
    key = f"{side}_ttft_seconds"
    metrics = {"ttft_seconds": MetricValue(value=value, unit="s", n=6, ci_low=low, ci_high=high)}
    return judge([Limit(key, "ttft_seconds", side, limit, critical=True)], metrics)[0]


def test_a_profile_knows_its_founding_keys_and_both_sides_of_each_metric_it_emits() -> None:
    assert sorted(known_keys("interactive", EMITTED)) == [
        "max_decode_tokens_per_second",
        "max_time_to_first_token",
        "max_ttft_seconds",
        "max_variance",
        "max_variance_percent",
        "min_decode_tokens_per_second",
        "min_tokens_per_sec",
        "min_ttft_seconds",
        "min_variance_percent",
    ]
    assert set(known_keys("my_own_profile", ["ttft_seconds"])) == {"min_ttft_seconds", "max_ttft_seconds"}


def test_a_limit_by_metric_name_judges_that_metric_from_that_side() -> None:
    assert _check("max_ttft_seconds", 3) == Limit("max_ttft_seconds", "ttft_seconds", "max", 3.0, critical=True)
    assert _check("min_tokens_per_sec", 2.5) == Limit(
        "min_tokens_per_sec", "decode_tokens_per_second", "min", 2.5, critical=True
    )


def test_missing_an_even_stream_is_not_critical() -> None:
    limit = _check("max_variance", 20)
    assert limit is not None
    assert not limit.critical


@pytest.mark.parametrize("value", [0, 0.0, 1e300, 150])
def test_zero_and_large_limits_are_legal(value: float) -> None:
    limit = _check("max_variance", value)
    assert limit is not None
    assert limit.value == value


def test_null_switches_a_limit_off() -> None:
    assert _check("min_tokens_per_sec", None) is None


def test_an_unknown_key_is_refused_with_the_nearest_and_all_allowed() -> None:
    refusal = _refusal("min_token_per_sec", 2)
    assert refusal.startswith(
        "no metric of profile 'interactive' is judged by this key (did you mean 'min_tokens_per_sec'?); allowed: "
    )
    assert refusal.endswith(", ".join(sorted(known_keys("interactive", EMITTED))))


def test_a_negative_limit_is_refused() -> None:
    assert _refusal("min_tokens_per_sec", -1) == "a limit can not be negative, but is -1; 0 or more is allowed"


def test_a_negative_limit_in_a_file_is_shown_with_its_line() -> None:
    document = parse_yaml("thresholds:\n  interactive:\n    min_tokens_per_sec: -1\n", "config.yaml")
    refusal = _refusal("min_tokens_per_sec", document.data["thresholds"]["interactive"]["min_tokens_per_sec"])
    assert document.complaint(("thresholds", "interactive", "min_tokens_per_sec"), refusal) == (
        "config.yaml:3: thresholds.interactive.min_tokens_per_sec: "
        "a limit can not be negative, but is -1; 0 or more is allowed"
    )


@pytest.mark.parametrize("value", [True, "5", [5], {"a": 5}, math.nan, math.inf, -math.inf, 10**400, -(10**400)])
def test_a_limit_is_a_number(value: Any) -> None:
    assert _refusal("min_tokens_per_sec", value).startswith("a limit is a number (or null for none), not ")


def test_an_absurdly_long_limit_is_not_printed_in_full() -> None:
    assert len(_refusal("min_tokens_per_sec", 1 << 100_000)) < 200


def test_a_score_beyond_100_percent_is_refused() -> None:
    assert _refusal("min_math_score", 100.5, "quality") == (
        "100.5 is more than math_score_percent can reach; allowed: 0 to 100"
    )
    assert _check("min_math_score", 100, "quality") is not None


@given(st.sampled_from(["min_tokens_per_sec", "max_ttft_seconds", "nonsense"]), scalars | st.lists(scalars))
def test_anything_written_is_a_limit_or_refused(key: str, value: Any) -> None:
    try:
        limit = _check(key, value)
    except UnusableThreshold as exc:
        refusal = str(exc)
    else:
        assert value is None if limit is None else limit.value >= 0
        return
    assert "allowed" in refusal or "a limit is a number" in refusal


def test_founding_defaults_are_in_force_when_nothing_is_written() -> None:
    assert {limit.key: limit.value for limit in limits_in_force("interactive", EMITTED, [])} == {
        "min_tokens_per_sec": 2,
        "max_time_to_first_token": 30,
        "max_variance": 20,
    }
    assert limits_in_force("my_own_profile", EMITTED, []) == ()


def test_the_later_table_wins_and_null_switches_off() -> None:
    config = {"interactive": {"min_tokens_per_sec": 5, "max_variance": 10}}
    model = {"interactive": {"min_tokens_per_sec": 7, "max_variance": None}}
    variant = {"interactive": {"max_ttft_seconds": 1}, "batch": {"max_variance": 1}}
    in_force = limits_in_force("interactive", EMITTED, [config, model, variant])
    assert {limit.key: limit.value for limit in in_force} == {
        "min_tokens_per_sec": 7,
        "max_time_to_first_token": 30,
        "max_ttft_seconds": 1,
    }


def test_settings_that_the_founding_file_keeps_among_thresholds_are_no_limits() -> None:
    table = {"batch": {"num_documents": 10, "max_variance": 15}}
    assert {limit.key: limit.value for limit in limits_in_force("batch", ["variance_percent"], [table])} == {
        "max_variance": 15
    }


def test_an_impossible_limit_is_refused_wherever_it_is_written() -> None:
    with pytest.raises(UnusableThreshold, match="did you mean 'max_variance'"):
        limits_in_force("interactive", EMITTED, [{"interactive": {"max_varianze": 1}}])


@pytest.mark.parametrize(
    ("side", "limit", "verdict"),
    [
        ("min", 9.9, "pass"),
        ("min", 10, "pass"),
        ("min", 10.1, "inconclusive"),
        ("min", 12, "inconclusive"),
        ("min", 12.1, "fail"),
        ("max", 12.1, "pass"),
        ("max", 12, "pass"),
        ("max", 11.9, "inconclusive"),
        ("max", 10, "inconclusive"),
        ("max", 9.9, "fail"),
    ],
)
def test_the_whole_interval_decides(side: Side, limit: float, verdict: str) -> None:
    assert _judge(limit, side, 11, 10, 12).verdict == verdict


@given(st.tuples(finite, finite, finite).map(sorted), st.sampled_from(["min", "max"]), st.lists(limits, min_size=2))
def test_tightening_a_limit_goes_from_pass_over_inconclusive_to_fail(
    interval: list[float], side: Side, written: list[float]
) -> None:
    low, value, high = interval
    written += [abs(low), abs(high)]
    order = ["pass", "inconclusive", "fail"]
    loosest_first = sorted(written, reverse=side == "max")
    steps = [order.index(_judge(limit, side, value, low, high).verdict) for limit in loosest_first]
    assert steps == sorted(steps)


@given(st.tuples(finite, finite, finite).map(sorted), limits)
def test_a_verdict_is_never_at_odds_with_the_value_itself(interval: list[float], limit: float) -> None:
    low, value, high = interval
    for side, holds, misses in (("min", value >= limit, value < limit), ("max", value <= limit, value > limit)):
        verdict = _judge(limit, "min" if side == "min" else "max", value, low, high).verdict
        assert verdict != "fail" or misses
        assert verdict != "pass" or holds


@pytest.mark.parametrize(("low", "high"), [(None, None), (10, None), (None, 12)])
def test_a_metric_without_an_interval_is_inconclusive(low: float | None, high: float | None) -> None:
    assert _judge(1, "min", 11, low, high).verdict == "inconclusive"


def test_a_metric_that_was_not_observed_is_inconclusive() -> None:
    (result,) = judge([Limit("min_ttft_seconds", "ttft_seconds", "min", 1, critical=True)], {})
    assert result.verdict == "inconclusive"
    assert result.observed is None
    assert result.n == 0
    assert result.margin_percent is None


@pytest.mark.parametrize(
    ("side", "limit", "value", "margin"),
    [("min", 10, 12, 20), ("min", 10, 8, -20), ("max", 10, 8, 20), ("max", 10, 12, -20), ("max", 0, 1, None)],
)
def test_the_margin_is_relative_to_the_limit(side: Side, limit: float, value: float, margin: float | None) -> None:
    assert _judge(limit, side, value, value, value).margin_percent == pytest.approx(margin)


@given(limits, finite, st.sampled_from(["min", "max"]))
def test_a_margin_is_a_finite_number_or_none(limit: float, value: float, side: Side) -> None:
    margin = _judge(limit, side, value, None, None).margin_percent
    assert margin is None or math.isfinite(margin)


def test_a_limit_a_hair_above_zero_has_no_margin_to_speak_of() -> None:
    assert _judge(1e-320, "min", 50, 40, 60).margin_percent is None


def test_a_result_is_explained_in_one_line() -> None:
    assert explain(_judge(2, "max", 1.5, 1.25, 1.75)) == (
        "✓ max_ttft_seconds: at most 2.000 s, observed 1.500 s (95 % interval 1.250 s to 1.750 s, n=6), "
        "margin +25.0 % of the limit → pass"
    )
    assert explain(_judge(2, "min", 1.5, 1.25, 1.75)) == (
        "✗ min_ttft_seconds: at least 2.000 s, observed 1.500 s (95 % interval 1.250 s to 1.750 s, n=6), "
        "margin -25.0 % of the limit → fail"
    )
    assert explain(_judge(0, "min", 1.5, None, None)) == (
        "? min_ttft_seconds: at least 0.000 s, observed 1.500 s (no interval, n=6) → inconclusive"
    )
    (unseen,) = judge([Limit("min_ttft_seconds", "ttft_seconds", "min", 1, critical=True)], {})
    assert explain(unseen) == "? min_ttft_seconds: at least 1.000 s, not observed → inconclusive"


def test_one_missed_threshold_fails_and_all_are_shown() -> None:
    verdict = Verdict("m-Q4_1", (_judge(2, "max", 1.5, 1, 1.75), _judge(2, "min", 1.5, 1, 1.75)))
    with pytest.raises(ThresholdFailure) as caught:
        verdict.check()
    lines = str(caught.value).splitlines()
    assert lines[0] == "m-Q4_1: 1 of 2 thresholds not met"
    assert lines[2].startswith("  ✓ max_ttft_seconds")
    assert lines[1].startswith("  ✗ min_ttft_seconds")
    assert isinstance(caught.value, AssertionError)


def test_an_undecided_threshold_passes_by_default_and_is_visible() -> None:
    verdict = Verdict("m-Q4_1", (_judge(1.5, "max", 1.5, 1, 2),))
    verdict.check()
    assert verdict.missed == []
    assert verdict.explain().splitlines()[0] == "m-Q4_1: 0 of 1 thresholds not met, 1 inconclusive"


def test_an_undecided_threshold_fails_by_configuration() -> None:
    verdict = Verdict("m-Q4_1", (_judge(1.5, "max", 1.5, 1, 2),), inconclusive_fails=True)
    with pytest.raises(ThresholdFailure, match=r"1 of 1 thresholds not met, 1 inconclusive \(fails by configuration\)"):
        verdict.check()


def test_what_only_became_worse_says_that_first() -> None:
    worse = metric_comparison()
    verdict = Verdict("m-Q4_1", (_judge(2, "max", 1.5, 1.25, 1.75),), comparisons=(worse,))
    assert verdict.explain().splitlines()[0] == (
        "m-Q4_1: 1 of 1 metrics worse than the baseline; 0 of 1 thresholds not met"
    )


def test_the_metrics_of_the_interactive_profile_are_registered() -> None:
    assert set(EMITTED) <= set(METRICS)


def test_what_was_ended_early_fails_whatever_was_met() -> None:
    verdict = Verdict("m stress", (), ended_early="aborted after 2.0 min: the CPU was at 91 °C")
    with pytest.raises(ThresholdFailure, match="91 °C"):
        verdict.check()
    Verdict("m stress", ()).check()
