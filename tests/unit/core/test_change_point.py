"""A level that changes at one moment."""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from pytest_llmbench.core import change_point as module
from pytest_llmbench.core.change_point import LEAST_SIDE, change_point


def noisy(levels: list[float], seed: int, noise: float = 0.03) -> list[float]:
    chance = random.Random(seed)
    return [level * chance.gauss(1, noise) for level in levels]


@pytest.mark.parametrize("before", [5, 10, 16])
def test_where_and_by_how_much(before: int) -> None:
    change = change_point(noisy([50.0] * before + [40.0] * (21 - before), seed=1))
    assert change is not None
    assert change.index == before
    assert change.ratio == pytest.approx(0.8, abs=0.05)
    assert change.interval is not None
    assert change.interval.low < 0.8 < change.interval.high < 1
    assert change.p_value < 0.01


def test_many_samples_are_taken_in_blocks() -> None:
    change = change_point(noisy([50.0] * 1500 + [49.0] * 3500, seed=2))
    assert change is not None
    assert change.index == pytest.approx(1500, abs=50)
    assert change.ratio == pytest.approx(0.98, abs=0.002)
    assert change.p_value == pytest.approx(1 / 2000)


def test_a_change_is_claimed_no_more_often_than_its_p_value_allows() -> None:
    found = [change_point(noisy([50.0] * 20, seed)) for seed in range(400)]
    claimed = sum(change is not None and change.p_value < 0.05 for change in found)
    assert claimed <= 33  # 20 are expected; more than that with a probability of 0.3 %


def test_the_p_value_is_that_of_all_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six different samples have 720 orders, of which two are split in the middle without overlap: up and down."""
    monkeypatch.setattr(module, "_SHUFFLES", 20_000)
    change = change_point([1.0, 3.0, 2.0, 6.0, 4.0, 5.0])
    assert change is not None
    extreme = sum(max(order[:LEAST_SIDE]) < 4 or min(order[:LEAST_SIDE]) > 3 for order in permutations(range(1, 7)))
    assert change.p_value == pytest.approx(extreme / 720, rel=0.1)


def test_ends_are_no_levels() -> None:
    change = change_point([1.0, *[50.0, 51.0, 49.0] * 10, 1.0])
    assert change is not None
    assert change.p_value > 0.05


@pytest.mark.parametrize("samples", [[], [1.0, 2.0, 3.0, 4.0, 5.0], [2.0] * 9])
def test_none_where_nothing_can_be_told(samples: list[float]) -> None:
    assert change_point(samples) is None


def test_what_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        change_point([1.0, 2.0, 3.0, 0.0, 5.0, 6.0])
