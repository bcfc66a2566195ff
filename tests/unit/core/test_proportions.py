"""Shares: agreement with the formulas and brute force, coverage counted exactly."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pytest_llmbench.core.proportions import mcnemar_p, wilson
from pytest_llmbench.core.statistics import Interval


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_wilsons_interval_are_where_the_score_test_turns(case: tuple[int, int]) -> None:
    successes, n = case
    interval = wilson(successes, n)
    assert 0 <= interval.low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= interval.high <= 1
    for end in (interval.low, interval.high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(successes / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(1.959964, rel=1e-4)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_failures_have_the_mirrored_interval(case: tuple[int, int]) -> None:
    one, other = wilson(*case), wilson(case[1] - case[0], case[1])
    assert (1 - other.high, 1 - other.low) == pytest.approx((one.low, one.high), abs=1e-12)


def test_twelve_of_fifteen_is_55_to_93_percent() -> None:
    interval = wilson(12, 15)
    assert (round(interval.low, 2), round(interval.high, 2)) == (0.55, 0.93)


@pytest.mark.parametrize("n", [13, 40, 120])
def test_wilson_covers_the_true_share_about_as_often_as_it_claims(n: int) -> None:
    """Counted, not simulated: over true shares from 10 to 90 %, 95 % on average and never below 89 %."""
    intervals = [wilson(k, n) for k in range(n + 1)]
    coverages = []
    for true in (percent / 100 for percent in range(10, 91)):
        weights = [math.comb(n, k) * true**k * (1 - true) ** (n - k) for k in range(n + 1)]
        covers = (w for w, i in zip(weights, intervals, strict=True) if i.low <= true <= i.high)
        coverages.append(sum(covers))
    assert sum(coverages) / len(coverages) == pytest.approx(0.95, abs=0.01)
    assert min(coverages) >= 0.89


def test_nothing_asked_leaves_all_open() -> None:
    assert wilson(0, 0) == Interval(0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (1, 0), (0, -1)])
def test_what_is_no_share_is_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {n} is no share"):
        wilson(successes, n)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_tossed_coin(first: int, second: int) -> None:
    tosses = first + second
    ways = sum(math.comb(tosses, k) for k in range(min(first, second) + 1))
    assert mcnemar_p(first, second) == pytest.approx(min(1.0, 2 * ways / 2**tosses))
    assert mcnemar_p(second, first) == mcnemar_p(first, second)


@pytest.mark.parametrize(("first", "second", "p"), [(0, 0, 1.0), (0, 5, 0.0625), (0, 6, 0.03125), (7, 7, 1.0)])
def test_mcnemar_in_known_cases(first: int, second: int, p: float) -> None:
    assert mcnemar_p(first, second) == pytest.approx(p)


def test_mcnemar_refuses_what_are_no_counts() -> None:
    with pytest.raises(ValueError, match="3 and -1 are no counts"):
        mcnemar_p(3, -1)


@given(st.integers(0, 700), st.integers(0, 700))
def test_mcnemar_is_the_exact_binomial_test(only_first: int, only_second: int) -> None:
    n = only_first + only_second
    expected = float(binomtest(only_first, n).pvalue) if n else 1.0
    assert mcnemar_p(only_first, only_second) == pytest.approx(expected, rel=1e-9)
