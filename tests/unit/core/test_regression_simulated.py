"""Comparisons of simulated runs, with always the same draws: false alarms, coverage, power."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_llmbench.core.comparison import holm, mann_whitney_p
from pytest_llmbench.core.regression import Contrast, Loads, Spread, contrast, judge

METRIC = "decode_tokens_per_second"
SPREADS = (0.0, 0.01, 0.02, 0.04)
TINY_PERCENT = 0.001  # so that every significant change counts


def run_of(random: np.random.Generator, loads: int, between: float, *, pace: float = 1.0) -> list[list[float]]:
    """Loads of six samples around 50 tokens/s; 3 % within a load."""
    logs = between * random.normal(size=(loads, 1)) + 0.03 * random.normal(size=(loads, 6))
    samples: list[list[float]] = (50 * pace * np.exp(logs)).tolist()
    return samples


def stored_spread(random: np.random.Generator, log_sd: float, degrees: int) -> Spread:
    """As estimated from stored loads that spread by ``log_sd``."""
    return Spread(log_sd * float(np.sqrt(random.chisquare(degrees) / degrees)), degrees, "12 stored runs")


def covers(found: Contrast, ratio: float) -> bool:
    return found.interval is not None and found.interval.low <= ratio <= found.interval.high


def is_alarm(found: Contrast) -> bool:
    return judge(found, TINY_PERCENT, found.p_value).verdict in ("regressed", "improved")


@pytest.mark.parametrize("loads", [1, 2, 3, 5])
@pytest.mark.parametrize("pace", [1.0, 0.9])
def test_intervals_cover_and_unchanged_runs_are_silent(loads: int, pace: float) -> None:
    random = np.random.default_rng(loads)
    found = [
        contrast(METRIC, run_of(random, loads, between), run_of(random, loads, between, pace=pace))
        for between in SPREADS
        for _ in range(50)
    ]
    assert np.mean([covers(one, pace) for one in found]) >= 0.93
    if pace == 1:
        assert np.mean([is_alarm(one) for one in found]) <= 0.05


@pytest.mark.parametrize("loads", [1, 2, 3])
def test_so_it_is_with_what_stored_runs_tell(loads: int) -> None:
    random = np.random.default_rng(loads)
    found = [
        contrast(METRIC, run_of(random, loads, 0.02), run_of(random, loads, 0.02), stored_spread(random, 0.025, 8))
        for _ in range(150)
    ]
    assert np.mean([covers(one, 1) for one in found]) >= 0.93
    assert np.mean([is_alarm(one) for one in found]) <= 0.05


def test_samples_of_one_load_alone_would_raise_false_alarms() -> None:
    random = np.random.default_rng(0)
    pairs = [(run_of(random, 1, 0.04), run_of(random, 1, 0.04)) for _ in range(150)]
    assert np.mean([mann_whitney_p(old[0], new[0]) < 0.05 for old, new in pairs]) > 0.3
    assert not any(is_alarm(contrast(METRIC, old, new)) for old, new in pairs)


def found_share(loads: int, pace: float, limit_percent: float, others: int, stored: Spread | None = None) -> float:
    """Of 60 slower runs at a spread of 2 %, how many are found among ``others`` comparisons of unchanged runs."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(60):
        one = contrast(METRIC, run_of(random, loads, 0.02), run_of(random, loads, 0.02, pace=pace), stored)
        assert one.p_value is not None
        adjusted = holm([one.p_value, *[0.5] * others])[0]
        found.append(judge(one, limit_percent, adjusted).verdict == "regressed")
    return float(np.mean(found))


def test_ten_percent_are_found_with_three_loads() -> None:
    assert found_share(3, 0.9, 5, others=0) >= 0.9


def test_five_percent_are_mostly_found_with_five_loads() -> None:
    assert found_share(5, 0.95, 3, others=1) >= 0.7


def test_what_other_cells_tell_of_loads_finds_it_among_many_comparisons() -> None:
    others = Spread(0.024, 40, "other cells")
    assert found_share(3, 0.9, 5, others=39, stored=others) >= 0.8
    assert found_share(3, 0.9, 5, others=39) <= 0.6


def test_loads_that_differ_more_than_stored_ones_count_for_themselves() -> None:
    random = np.random.default_rng(2)
    calm = Spread(0.004, 30, "12 stored runs")
    pairs: list[tuple[Loads, Loads]] = [(run_of(random, 3, 0.04), run_of(random, 3, 0.04)) for _ in range(100)]
    assert np.mean([covers(contrast(METRIC, old, new, calm), 1) for old, new in pairs]) >= 0.93
