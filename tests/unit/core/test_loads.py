"""Loads as a level: coverage by simulation with and without a spread between loads, the test, odd input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from statistics import mean, median, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from pytest_llmbench.core.loads import between_load_spread_percent, loads_differ, over_loads
from pytest_llmbench.core.statistics import Interval, median_interval

groups_of_rates = st.lists(st.lists(st.floats(10, 100), min_size=1, max_size=8), min_size=1, max_size=4)


def loads_of(count: int, samples: int, *, between: float, runs: int, seed: int = 7) -> NDArray[np.float64]:
    """Runs of loads around 50 tokens/s, shape (runs, count, samples); 1 % within a load, ``between`` among them."""
    rng = np.random.default_rng(seed)
    return 50 * (1 + between * rng.normal(size=(runs, count, 1)) + 0.01 * rng.normal(size=(runs, count, samples)))


def coverage(loads: NDArray[np.float64]) -> float:
    intervals = [over_loads(groups)[1] for groups in loads.tolist()]
    return float(np.mean([interval is not None and interval.low <= 50 <= interval.high for interval in intervals]))


def test_one_load_is_the_median_of_its_samples() -> None:
    samples = [3.0, 1.0, 6.0, 2.0, 5.0, 4.0]
    assert over_loads([samples]) == (3.5, Interval(1, 6))
    assert over_loads([[], samples, []]) == (3.5, Interval(1, 6))
    assert over_loads([samples[:5]]) == (3.0, None)
    assert over_loads([[7.0]]) == (7.0, None)


def test_several_loads_are_the_median_of_their_medians_with_students_t() -> None:
    groups = [[50.0, 51.0, 52.0], [60.0, 61.0, 62.0, 63.0, 64.0], [55.0, 55.5, 56.0]]
    point, interval = over_loads(groups)
    medians = [51.0, 62.0, 55.5]
    half = stats.t(2).ppf(0.975) * stdev(medians) / math.sqrt(3)
    assert interval is not None
    assert point == 55.5
    assert (interval.low, interval.high) == pytest.approx((mean(medians) - half, mean(medians) + half))


def test_loads_that_agree_do_not_make_the_interval_narrower_than_all_samples_do() -> None:
    groups = [[49.0, 50.0, 51.0], [48.0, 50.0, 52.0], [47.0, 50.0, 53.0]]
    assert over_loads(groups) == (50.0, median_interval([x for load in groups for x in load]))


def test_two_loads_of_one_sample_have_an_interval() -> None:
    point, interval = over_loads([[50.0], [52.0]])
    assert interval is not None
    assert point == 51.0
    assert interval.high - interval.low == pytest.approx(2 * stats.t(1).ppf(0.975))


@given(groups_of_rates, st.sampled_from([0.5, 16.0]))
def test_order_and_unit_do_not_matter(groups: list[list[float]], factor: float) -> None:
    point, interval = over_loads(groups)
    assert point == pytest.approx(median(median(load) for load in groups) if len(groups) > 1 else median(groups[0]))
    other, other_interval = over_loads([[factor * x for x in reversed(load)] for load in reversed(groups)])
    assert other == pytest.approx(factor * point)
    assert (interval is None) == (other_interval is None)
    if interval is not None and other_interval is not None:
        assert interval.low <= point <= interval.high
        ends = (factor * interval.low, factor * interval.high)
        assert (other_interval.low, other_interval.high) == pytest.approx(ends, abs=1e-9)
    assert loads_differ([[-x for x in load] for load in groups]) == loads_differ(groups)
    spread = between_load_spread_percent(groups)
    scaled = between_load_spread_percent([[factor * x for x in load] for load in groups])
    assert scaled == (None if spread is None else pytest.approx(spread, abs=1e-9))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("between", [0.0, 0.04])
def test_the_interval_covers_the_truth_whether_loads_differ_or_not(count: int, between: float) -> None:
    runs = 300
    share = coverage(loads_of(count, 6, between=between, runs=runs))
    assert share >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


def test_one_load_knows_nothing_of_restarts() -> None:
    """Why there are ``loads``: 4 % between them, and one load's interval covers the truth in a quarter of runs."""
    assert coverage(loads_of(1, 6, between=0.04, runs=300)) < 0.4
    assert coverage(loads_of(1, 6, between=0.0, runs=300)) > 0.9


