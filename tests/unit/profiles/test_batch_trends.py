"""The rules for a slow-down and a leak, on simulated batches: what is planted is found, clean ones stay clean."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from pytest_llmbench.profiles.batch_trends import ends_of, is_leaking, trend_of, without_work

Random = np.random.Generator
BATCHES = 200


def batch(chance: Random, noise: float, *, count: int = 30, slower: float = 0.0, step: float = 0.0) -> bool:
    """Whether a simulated batch is called slower.

    A third of the time goes by the prompt's length; one document in thirty is an outlier, up to twice as slow.

    Args:
        noise: standard deviation of a document's time, relative.
        slower: by how much each document is slower than the one before, of the first one's time.
        step: by how much all are slower from the middle on.
    """
    tokens = chance.uniform(260, 400, count)
    seconds = (10 + 5 * tokens / 330) * np.exp(chance.normal(0, noise, count))
    seconds *= np.where(chance.random(count) < 1 / 30, chance.uniform(1.1, 2, count), 1)
    seconds *= 1 + slower * np.arange(count)
    seconds[count // 2 :] *= 1 + step
    adjusted, _ = without_work(seconds.tolist(), tokens.tolist())
    trend, ends = trend_of(adjusted), ends_of(adjusted)
    assert trend is not None
    assert ends is not None
    return (trend.is_real and trend.percent > 0) or ends.are_slower


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.05])
def test_clean_batches_do_not_slow_down(noise: float) -> None:
    chance = np.random.default_rng(7)
    assert sum(batch(chance, noise) for _ in range(BATCHES)) <= 0.02 * BATCHES


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.05])
def test_one_percent_a_document_is_found_in_thirty(noise: float) -> None:
    chance = np.random.default_rng(8)
    assert sum(batch(chance, noise, slower=0.01) for _ in range(BATCHES)) >= 0.99 * BATCHES


def test_a_rate_that_falls_by_a_fifth_at_one_moment_is_found() -> None:
    chance = np.random.default_rng(9)
    assert sum(batch(chance, 0.03, step=0.25) for _ in range(BATCHES)) >= 0.97 * BATCHES


def test_short_batches_have_few_false_alarms_and_find_large_changes() -> None:
    chance = np.random.default_rng(10)
    assert sum(batch(chance, 0.03, count=12) for _ in range(BATCHES)) <= 0.02 * BATCHES
    assert sum(batch(chance, 0.03, count=12, slower=0.05) for _ in range(BATCHES)) >= 0.9 * BATCHES


def test_what_length_explains_is_taken_out() -> None:
    tokens = [200.0, 500.0, 300.0, 400.0, 250.0, 450.0]
    adjusted, depends = without_work([5 + count / 100 for count in tokens], tokens)
    assert depends
    assert adjusted == pytest.approx([8.5] * 6)


def test_a_slow_down_is_not_mistaken_for_long_documents() -> None:
    """Documents that become longer while the server becomes slower: length explains a part, and no more than that."""
    tokens = [250.0 + 5 * (number % 6) for number in range(30)]
    seconds = [(5 + count / 100) * (1 + 0.01 * number) for number, count in enumerate(tokens)]
    adjusted, _ = without_work(seconds, tokens)
    trend = trend_of(adjusted)
    assert trend is not None
    assert trend.percent == pytest.approx(100 * 0.29 / 1.145, rel=0.03)
    assert max(abs(np.diff(adjusted) / np.asarray(adjusted)[:-1])) < 0.02


def test_times_that_fall_with_length_are_left_alone() -> None:
    seconds = [5.0, 4.0, 3.0, 2.0, 4.5]
    assert without_work(seconds, [100.0, 200.0, 300.0, 400.0, 150.0]) == (seconds, False)


@pytest.mark.parametrize(("count", "at_each_end"), [(5, None), (6, 2), (19, 6), (20, 10), (300, 10)])
def test_the_ends_are_ten_documents_or_thirds(count: int, at_each_end: int | None) -> None:
    ends = ends_of([1.0 + number / 1000 for number in range(count)])
    assert (ends and ends.count) == at_each_end


def test_the_ends_are_compared_with_an_interval_a_test_and_an_effect_size() -> None:
    ends = ends_of([1.0 + number / 1000 for number in range(10)] + [2.0 + number / 500 for number in range(10)])
    assert ends is not None
    assert ends.percent == pytest.approx(100, abs=1)
    assert ends.interval is not None
    assert ends.interval.low < 100 < ends.interval.high
    assert ends.p_value < 0.001
    assert ends.delta == 1


def memory(chance: Random, kind: str, leak: float, *, count: int = 30, noise: float = 0.3) -> list[float]:
    """Memory after each document, in MB."""
    numbers = np.arange(count)
    values = 300 + leak * numbers + chance.normal(0, noise, count) + np.cumsum(chance.normal(0, 0.05, count))
    if kind == "settling":
        values -= chance.uniform(5, 200) * np.exp(-numbers / chance.uniform(1, count / 5))
    elif kind == "a step":
        values += chance.uniform(5, 50) * (numbers > chance.integers(1, count))
    elif kind == "three steps":
        for _ in range(3):
            values += chance.uniform(5, 50) * (numbers > chance.integers(1, count))
    elif kind == "the longest so far":
        values += 0.1 * np.maximum.accumulate(chance.uniform(260, 400, count))
    elif kind == "wandering":
        values += np.cumsum(chance.normal(0, 0.3, count))
    return [float(value) for value in values]


@pytest.mark.parametrize("count", [12, 30, 100])
@pytest.mark.parametrize("kind", ["flat", "settling", "a step", "three steps", "the longest so far", "wandering"])
def test_memory_that_grows_for_honest_reasons_is_no_leak(kind: str, count: int) -> None:
    chance = np.random.default_rng(11)
    alarms = sum(is_leaking(memory(chance, kind, 0, count=count)) for _ in range(BATCHES))
    assert alarms <= 0.02 * BATCHES


@pytest.mark.parametrize("kind", ["flat", "the longest so far"])
@pytest.mark.parametrize("leak", [1.0, 5.0])
def test_a_leak_of_a_megabyte_a_document_is_found(kind: str, leak: float) -> None:
    chance = np.random.default_rng(12)
    assert sum(is_leaking(memory(chance, kind, leak)) for _ in range(BATCHES)) >= 0.99 * BATCHES


def test_a_leak_is_found_beside_memory_that_has_settled() -> None:
    leaks = [300 + number - 100 * math.exp(-number / 2) for number in range(30)]
    assert is_leaking(leaks)


Series = Callable[[int], float]


@pytest.mark.parametrize(
    "series", [lambda _: 100.0, lambda n: 100.0 - n, lambda n: 100 + 0.05 * n], ids=["constant", "falling", "tiny"]
)
def test_no_growth_worth_the_name_is_no_leak(series: Series) -> None:
    assert not is_leaking([series(number) for number in range(30)])


def test_few_documents_tell_no_leak() -> None:
    assert not is_leaking([100.0 + number for number in range(11)])
    assert is_leaking([100.0 + number for number in range(12)])
