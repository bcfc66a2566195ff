"""Slopes: agreement with brute force and scipy, coverage by simulation, wild points, odd input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from random import Random
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pytest_llmbench.core.trends import Slope, mann_kendall_p, theil_sen

values = st.lists(st.floats(-1e6, 1e6).map(lambda value: round(value, 3)), min_size=4, max_size=25)


def slope_of(x: Sequence[float], y: Sequence[float]) -> Slope:
    slope = theil_sen(x, y)
    assert slope is not None
    return slope


def test_a_straight_line_has_its_slope_and_no_doubt() -> None:
    slope = slope_of([0, 1, 2, 3, 4, 5], [10, 8, 6, 4, 2, 0])
    assert (slope.per_unit, slope.low, slope.high) == (-2, -2, -2)
    assert slope.p_value == pytest.approx(2 / math.factorial(6))


@given(values)
def test_the_slope_is_the_median_over_all_pairs(y: list[float]) -> None:
    x = [i // 2 for i in range(len(y))]  # every position twice: such pairs have no slope
    pairs = itertools.combinations(zip(x, y, strict=True), 2)
    expected = median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if a[0] != b[0])
    slope = slope_of(x, y)
    assert slope.per_unit == pytest.approx(expected, abs=1e-6)
    assert slope.low <= slope.per_unit <= slope.high


@pytest.mark.parametrize("n", [5, 12, 30])
def test_interval_and_p_value_are_those_of_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.uniform(0, 10, n), rng.normal(size=n)
    slope, found = slope_of(x.tolist(), y.tolist()), stats.theilslopes(y, x, 0.95)
    assert (slope.per_unit, slope.low, slope.high) == pytest.approx((found.slope, found.low_slope, found.high_slope))
    assert slope.p_value == pytest.approx(stats.kendalltau(x, y).pvalue)


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(y: list[float], random: Random) -> None:
    points = [(float(i), value) for i, value in enumerate(y)]
    before = slope_of([p[0] for p in points], [p[1] for p in points])
    random.shuffle(points)
    after = slope_of([p[0] for p in points], [p[1] for p in points])
    assert after.per_unit == pytest.approx(before.per_unit, abs=1e-9)
    assert (after.low, after.high) == pytest.approx((before.low, before.high), abs=1e-9)


@given(values)
def test_upside_down_the_slope_is_the_opposite(y: list[float]) -> None:
    x = list(range(len(y)))
    one, other = slope_of(x, y), slope_of(x, [-value for value in y])
    assert (other.per_unit, other.low, other.high) == pytest.approx((-one.per_unit, -one.high, -one.low), abs=1e-9)
    assert other.p_value == pytest.approx(one.p_value)


@given(values, st.sampled_from([0.125, 4.0, 1024.0]))
def test_the_slope_follows_the_units(y: list[float], factor: float) -> None:
    x = list(range(len(y)))
    one, other = slope_of(x, y), slope_of([factor * at for at in x], y)
    assert other.per_unit * factor == pytest.approx(one.per_unit)
    assert slope_of(x, [factor * value for value in y]).per_unit == pytest.approx(factor * one.per_unit)


def test_a_quarter_of_wild_points_does_not_move_the_slope() -> None:
    rng = np.random.default_rng(1)
    y = 3.0 * np.arange(20) + rng.normal(0, 0.1, 20)
    y[[2, 7, 11, 12, 18]] += [500, -900, 4e4, 700, -3e3]
    assert slope_of(range(20), y.tolist()).per_unit == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("n", "claimed"), [(4, 11 / 12), (5, 0.95), (8, 0.95), (20, 0.95)], ids=["4: all slopes", "5", "8", "20"]
)
def test_the_interval_covers_the_true_slope_as_often_as_it_claims(n: int, claimed: float) -> None:
    runs, rng, x = 250, np.random.default_rng(n), list(range(n))
    hits = 0
    for noise in rng.standard_t(3, (runs, n)).tolist():
        slope = slope_of(x, [0.3 * at + e for at, e in zip(x, noise, strict=True)])
        hits += slope.low <= 0.3 <= slope.high
    assert hits / runs >= claimed - 3 * math.sqrt(claimed * (1 - claimed) / runs)


def test_samples_without_a_slope_are_rarely_called_one_and_a_planted_one_is() -> None:
    rng, x = np.random.default_rng(2), list(range(30))
    clean = [slope_of(x, y).p_value for y in rng.normal(50, 0.5, (200, 30)).tolist()]
    slowing = [slope_of(x, (y - 0.5 * np.arange(30)).tolist()) for y in rng.normal(50, 0.5, (50, 30))]
    assert np.mean(np.array(clean) < 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    assert all(slope.p_value < 1e-6 and slope.high < 0 for slope in slowing)


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([1, 2, 3], [3, 2, 1]), ([2, 2, 2, 2, 2], [1, 2, 3, 4, 5])], ids=["none", "three", "one x"]
)
def test_what_has_no_slope_gives_none(x: list[float], y: list[float]) -> None:
    assert theil_sen(x, y) is None


def test_a_constant_has_slope_0_without_significance() -> None:
    assert theil_sen([1, 2, 3, 4], [7, 7, 7, 7]) == Slope(0, 0, 0, p_value=1.0)


def test_many_points_are_thinned_and_keep_their_slope() -> None:
    rng = np.random.default_rng(3)
    x = rng.permutation(20_000).astype(float)
    slope = slope_of(x.tolist(), (0.01 * x + rng.normal(size=20_000)).tolist())
    assert slope.low <= 0.01 <= slope.high
    assert slope.high - slope.low < 1e-5


def test_huge_values_have_a_slope() -> None:
    slope = slope_of([1, 2, 3, 4], [1e150, 5e149, 0, -5e149])
    assert slope.per_unit == pytest.approx(-5e149)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 3], [1, 2, 3, 4], "3 positions and 4 values make no points"),
        ([1, 2, 3, 4], [1, 2, 3, math.inf], "a sample is inf; statistics need finite numbers"),
        ([1, 2, math.nan, 4], [1, 2, 3, 4], "a sample is nan"),
        ([0, 1e-300, 2e-300, 1], [0, 1e150, -1e150, 1], "too close to each other for a slope"),
    ],
)
def test_what_are_no_points_is_refused(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        theil_sen(x, y)


@pytest.mark.parametrize(
    ("samples", "p"),
    [
        ([], 1.0),
        ([5], 1.0),
        ([5, 5, 5], 1.0),
        ([1, 2, 3, 4], 1 / 12),
        ([4, 3, 2, 1], 1 / 12),
        ([1, 2, 3, 4, 5], 1 / 60),
    ],
)
def test_the_trend_test_counts_orders(samples: list[float], p: float) -> None:
    assert mann_kendall_p(samples) == pytest.approx(p)


@given(st.lists(st.integers(-3, 3), max_size=20))
def test_the_trend_test_sees_order_alone(samples: list[int]) -> None:
    p = mann_kendall_p(samples)
    assert 0 <= p <= 1
    assert mann_kendall_p([math.exp(x) for x in samples]) == pytest.approx(p)
    assert mann_kendall_p(samples[::-1]) == pytest.approx(p)


def test_the_trend_test_refuses_infinities() -> None:
    with pytest.raises(ValueError, match="a sample is -inf"):
        mann_kendall_p([1.0, -math.inf])
