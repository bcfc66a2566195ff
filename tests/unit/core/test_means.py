"""Means of few samples: agreement with scipy, coverage by simulation, odd input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pytest_llmbench.core.means import log_mean_interval, mean_interval
from pytest_llmbench.core.statistics import Interval

few = st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=12)


@pytest.mark.parametrize("n", [2, 3, 10, 50])
def test_the_interval_is_the_one_of_scipys_t_test(n: int) -> None:
    samples = np.random.default_rng(n).normal(7, 2, n).tolist()
    found = stats.ttest_1samp(samples, 0).confidence_interval(0.95)
    interval = mean_interval(samples)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((found.low, found.high))


@given(few)
def test_the_geometric_mean_is_scipys_and_lies_within(samples: list[float]) -> None:
    mean, interval = log_mean_interval(samples)
    assert mean == pytest.approx(stats.gmean(samples))
    assert interval is None or interval.low <= mean * (1 + 1e-9) <= interval.high * (1 + 2e-9)


@given(few, st.sampled_from([0.25, 8.0]))
def test_intervals_follow_unit_and_order(samples: list[float], factor: float) -> None:
    one, other = mean_interval(samples), mean_interval([factor * x for x in reversed(samples)])
    assert one is not None
    assert other is not None
    assert (other.low, other.high) == pytest.approx((factor * one.low, factor * one.high), abs=1e-6)
    mean, log_interval = log_mean_interval(samples)
    inverse, inverse_interval = log_mean_interval([1 / x for x in samples])
    assert inverse == pytest.approx(1 / mean)
    if log_interval is not None and inverse_interval is not None and log_interval.low > 1e-100:
        assert inverse_interval.high == pytest.approx(1 / log_interval.low)


def coverage(n: int, *, logs: bool) -> float:
    """How often the interval holds the truth: 50, the mean of normal samples or the geometric one of lognormal ones."""
    hits, runs = 0, 2000
    for noise in np.random.default_rng(n).normal(0, 0.2, (runs, n)):
        interval = log_mean_interval((50 * np.exp(noise)).tolist())[1] if logs else mean_interval((50 + noise).tolist())
        assert interval is not None
        hits += interval.low <= 50 <= interval.high
    return hits / runs


@pytest.mark.parametrize("logs", [False, True], ids=["mean", "geometric"])
@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_interval_covers_the_true_mean_as_often_as_it_claims(n: int, logs: bool) -> None:
    assert coverage(n, logs=logs) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2000))


def test_one_sample_has_no_interval_and_equal_ones_have_none_to_speak_of() -> None:
    assert mean_interval([]) is None
    assert mean_interval([4.0]) is None
    assert mean_interval([4.0, 4.0]) == Interval(4.0, 4.0)
    mean, interval = log_mean_interval([4.0])
    assert mean == pytest.approx(4.0)
    assert interval is None
    mean, interval = log_mean_interval([4.0, 4.0, 4.0])
    assert interval is not None
    assert (mean, interval.low, interval.high) == pytest.approx((4.0, 4.0, 4.0))


def test_samples_many_powers_of_ten_apart_have_a_mean_but_no_interval() -> None:
    mean, log_interval = log_mean_interval([1e-100, 1e100])
    assert mean == pytest.approx(1.0)
    assert log_interval is None
    assert log_mean_interval([5e-324, 1e150])[1] is None
    interval = mean_interval([-1e150, 1e150])
    assert interval is not None
    assert math.isfinite(interval.high)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "the mean of no samples does not exist"),
        ([1.0, 0.0], "a geometric mean needs positive samples"),
        ([1.0, -2.0], "a geometric mean needs positive samples"),
        ([1.0, math.inf], "a sample is inf"),
    ],
)
def test_what_has_no_geometric_mean_is_refused(samples: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_mean_interval(samples)


def test_infinities_have_no_mean() -> None:
    with pytest.raises(ValueError, match="a sample is nan"):
        mean_interval([1.0, math.nan])
