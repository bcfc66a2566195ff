"""Percentiles: shown only where both ends of an interval exist."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pytest_llmbench.core.percentiles import percentiles
from pytest_llmbench.core.statistics import quantile_interval


@pytest.mark.parametrize(
    ("n", "names"),
    [
        (0, []),
        (1, []),
        (5, []),
        (6, ["p50"]),
        (35, ["p50"]),
        (36, ["p50", "p90"]),
        (71, ["p50", "p90"]),
        (72, ["p50", "p90", "p95"]),
        (367, ["p50", "p90", "p95"]),
        (368, ["p50", "p90", "p95", "p99"]),
    ],
)
def test_a_percentile_needs_samples_on_both_sides(n: int, names: list[str]) -> None:
    assert list(percentiles(range(n))) == names


@pytest.mark.parametrize("name", ["p50", "p90", "p95", "p99"])
def test_the_least_number_is_where_the_largest_sample_is_beyond_it(name: str) -> None:
    """Of n samples, none lies above the q-quantile with probability qⁿ: that must be 2.5 % at most."""
    q = float(name[1:]) / 100
    least = math.ceil(math.log(0.025) / math.log(q))
    assert name in percentiles(range(least))
    assert name not in percentiles(range(least - 1))


@settings(max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=10), st.randoms(use_true_random=False))
def test_percentiles_are_those_of_numpy_in_any_order(few: list[float], random: Random) -> None:
    samples = few * 62  # 372 or more, many of them equal
    found = percentiles(samples)
    assert list(found.values()) == pytest.approx(np.quantile(samples, [0.5, 0.9, 0.95, 0.99]).tolist())
    assert sorted(found.values()) == list(found.values())
    random.shuffle(samples)
    assert percentiles(samples) == found


def test_ties_and_constants_have_percentiles() -> None:
    assert percentiles([3.0] * 36) == {"p50": 3.0, "p90": 3.0}
    assert percentiles([0.0] * 35 + [1e150]) == {"p50": 0.0, "p90": 0.0}


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [72, 100, 500])
def test_the_interval_is_the_one_of_scipys_quantile_test(q: float, n: int) -> None:
    interval = quantile_interval(range(n), q)
    found = stats.quantile_test(range(n), p=q).confidence_interval(0.95)
    low, high = (interval.low, interval.high) if interval else (math.nan, math.nan)
    both = not (math.isnan(found.low) or math.isnan(found.high))
    assert (interval is not None) == both
    if both:
        assert (low, high) == (found.low, found.high)


@pytest.mark.parametrize(("n", "q"), [(36, 0.9), (100, 0.9), (72, 0.95), (368, 0.99)])
def test_the_interval_covers_the_true_percentile_as_often_as_it_claims(n: int, q: float) -> None:
    runs = 2000
    truth = -math.log(1 - q)
    ordered = np.sort(np.random.default_rng(n).exponential(1, (runs, n)), axis=1)
    ranks = quantile_interval(range(n), q)
    assert ranks is not None
    hits = (ordered[:, int(ranks.low)] <= truth) & (truth <= ordered[:, int(ranks.high)])
    assert hits.mean() >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


@pytest.mark.parametrize("n", [1, 6, 400])
def test_infinities_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="a sample is inf"):
        percentiles([*range(n - 1), math.inf])
