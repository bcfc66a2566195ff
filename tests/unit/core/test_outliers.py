"""Outliers: both rules against their definitions, equal samples, how often clean samples are suspected."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.core.outliers import Rule, outliers

RULES: list[Rule] = ["modified_z", "two_mad"]
CLEAN = [50.0, 50.4, 49.7, 50.1, 49.8, 50.2]
either_rule = pytest.mark.parametrize("rule", RULES)
samples_of_whole_numbers = st.lists(st.integers(-1000, 1000).map(float), max_size=30)


def test_by_default_it_is_the_modified_z_score() -> None:
    assert outliers([*CLEAN, 44.0]) == [6]
    assert outliers([*CLEAN, 51.0], "two_mad") == [6]
    assert outliers([*CLEAN, 51.0]) == []


@given(samples_of_whole_numbers)
def test_the_rules_do_what_their_sources_say(samples: list[float]) -> None:
    centre = median(samples) if samples else 0.0
    mad = median(abs(x - centre) for x in samples) if samples else 0.0
    if len(samples) < 3 or mad == 0:
        return
    by_z = [i for i, x in enumerate(samples) if 0.6745 * abs(x - centre) / mad > 3.5]
    assert outliers(samples) == by_z
    assert outliers(samples, "two_mad") == [i for i, x in enumerate(samples) if abs(x - centre) > 2 * mad]


@given(samples_of_whole_numbers)
def test_who_is_called_does_not_depend_on_order_sign_or_unit(samples: list[float]) -> None:
    for rule in RULES:
        called = outliers(samples, rule)
        n = len(samples)
        assert outliers(samples[::-1], rule) == sorted(n - 1 - i for i in called)
        assert outliers([-x for x in samples], rule) == called
        assert outliers([1024 * x for x in samples], rule) == called


@given(samples_of_whole_numbers)
def test_never_half_of_the_samples_are_called(samples: list[float]) -> None:
    assert all(2 * len(outliers(samples, rule)) <= len(samples) for rule in RULES)


@either_rule
@pytest.mark.parametrize(
    ("samples", "called"),
    [
        ([], []),
        ([1.0], []),
        ([1.0, 9.0], []),
        ([5.0, 5.0, 5.0, 5.0], []),
        ([5.0, 5.0, 5.0, 5.2], []),  # off, but by less than 5 %
        ([5.0, 5.0, 5.0, 5.25], []),  # by exactly 5 %
        ([5.0, 5.0, 5.0, 5.3], [3]),
        ([-5.0, -5.0, -5.0, -5.3], [3]),
        ([0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2, 0.301], []),  # equal but for rounding
        ([0.0, 0.0, 0.0, 0.0, 1e-6], [4]),  # what never happened but once
        ([1e150, 1e150, 1e150, -1e150], [3]),
    ],
)
def test_where_most_samples_are_equal_a_difference_must_matter(
    rule: Rule, samples: list[float], called: list[int]
) -> None:
    assert outliers(samples, rule) == called


@pytest.mark.parametrize(("n", "often"), [(6, 0.18), (10, 0.16), (20, 0.12)])
def test_the_modified_z_score_suspects_few_clean_runs(n: int, often: float) -> None:
    """It was made for ten samples or more; of clean runs of six it suspects 14 %."""
    runs = np.random.default_rng(n).normal(50, 1, (1000, n)).tolist()
    assert np.mean([bool(outliers(run)) for run in runs]) <= often


def test_the_founding_rule_suspects_more_than_half_of_clean_runs_of_five() -> None:
    runs = np.random.default_rng(5).normal(50, 1, (500, 5)).tolist()
    assert np.mean([bool(outliers(run, "two_mad")) for run in runs]) > 0.5


def test_a_planted_stall_is_found() -> None:
    for run in np.random.default_rng(6).normal(50, 1, (200, 10)).tolist():
        assert 4 in outliers([*run[:4], 20.0, *run[5:]])


@either_rule
@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan, 1e200])
def test_what_is_no_number_is_refused(rule: Rule, wrong: float) -> None:
    with pytest.raises(ValueError, match="statistics need finite numbers"):
        outliers([1.0, 2.0, 3.0, wrong], rule)
