"""Statistics: agreement with scipy or brute force, and coverage by simulation with fixed seeds."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from pytest_llmbench.core.statistics import (
    Interval,
    StoppingRule,
    as_array,
    has_trend,
    median,
    median_interval,
    quantile_interval,
    variation_percent,
    window_rates,
)

rates = st.floats(1e-3, 1e6)


@given(st.lists(rates, min_size=1, max_size=40))
def test_the_median_has_as_many_samples_below_as_above(samples: list[float]) -> None:
    ordered = sorted(samples)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    assert median(samples) == pytest.approx(middle)


def test_no_samples_have_no_median() -> None:
    with pytest.raises(ValueError, match="the median of no samples does not exist"):
        median([])


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan, 1e151, -1e300])
def test_what_is_no_number_or_too_large_is_refused(wrong: float) -> None:
    samples = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, wrong]
    for judge in (as_array, median, median_interval, has_trend, lambda x: variation_percent([x])):
        with pytest.raises(ValueError, match=rf"a sample is {re.escape(str(wrong))}; statistics need finite numbers"):
            judge(samples)


def test_huge_values_have_a_median_an_interval_and_a_variation() -> None:
    samples = [1e150, -1e150, 1e150, 1e150, 1e150, 1e150]
    assert median(samples) == 1e150
    assert median_interval(samples) == Interval(-1e150, 1e150)
    assert variation_percent([samples])[0] == pytest.approx(100 * stats.variation([1, -1, 1, 1, 1, 1], ddof=1))
    assert as_array([]).shape == (0,)


def test_the_interval_of_a_quantile_is_for_samples_in_any_order() -> None:
    samples = np.random.default_rng(1).permutation(100).tolist()
    interval = quantile_interval(samples, 0.9)
    assert interval == quantile_interval(range(100), 0.9)
    assert interval is not None
    assert interval.low < 89 < interval.high
    mirrored = quantile_interval([-x for x in samples], 0.1)
    assert mirrored == Interval(-interval.high, -interval.low)


def _ranks_by_brute_force(n: int, confidence: float) -> tuple[int, int] | None:
    """Narrowest symmetric pair of ranks whose coverage, counted with exact integers, reaches ``confidence``."""
    ways = [math.comb(n, k) for k in range(n + 1)]
    best = None
    for k in range(1, n // 2 + 1):
        if sum(ways[k : n - k + 1]) >= confidence * 2**n:
            best = (k, n + 1 - k)
    return best


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_the_ranks_of_the_interval_are_those_that_counting_gives(confidence: float) -> None:
    for n in range(1, 80):
        interval = median_interval(range(1, n + 1), confidence)
        found = None if interval is None else (int(interval.low), int(interval.high))
        assert found == _ranks_by_brute_force(n, confidence), n


@pytest.mark.parametrize("n", [6, 9, 10, 20, 100, 1000])
def test_the_interval_is_the_one_of_scipys_sign_test(n: int) -> None:
    interval = median_interval(range(1, n + 1))
    found = stats.quantile_test(range(1, n + 1), p=0.5).confidence_interval(0.95)
    assert interval == Interval(found.low, found.high)


def test_five_samples_have_no_interval_and_six_have_their_range() -> None:
    assert median_interval([]) is None
    assert median_interval([1, 2, 3, 4, 5]) is None
    assert median_interval([3, 1, 6, 2, 5, 4]) == Interval(1, 6)


@given(st.lists(rates, min_size=6, max_size=60))
def test_the_interval_holds_the_median_and_ignores_order(samples: list[float]) -> None:
    interval = median_interval(samples)
    assert interval is not None
    assert interval.low <= median(samples) * (1 + 1e-12)
    assert interval.high >= median(samples) * (1 - 1e-12)
    assert median_interval(sorted(samples, reverse=True)) == interval


Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]


@pytest.mark.parametrize("n", [6, 10, 20])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, shape: rng.normal(50, 5, shape), 50.0),
        (lambda rng, shape: rng.lognormal(0, 1, shape), 1.0),
        (lambda rng, shape: rng.exponential(1, shape), math.log(2)),
    ],
    ids=["normal", "lognormal", "exponential"],
)
def test_the_interval_covers_the_true_median_as_often_as_it_claims(n: int, draw: Draw, truth: float) -> None:
    runs = 3000
    hits = 0
    for samples in draw(np.random.default_rng(n), (runs, n)).tolist():
        interval = median_interval(samples)
        assert interval is not None
        hits += interval.low <= truth <= interval.high
    assert hits / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


@pytest.mark.parametrize(
    ("samples", "trend"),
    [
        ([1, 2, 3, 4, 5, 6], True),
        ([60, 50, 44, 30, 22, 10], True),
        ([1, 6, 2, 5, 3, 4], False),
        ([5, 5, 5, 5, 5, 5], False),
        ([1, 2, 3], False),  # too few to tell
        ([], False),
    ],
)
def test_a_steady_rise_or_fall_is_a_trend(samples: list[float], trend: bool) -> None:
    assert has_trend(samples) is trend


def test_the_trend_test_is_exact_for_six_samples() -> None:
    """Of all 720 orders of six samples, those called a trend are those with |tau| beyond the exact 5 % bound."""
    called = extreme = 0
    for order in itertools.permutations(range(6)):
        score = sum((b > a) - (b < a) for a, b in itertools.combinations(order, 2))
        called += has_trend(order)
        extreme += abs(score) >= 13  # P(|S| >= 13) = 12/720 = 1.7 %, P(|S| >= 11) = 40/720 = 5.6 %
    assert called == extreme == 12


@pytest.mark.parametrize("n", [10, 20])
def test_noise_is_rarely_called_a_trend(n: int) -> None:
    alarms = [has_trend(samples) for samples in np.random.default_rng(n).normal(size=(400, n)).tolist()]
    assert np.mean(alarms) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_a_steady_stream_has_one_rate_in_every_window() -> None:
    times = [0.1 * i for i in range(51)]
    assert window_rates(times, 1.0, 25) == pytest.approx([10.0, 10.0])
    assert window_rates(times, 2.0, 25) == pytest.approx([20.0, 20.0])  # two tokens in each event


def test_a_stall_shows_in_its_window_only() -> None:
    times = [0.0, 1.0, 2.0, 3.0, 7.0, 8.0, 9.0]
    assert window_rates(times, 1.0, 2) == pytest.approx([1.0, 0.4, 1.0])


@pytest.mark.parametrize(("events", "windows"), [(0, 0), (1, 0), (25, 0), (26, 1), (50, 1), (51, 2), (500, 19)])
def test_a_remainder_shorter_than_a_window_is_left_out(events: int, windows: int) -> None:
    assert len(window_rates([float(i) for i in range(events)], 1.0, 25)) == windows


def test_events_that_arrive_at_the_same_instant_have_no_rate() -> None:
    assert window_rates([1.0, 1.0, 1.0, 2.0, 3.0], 1.0, 2) == pytest.approx([1.0])


def test_the_variation_is_that_of_scipy_over_all_windows() -> None:
    groups = [[10.0, 12.0], [11.0, 9.0, 13.0], [10.5]]
    value, interval = variation_percent(groups)
    assert value == pytest.approx(100 * stats.variation(list(itertools.chain(*groups)), ddof=1))
    assert interval is not None
    assert interval.low < value < interval.high


def test_the_interval_of_the_variation_is_the_jackknife_of_scratch() -> None:
    groups = [[10.0, 12.0, 11.0], [11.0, 9.0, 13.0], [10.5, 14.0], [8.0, 12.0]]

    def log_cv(parts: Sequence[Sequence[float]]) -> float:
        return math.log(100 * stats.variation([x for part in parts for x in part], ddof=1))

    left_out = [log_cv([g for g in groups if g is not omitted]) for omitted in groups]
    error = math.sqrt(3 / 4 * sum((x - sum(left_out) / 4) ** 2 for x in left_out))
    half = stats.t(3).ppf(0.975) * error
    _, interval = variation_percent(groups)
    assert interval is not None
    corrected = 4 * log_cv(groups) - 3 * sum(left_out) / 4
    assert interval.low == pytest.approx(math.exp(corrected - half))
    assert interval.high == pytest.approx(math.exp(corrected + half))


@given(st.lists(st.lists(st.floats(1, 100), min_size=1, max_size=8), min_size=1, max_size=6), st.floats(0.1, 10))
def test_the_variation_does_not_depend_on_the_unit(groups: list[list[float]], factor: float) -> None:
    if sum(map(len, groups)) < 2:
        groups = [*groups, [1.0]]
    one, interval = variation_percent(groups)
    other, _ = variation_percent([[factor * x for x in group] for group in groups])
    assert other == pytest.approx(one, abs=1e-6)
    assert interval is None or interval.low <= one <= interval.high


@pytest.mark.parametrize(
    "groups",
    [
        [[10.0, 11.0], [12.0, 13.0]],  # two requests: how they differ can not be estimated
        [[10.0, 11.0], [12.0, 13.0], []],  # an answer too short for a window is no request here
        [[10.0, 10.0], [10.0], [10.0]],  # nothing varies
        [[10.0, 10.0], [10.0], [11.0]],  # without the last, nothing varies
        [[10.0, 11.0], [], [12.0], []],
    ],
)
def test_a_variation_without_enough_requests_has_no_interval(groups: list[list[float]]) -> None:
    value, interval = variation_percent(groups)
    assert value >= 0
    assert interval is None


@pytest.mark.parametrize("groups", [[], [[]], [[1.0]], [[], [1.0], []]])
def test_fewer_than_two_windows_have_no_variation(groups: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="a coefficient of variation needs at least two values"):
        variation_percent(groups)


def _variation_coverage(between: float, within: float, *, by_request: bool = True, runs: int = 400) -> float:
    """How often the interval holds the truth: 6 requests of 19 windows around 50 tokens/s, both spreads normal."""
    rng = np.random.default_rng(6)
    truth = 100 * math.hypot(between, within) / 50
    hits = 0
    for _ in range(runs):
        windows = 50 + rng.normal(0, between, (6, 1)) + rng.normal(0, within, (6, 19))
        _, interval = variation_percent(windows.tolist() if by_request else windows.reshape(-1, 1).tolist())
        assert interval is not None
        hits += interval.low <= truth <= interval.high
    return hits / runs


def test_the_interval_of_the_variation_covers_the_truth_when_windows_are_independent() -> None:
    assert _variation_coverage(between=0.0, within=2.5) >= 0.95 - 0.033  # three standard errors of 400 runs


def test_the_interval_of_the_variation_falls_somewhat_short_when_requests_differ() -> None:
    """Six requests say little about how requests differ: some 86 % instead of 95 %, nearly all misses being too low."""
    assert _variation_coverage(between=2.5, within=2.5) >= 0.81


def test_taking_windows_for_independent_would_be_far_too_sure() -> None:
    by_window = _variation_coverage(between=2.5, within=2.5, by_request=False, runs=60)
    assert by_window < 0.6 < _variation_coverage(between=2.5, within=2.5, runs=60)


STEADY = [50.0, 50.2, 49.9, 50.1, 49.8, 50.05]
NOISY = [40.0, 60.0, 45.0, 55.0, 42.0, 58.0]


def _rule(**limits: Sequence[float]) -> StoppingRule:
    return StoppingRule(6, 8, target_half_width_percent=5, max_seconds=100, limits=limits)


def test_sampling_goes_on_until_the_least_number_is_reached_whatever_it_costs() -> None:
    assert _rule().stop_reason(STEADY[:5], {}, 1e9) is None
    assert _rule().stop_reason([], {}, 1e9) is None


def test_a_narrow_interval_is_precise() -> None:
    assert _rule().stop_reason(STEADY, {"rate": median_interval(STEADY)}, 0) == "precise"


def test_a_half_width_of_exactly_the_target_is_precise() -> None:
    samples = [95.0, 100.0, 105.0, 99.0, 101.0, 100.0]
    assert _rule().stop_reason(samples, {}, 0) == "precise"
    assert _rule().stop_reason([94.9, *samples[1:]], {}, 0) is None


def test_a_wide_interval_needs_another_sample_until_the_most_are_taken() -> None:
    assert _rule().stop_reason(NOISY, {}, 0) is None
    assert _rule().stop_reason([*NOISY, 41.0], {}, 99.9) is None
    assert _rule().stop_reason([*NOISY, 41.0, 59.0], {}, 0) == "max_samples"


def test_the_time_budget_ends_sampling() -> None:
    assert _rule().stop_reason(NOISY, {}, 100) == "time_budget"


def test_a_reason_that_is_better_than_the_budget_is_the_one_named() -> None:
    assert _rule().stop_reason(STEADY, {}, 1000) == "precise"
    assert _rule().stop_reason([*NOISY, 41.0, 59.0], {}, 1000) == "max_samples"


def test_a_trend_is_not_precise_however_narrow() -> None:
    assert _rule().stop_reason([50.0, 49.9, 49.8, 49.7, 49.6, 49.5], {}, 0) is None


def test_sampling_goes_on_while_an_interval_straddles_a_limit() -> None:
    assert _rule(rate=[50.0]).stop_reason(STEADY, {"rate": median_interval(STEADY)}, 0) is None
    assert _rule(rate=[2.0, 50.0]).stop_reason(STEADY, {"rate": median_interval(STEADY)}, 0) is None
    assert _rule(rate=[2.0, 60.0]).stop_reason(STEADY, {"rate": median_interval(STEADY)}, 0) == "precise"
    assert _rule(other=[50.0]).stop_reason(STEADY, {"rate": median_interval(STEADY)}, 0) == "precise"
    assert _rule(other=[1.0]).stop_reason(STEADY, {"rate": median_interval(STEADY), "other": None}, 0) == "precise"


def test_what_looks_like_a_trend_already_needs_another_sample() -> None:
    rising = [50.0, 49.95, 50.1, 50.05, 50.2, 50.15]  # 12 pairs rise and 3 fall: p = 0.14
    assert not has_trend(rising)
    assert _rule().stop_reason(rising, {}, 0) is None
    assert _rule().stop_reason([*rising, 49.9], {}, 0) == "precise"


@pytest.mark.parametrize(("limit", "reason"), [(50.65, "precise"), (50.55, None), (49.45, None), (49.35, "precise")])
def test_a_limit_next_to_an_interval_is_not_clear_of_it(limit: float, reason: str | None) -> None:
    """An interval of width 1 reaches a tenth further on either side."""
    assert _rule(rate=[limit]).stop_reason(STEADY, {"rate": Interval(49.5, 50.5)}, 0) == reason


def test_a_limit_beside_a_value_that_is_exact_is_clear_of_it() -> None:
    assert _rule(errors=[1.0]).stop_reason(STEADY, {"errors": Interval(1.0, 1.0)}, 0) == "precise"


def test_fewer_samples_than_an_interval_needs_are_never_precise() -> None:
    rule = StoppingRule(3, 8, target_half_width_percent=5, max_seconds=100, limits={})
    assert rule.stop_reason([50.0, 50.0, 50.0], {}, 0) is None


def _sampled(run: Sequence[float], limit: float | None = None) -> tuple[list[float], str]:
    """As many of 20 samples as the founding rule takes, and why it stopped."""
    rule = StoppingRule(6, 20, 5, max_seconds=math.inf, limits={} if limit is None else {"rate": [limit]})
    for n in range(6, 21):
        judged = {} if limit is None else {"rate": median_interval(run[:n])}
        reason = rule.stop_reason(run[:n], judged, 0)
        if reason is not None:
            return list(run[:n]), reason
    raise AssertionError


def _noise(percent: float, runs: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, percent, (runs, 20))


@pytest.mark.parametrize(
    ("noise_percent", "limit"),
    [(1.0, None), (4.0, None), (8.0, None), (15.0, None), (2.0, 100.0), (2.0, 99.0), (2.0, 102.0)],
)
def test_stopping_early_does_not_ruin_the_interval(noise_percent: float, limit: float | None) -> None:
    """By simulation of 20 000 runs it covers 94 % and more, 93 % where the true median is the limit itself."""
    runs, hits = 200, 0
    for run in (100 + _noise(noise_percent, runs, seed=8)).tolist():
        interval = median_interval(_sampled(run, limit)[0])
        assert interval is not None
        hits += interval.low <= 100 <= interval.high
    assert hits / runs >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / runs)


@pytest.mark.parametrize("noise_percent", [1.0, 6.0, 15.0])
def test_independent_samples_are_rarely_called_drifting(noise_percent: float) -> None:
    runs = 200
    alarms = [has_trend(_sampled(run)[0]) for run in (100 + _noise(noise_percent, runs, seed=9)).tolist()]
    assert np.mean(alarms) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize("percent_per_sample", [1.0, -1.0])
def test_a_planted_trend_is_found(percent_per_sample: float) -> None:
    runs = 100
    drifting = 100 + _noise(1.0, runs, seed=10) + percent_per_sample * np.arange(20)
    found = np.mean([has_trend(_sampled(run)[0]) for run in drifting.tolist()])
    assert found >= 0.94 - 3 * math.sqrt(0.94 * 0.06 / runs)


def test_steady_samples_are_rarely_sampled_for_longer() -> None:
    taken = [len(_sampled(run)[0]) for run in (100 + _noise(1.0, 200, seed=11)).tolist()]
    assert np.mean(taken) < 7
    assert taken.count(6) > 150
