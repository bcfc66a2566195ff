"""Comparisons: agreement with scipy and brute force, coverage by simulation, invariances, odd input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pytest_llmbench.core.comparison import cliffs_delta, hodges_lehmann_ratio, holm, mann_whitney_p
from pytest_llmbench.core.statistics import Interval

group = st.lists(st.integers(1, 12).map(float), min_size=1, max_size=6)
comparisons = pytest.mark.parametrize("compare", [mann_whitney_p, hodges_lehmann_ratio, cliffs_delta])


def u_of(a: Sequence[float], b: Sequence[float]) -> float:
    return sum((x > y) + (x == y) / 2 for x in a for y in b)


@given(group, group)
def test_the_mann_whitney_test_is_exact_with_and_without_ties(a: list[float], b: list[float]) -> None:
    """Every split of all samples into groups of these sizes, counted."""
    pooled, n = [*a, *b], len(a)
    splits = [set(split) for split in itertools.combinations(range(len(pooled)), n)]
    us = [u_of([pooled[i] for i in s], [x for i, x in enumerate(pooled) if i not in s]) for s in splits]
    observed = u_of(a, b)
    one_tail = min(sum(u >= observed for u in us), sum(u <= observed for u in us)) / len(us)
    assert mann_whitney_p(a, b) == pytest.approx(min(1.0, 2 * one_tail))


@pytest.mark.parametrize(
    ("n", "m", "method"), [(10, 12, "exact"), (20, 20, "exact"), (21, 20, "asymptotic"), (80, 70, "asymptotic")]
)
def test_the_mann_whitney_test_is_scipys(n: int, m: int, method: str) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.3, 1, n).tolist(), rng.normal(0, 1, m).tolist()
    assert mann_whitney_p(a, b) == pytest.approx(stats.mannwhitneyu(a, b, method=method).pvalue)
    rounded = [round(x, 1) for x in a], [round(x, 1) for x in b]
    assert mann_whitney_p(*rounded) == pytest.approx(stats.mannwhitneyu(*rounded, method="asymptotic").pvalue)


def test_one_against_many_with_ties_is_exact_too() -> None:
    assert mann_whitney_p([5.0], [1.0, 1.0, *range(6, 2004)]) == pytest.approx(2 * 3 / 2001)
    assert mann_whitney_p([1.0, 1.0, *range(6, 2004)], [5.0]) == pytest.approx(2 * 3 / 2001)


@given(group, group)
def test_the_mann_whitney_test_sees_order_alone(a: list[float], b: list[float]) -> None:
    p = mann_whitney_p(a, b)
    assert 0 < p <= 1
    assert mann_whitney_p(b[::-1], a) == pytest.approx(p)
    assert mann_whitney_p([-math.exp(x) for x in a], [-math.exp(x) for x in b]) == pytest.approx(p)


def test_six_against_six_can_not_give_less_than_two_in_a_thousand() -> None:
    assert mann_whitney_p(range(6), range(10, 16)) == pytest.approx(2 / math.comb(12, 6))
    assert mann_whitney_p([5.0] * 6, [5.0] * 9) == 1.0
    assert mann_whitney_p([5.0] * 3, [6.0] * 3) == pytest.approx(2 / 20)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (10, 10), (60, 60)])
def test_equal_servers_are_rarely_called_different(n: int, m: int) -> None:
    runs = np.random.default_rng(n).exponential(1, (400, n + m)).tolist()
    alarms = [mann_whitney_p(run[:n], run[n:]) < 0.05 for run in runs]
    assert np.mean(alarms) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@given(group, group)
def test_the_ratio_is_the_median_of_all_ratios(new: list[float], old: list[float]) -> None:
    ratio, interval = hodges_lehmann_ratio(new, old)
    assert math.log(ratio) == pytest.approx(median(math.log(x / y) for x in new for y in old), abs=1e-9)
    assert interval is None or interval.low <= ratio <= interval.high


@given(st.lists(st.floats(0.01, 100), min_size=4, max_size=9), st.lists(st.floats(0.01, 100), min_size=4, max_size=9))
def test_the_ratio_the_other_way_round_is_its_inverse(new: list[float], old: list[float]) -> None:
    ratio, interval = hodges_lehmann_ratio(new, old)
    inverse, inverse_interval = hodges_lehmann_ratio(old[::-1], new)
    assert inverse == pytest.approx(1 / ratio)
    assert interval is not None
    assert inverse_interval is not None
    assert (inverse_interval.low, inverse_interval.high) == pytest.approx((1 / interval.high, 1 / interval.low))
    doubled, _ = hodges_lehmann_ratio([2 * x for x in new], old)
    assert doubled == pytest.approx(2 * ratio)


@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 5), (6, 6), (10, 7), (20, 20)])
def test_the_interval_holds_the_ratios_that_the_exact_test_does_not_reject(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    new, old = rng.lognormal(0.3, 0.5, n), rng.lognormal(0, 0.5, m)
    _, interval = hodges_lehmann_ratio(new.tolist(), old.tolist())
    assert interval is not None
    for ratio, kept in (
        (interval.low * 0.999999, False),
        (interval.low * 1.000001, True),
        (interval.high * 0.999999, True),
        (interval.high * 1.000001, False),
    ):
        assert (stats.mannwhitneyu(new / ratio, old, method="exact").pvalue > 0.05) == kept


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 3), (1, 30), (2, 7), (3, 4)])
def test_groups_too_small_for_an_interval_have_a_ratio_alone(n: int, m: int) -> None:
    ratio, interval = hodges_lehmann_ratio([6.0] * n, [3.0] * m)
    assert ratio == pytest.approx(2)
    assert interval is None


@pytest.mark.parametrize(("n", "m"), [(4, 4), (6, 6), (10, 20), (60, 50)])
def test_the_interval_covers_the_true_ratio_as_often_as_it_claims(n: int, m: int) -> None:
    runs, rng = 300, np.random.default_rng(n)
    new, old = 1.1 * rng.lognormal(0, 0.1, (runs, n)), rng.lognormal(0, 0.1, (runs, m))
    hits = 0
    for one, other in zip(new.tolist(), old.tolist(), strict=True):
        _, interval = hodges_lehmann_ratio(one, other)
        assert interval is not None
        hits += interval.low <= 1.1 <= interval.high
    assert hits / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


def test_large_groups_keep_their_ratio_and_a_narrow_interval() -> None:
    rng = np.random.default_rng(9)
    new, old = 1.02 * rng.lognormal(0, 0.1, 5000), rng.lognormal(0, 0.1, 3000)
    ratio, interval = hodges_lehmann_ratio(new.tolist(), old.tolist())
    assert interval is not None
    assert interval.low <= 1.02 <= interval.high
    theory = 2 * 1.96 * 0.1 * math.sqrt(1 / 5000 + 1 / 3000) * math.sqrt(math.pi / 3)  # of normal logarithms
    assert math.log(interval.high / interval.low) == pytest.approx(theory, rel=0.1)
    assert interval.low < ratio < interval.high


def test_ties_and_huge_values_have_a_ratio() -> None:
    assert hodges_lehmann_ratio([2.0] * 6, [2.0] * 6) == (1.0, Interval(1.0, 1.0))
    ratio, interval = hodges_lehmann_ratio([1e150] * 6, [1e-150] * 6)
    assert ratio == pytest.approx(1e300)
    assert interval is not None
    assert interval.high == pytest.approx(1e300)


@given(group, group)
def test_cliffs_delta_counts_pairs(new: list[float], old: list[float]) -> None:
    expected = (u_of(new, old) - u_of(old, new)) / (len(new) * len(old))
    assert cliffs_delta(new, old) == pytest.approx(expected)
    assert cliffs_delta(old, new) == -cliffs_delta(new, old)
    u = stats.mannwhitneyu(new, old, method="asymptotic").statistic if len({*new, *old}) > 1 else u_of(new, old)
    assert cliffs_delta(new, old) == pytest.approx(2 * u / (len(new) * len(old)) - 1)


def test_cliffs_delta_is_1_where_every_new_sample_is_larger() -> None:
    assert cliffs_delta([4, 5], [1, 2, 3]) == 1
    assert cliffs_delta([1, 2], [3]) == -1
    assert cliffs_delta([7], [7]) == 0


def test_holm_in_a_known_case() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_rejects_what_stepping_down_does(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    ordered = sorted(p_values)
    for level in (0.01, 0.05, 0.3):
        kept = (rank for rank, p in enumerate(ordered) if (len(ordered) - rank) * p > level)
        assert sum(p <= level for p in adjusted) == next(kept, len(ordered))
    assert all(p <= a <= min(1, len(p_values) * p) for p, a in zip(p_values, adjusted, strict=True))
    assert holm(p_values[::-1]) == adjusted[::-1]


def test_holm_errs_in_one_family_of_twenty() -> None:
    families = np.random.default_rng(4).uniform(size=(2000, 20)).tolist()
    alarms = np.mean([min(holm(family)) < 0.05 for family in families])
    assert alarms == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 2000))


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_are_no_p_values(wrong: float) -> None:
    with pytest.raises(ValueError, match="is no p-value"):
        holm([0.5, wrong])


@comparisons
def test_an_empty_side_is_refused(compare: Callable[..., object]) -> None:
    empty: list[float] = []
    for sides in ((empty, [1.0]), ([1.0], empty), (empty, empty)):
        with pytest.raises(ValueError, match="a comparison needs samples on both sides"):
            compare(*sides)


@comparisons
@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_is_refused(compare: Callable[..., object], wrong: float) -> None:
    with pytest.raises(ValueError, match="statistics need finite numbers"):
        compare([1.0, wrong], [1.0])
    with pytest.raises(ValueError, match="statistics need finite numbers"):
        compare([1.0], [wrong, 1.0])


@pytest.mark.parametrize("wrong", [0.0, -1.0, 5e-324])
def test_ratios_of_what_is_not_positive_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="a ratio needs positive samples"):
        hodges_lehmann_ratio([1.0, 2.0], [1.0, wrong])