def test_taking_all_samples_for_independent_would_be_far_too_sure() -> None:
    pooled = loads_of(3, 10, between=0.04, runs=300).reshape(300, 30)
    intervals = [median_interval(run) for run in pooled.tolist()]
    assert np.mean([i is not None and i.low <= 50 <= i.high for i in intervals]) < 0.7


@pytest.mark.parametrize(("count", "samples"), [(2, 6), (3, 3), (3, 10)])
def test_loads_that_do_not_differ_are_rarely_called_so(count: int, samples: int) -> None:
    alarms = [loads_differ(groups) for groups in loads_of(count, samples, between=0, runs=150).tolist()]
    assert np.mean(alarms) <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / 150)


@pytest.mark.parametrize(("count", "samples", "often"), [(3, 3, 0.4), (3, 6, 0.9), (3, 10, 0.9)])
def test_loads_that_differ_are_found(count: int, samples: int, often: float) -> None:
    found = [loads_differ(groups) for groups in loads_of(count, samples, between=0.06, runs=60).tolist()]
    assert np.mean(found) >= often


def test_the_permutation_test_agrees_with_scipys_where_there_are_many_samples() -> None:
    for seed, shift in itertools.product(range(4), (0.0, 0.006, 0.03)):
        groups = loads_of(3, 60, between=shift, runs=1, seed=seed)[0].tolist()
        p = stats.kruskal(*groups).pvalue
        assert abs(math.log10(p / 0.01)) < 0.3 or loads_differ(groups) == (p < 0.01)
        tenfold = [10 * load for load in groups]
        assert loads_differ(tenfold) == (stats.kruskal(*tenfold).pvalue < 0.01)


@pytest.mark.parametrize(
    ("groups", "differ"),
    [
        ([], False),
        ([[1.0, 2.0, 3.0]], False),
        ([[1.0] * 8, []], False),
        ([[5.0] * 6, [5.0] * 6], False),
        ([[1.0], [100.0]], False),
        ([[1, 2, 3, 4], [11, 12, 13, 14]], False),  # 2 of 70 splits: too few to be sure
        ([[1, 2], [11, 12], [21, 22]], False),
        ([[1, 2, 3], [11, 12, 13], [21, 22, 23]], True),  # 6 of 1680
        ([[1, 2, 3, 4, 5], [11, 12, 13, 14, 15]], True),  # 2 of 252
        ([[5.0] * 6, [6.0] * 6], True),
        ([[1e150] * 6, [-1e150] * 6], True),
    ],
)
def test_what_can_be_told_of_few_samples(groups: list[list[float]], differ: bool) -> None:
    assert loads_differ(groups) is differ


def test_the_spread_is_the_variation_of_the_medians() -> None:
    assert between_load_spread_percent([[48, 49, 50], [50, 51, 52], [53]]) == pytest.approx(
        100 * stats.variation([49, 51, 53], ddof=1)
    )
    assert between_load_spread_percent([[-48, -49, -50], [-53]]) == pytest.approx(100 * stdev([49, 53]) / 51)
    assert between_load_spread_percent([[5, 5], [5]]) == 0


@pytest.mark.parametrize("groups", [[], [[]], [[1.0, 2.0]], [[1.0], []], [[0.0], [0.0]], [[-1.0], [1.0]]])
def test_a_spread_needs_two_loads_and_a_mean(groups: list[list[float]]) -> None:
    assert between_load_spread_percent(groups) is None


def test_a_planted_spread_is_found_again() -> None:
    spreads = [between_load_spread_percent(groups) for groups in loads_of(5, 6, between=0.04, runs=100).tolist()]
    assert 3 <= median(spread for spread in spreads if spread is not None) <= 5


@pytest.mark.parametrize("groups", [[], [[]], [[], []]])
def test_no_samples_at_all_are_refused(groups: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="the median of no samples does not exist"):
        over_loads(groups)


@pytest.mark.parametrize("judge", [over_loads, loads_differ, between_load_spread_percent])
@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_what_is_no_number_is_refused(judge: Callable[..., object], wrong: float) -> None:
    with pytest.raises(ValueError, match="statistics need finite numbers"):
        judge([[1.0, 2.0], [3.0, wrong]])
