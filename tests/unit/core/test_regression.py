"""Comparing a metric of two runs: the arithmetic beside scipy's, verdicts, their words, odd input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import MetricComparison
from pytest_llmbench.core.regression import (
    ASSUMED_SPREAD,
    NOT_COMPARED,
    Spread,
    between_loads,
    contrast,
    contrast_answers,
    contrast_values,
    judge,
    needed_loads,
)
from pytest_llmbench.core.spread import told_percent
from pytest_llmbench.errors import Primitive

DECODE, TTFT = "decode_tokens_per_second", "ttft_seconds"
loads = st.lists(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4), min_size=1, max_size=4)


def steady(*rates: float) -> list[list[float]]:
    """Loads without noise within them."""
    return [[rate] * 6 for rate in rates]


def verdict_of(
    old: Sequence[Sequence[float]],
    new: Sequence[Sequence[float]],
    limit_percent: float = 5,
    metric: str = DECODE,
    stored: Spread | None = None,
) -> MetricComparison:
    found = contrast(metric, old, new, stored)
    return judge(found, limit_percent, found.p_value)


def answers(correct: str) -> list[dict[str, Primitive]]:
    return [{"id": f"q{number}", "correct": one == "1"} for number, one in enumerate(correct)]


# The arithmetic.


def test_several_loads_are_compared_by_students_t_on_the_logarithms_of_their_medians() -> None:
    old, new = (71.0, 73.0, 70.0, 72.5), (66.0, 68.5, 67.0)
    found = contrast(DECODE, steady(*old), steady(*new))
    reference = stats.ttest_ind(np.log(new), np.log(old))
    expected = reference.confidence_interval(0.95)
    assert found.p_value == pytest.approx(reference.pvalue)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert (found.old, found.new, found.ratio) == (median(old), median(new), median(new) / median(old))
    assert (found.loads, found.samples) == ((4, 3), (24, 18))


def test_one_load_beside_several_has_the_spread_of_those() -> None:
    found = contrast(DECODE, steady(71, 73, 70), steady(60))
    assert found.spread is not None
    assert found.spread.degrees == 2
    assert found.p_value == pytest.approx(stats.ttest_ind(np.log([60]), np.log([71, 73, 70])).pvalue)


def test_the_spread_between_loads_is_pooled_over_cells_around_their_own_means() -> None:
    first, second = (50.0, 52.0, 51.0), (5.0, 5.3)
    found = between_loads([steady(*first), steady(*second), steady(99), [[], [-1.0], [1.0]]])
    squares = 2 * stdev(np.log(first)) ** 2 + stdev(np.log(second)) ** 2
    assert found is not None
    assert found.log_sd == pytest.approx(math.sqrt(squares / 3))
    assert (found.degrees, found.source) == (3, "5 loads")
    assert between_loads([steady(99), [[3.0], []]]) is None


def test_stored_runs_add_their_degrees_and_never_make_loads_more_alike_than_they_are() -> None:
    old, new = steady(70, 71), steady(66, 67)
    alone = contrast(DECODE, old, new).spread
    assert alone is not None
    for factor, log_sd in ((0.5, alone.log_sd), (2, math.sqrt((2 + 10 * 4) / 12) * alone.log_sd)):
        found = contrast(DECODE, old, new, Spread(factor * alone.log_sd, 10, "6 stored runs")).spread
        assert found is not None
        assert found.log_sd == pytest.approx(log_sd)
        assert (found.degrees, found.source) == (12, "4 loads and 6 stored runs")


@pytest.mark.parametrize("calm", [0.001, 0.0])
def test_loads_that_differ_significantly_more_than_stored_ones_are_not_pooled_with_them(calm: float) -> None:
    old, new = steady(70, 75), steady(66, 71)
    assert contrast(DECODE, old, new, Spread(calm, 50, "stored runs")) == contrast(DECODE, old, new)


def test_loads_are_never_known_better_than_their_samples_allow() -> None:
    noisy = [[40.0, 45.0, 50.0, 55.0, 60.0], [41.0, 45.5, 50.0, 54.0, 61.0]]
    found = contrast(DECODE, noisy, noisy)
    assert found.spread is not None
    assert found.spread.log_sd > 0.05
    assert found.p_value == 1


def test_one_load_each_knows_what_its_samples_say_too() -> None:
    known = Spread(0.001, 30, "12 stored runs")
    noisy = [[40.0, 44.0, 48.0, 52.0, 56.0, 60.0]]
    found = contrast(DECODE, noisy, [[9 * x / 10 for x in noisy[0]]], known)
    assert found.spread is not None
    assert found.spread.log_sd > 0.05
    assert contrast(DECODE, steady(50), steady(45), known).spread == known


@given(loads, loads)
def test_turned_round_the_change_is_its_inverse(old: list[list[float]], new: list[list[float]]) -> None:
    there, back = contrast(TTFT, old, new), contrast(TTFT, new, old)
    assert there.interval is not None
    assert back.interval is not None
    assert there.ratio == pytest.approx(1 / (back.ratio or math.nan))
    assert (there.interval.low, there.interval.high) == pytest.approx((1 / back.interval.high, 1 / back.interval.low))
    assert there.p_value == pytest.approx(back.p_value)


@pytest.mark.parametrize(("log_sd", "limit", "comparisons"), [(0.02, 5, 2), (0.02, 3, 2), (0.01, 5, 100), (0.05, 5, 1)])
def test_so_many_loads_are_needed_and_no_fewer(log_sd: float, limit: float, comparisons: int) -> None:
    def told(n: int) -> bool:
        quantile = stats.t(2 * n - 2).ppf(1 - 0.025 / comparisons)
        return bool(quantile * log_sd * math.sqrt(2 / n) <= math.log(1 + limit / 100))

    n = needed_loads(Spread(log_sd, 4, ""), limit, comparisons)
    assert told(n)
    assert n == 2 or not told(n - 1)


def test_a_spread_that_no_number_of_loads_overcomes() -> None:
    assert needed_loads(Spread(5.0, 4, ""), 1) == 1000
    assert math.isfinite(told_percent(Spread(1e9, 4, ""), (1, 1)))


# Verdicts.


@pytest.mark.parametrize(
    ("new", "limit", "verdict"),
    [
        ((63.0, 63.5, 62.6), 5, "regressed"),
        ((77.0, 78.0, 77.4), 5, "improved"),
        ((70.1, 70.5, 69.8), 5, "unchanged"),
        ((68.5, 68.8, 68.2), 5, "unchanged"),  # evidently slower, and evidently by less than the limit
        ((68.5, 68.8, 68.2), 2.5, "inconclusive"),
        ((60.0, 75.0, 68.0), 5, "inconclusive"),
    ],
)
def test_of_a_rate(new: tuple[float, ...], limit: float, verdict: str) -> None:
    assert verdict_of(steady(70, 70.4, 69.7), steady(*new), limit).verdict == verdict


def test_of_a_time_less_is_better() -> None:
    old = steady(1.0, 1.01, 0.99)
    assert verdict_of(old, steady(1.2, 1.21, 1.19), metric=TTFT).verdict == "regressed"
    assert verdict_of(old, steady(0.8, 0.81, 0.79), metric=TTFT).verdict == "improved"


def test_with_one_load_each_half_the_speed_is_told_among_a_hundred_comparisons_and_little_is_not() -> None:
    rates = [70.0, 71.0, 69.0, 70.5, 69.5, 70.2]
    half = contrast(DECODE, [rates], [[rate / 2 for rate in rates]])
    assert half.p_value is not None
    assert judge(half, 5, 100 * half.p_value, 100).verdict == "regressed"
    little = verdict_of([rates], [[rate * 0.8 for rate in rates]])
    assert little.verdict == "inconclusive"
    assert "measurement.loads: 3" in little.message
    same = verdict_of([rates], [rates])
    assert same.verdict == "inconclusive"


def test_with_one_load_each_and_stored_runs_a_change_is_told() -> None:
    stored = Spread(0.01, 11, "12 stored runs of this host")
    assert verdict_of(steady(70), steady(63), stored=stored).verdict == "regressed"
    assert verdict_of(steady(70), steady(69.9), stored=stored).verdict == "unchanged"
    assert verdict_of(steady(70), steady(67), stored=stored).verdict == "inconclusive"


def test_what_is_adjusted_decides() -> None:
    found = contrast(DECODE, steady(70, 70.4, 69.7), steady(63, 63.5, 62.6))
    assert judge(found, 5, 0.049).verdict == "regressed"
    assert judge(found, 5, 0.051).verdict == "inconclusive"
    assert judge(found, 5, 0.051).p_value == 0.051


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (1.0, 1.0, "unchanged"),
        (1.0, 1.04, "unchanged"),
        (1.0, 1.08, "inconclusive"),
        (1.0, 1.11, "regressed"),
        (1.0, 0.95, "unchanged"),
        (1.0, 0.8, "improved"),
        (0.0, 0.0, "unchanged"),
        (0.0, 1.0, "inconclusive"),
    ],
)
def test_of_values_without_samples_only_twice_the_limit_counts(old: float, new: float, verdict: str) -> None:
    found = judge(contrast_values("peak_memory_gb", old, new), 5, None)
    assert found.verdict == verdict
    assert (found.ci_low, found.ci_high, found.p_value) == (None, None, None)


@pytest.mark.parametrize(
    ("old", "new", "limit", "verdict"),
    [
        ("1" * 40, "0" * 12 + "1" * 28, 5, "regressed"),
        ("0" * 12 + "1" * 28, "1" * 40, 5, "improved"),
        ("01" * 400, "01" * 400, 5, "unchanged"),
        ("01" * 7, "01" * 7, 5, "inconclusive"),  # fourteen questions do not say that nothing changed
        ("1" * 40, "00" + "1" * 38, 3, "inconclusive"),
    ],
)
def test_of_answers(old: str, new: str, limit: float, verdict: str) -> None:
    found = contrast_answers("quality_score_percent", answers(old), answers(new))
    assert judge(found, limit, found.p_value).verdict == verdict


def test_answers_are_paired_by_question_whatever_their_order() -> None:
    old = answers("1100")
    another: dict[str, Primitive] = {"id": "another", "correct": True}
    found = contrast_answers("quality_score_percent", old, [*reversed(answers("1010")), another])
    assert (found.old, found.new, found.samples, found.p_value) == (50, 50, (4, 4), 1)
    with pytest.raises(ValueError, match="no question was asked in both runs"):
        contrast_answers("quality_score_percent", old, [another])


def test_the_interval_of_answers_covers() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        before = random.random(60) < 0.7
        after = random.random(60) < np.where(before, 0.85, 0.35)  # 0.7 · 0.85 + 0.3 · 0.35 = 0.7
        old, new = (answers("".join("1" if one else "0" for one in side)) for side in (before, after))
        found = contrast_answers("quality_score_percent", old, new)
        assert found.worst_percent is not None
        assert found.best_percent is not None
        inside += found.best_percent <= 0 <= found.worst_percent
    assert inside >= 0.93 * 200


# Words.


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            (70, 70.4, 69.7),
            (63, 63.5, 62.6),
            "10.0 % worse (95 % interval: 8.7 to 11.2 % worse): beyond the limit of 5 %, p < 0.001",
        ),
        (
            (70, 70.4, 69.7),
            (70.1, 70.5, 69.8),
            (
                "0.1 % better (95 % interval: 1.3 % better to 1.0 % worse): no evidence of a change, and no worse than "
                "the limit of 5 %"
            ),
        ),
        (
            (70, 70.4, 69.7),
            (68.5, 68.8, 68.2),
            "2.1 % worse (95 % interval: 1.1 to 3.2 % worse): no worse than the limit of 5 %",
        ),
        (
            (70, 73, 67),
            (67, 70, 64),
            (
                "4.3 % worse (95 % interval: 5.7 % better to 13.3 % worse): whether it is worse by more than 5 % can "
                "not be told; loads differ by 4.4 % here; measurement.loads: 9 in both runs should tell"
            ),
        ),
    ],
)
def test_of_loads(old: tuple[float, ...], new: tuple[float, ...], message: str) -> None:
    assert verdict_of(steady(*old), steady(*new)).message == message


def test_a_profile_of_one_load_is_told_what_can_be_told() -> None:
    found = contrast("document_seconds", steady(2.0), steady(2.2))
    assert judge(found, 5, found.p_value, can_repeat=False).message.endswith(
        "and only a change of 40 % or more could be told"
    )
    found = contrast("document_seconds", steady(2.0), steady(2.2), Spread(0.05, 11, "12 stored runs"))
    assert judge(found, 5, found.p_value, can_repeat=False).message.endswith(
        "so only a change of 17 % or more could be told"
    )


def test_of_answers_and_values() -> None:
    found = contrast_answers("quality_score_percent", answers("1" * 12 + "000"), answers("1" * 11 + "0000"))
    assert judge(found, 5, found.p_value).message == (
        "6.7 points worse (95 % interval: 13.9 points better to 25.7 points worse): whether it is worse by more than "
        "5 points can not be told; 235 questions or more would tell, 15 were asked in both runs"
    )
    assert judge(contrast_values("peak_memory_gb", 1, 1.08), 5, None).message == (
        "8.0 % worse: whether it is worse by more than 5 % can not be told; nothing is known of its noise, so only "
        "more than 10 % counts"
    )
    assert "look at both values" in judge(contrast_values("peak_memory_gb", 0, 1), 5, None).message


# Odd input.


@pytest.mark.parametrize("sample", [-1.0, 0.0, 1e-320])
def test_samples_that_have_no_logarithm_are_not_compared(sample: float) -> None:
    with pytest.raises(ValueError, match="0 or less, so there is no ratio"):
        contrast("degradation_percent", [[sample, 2.0, 3.0]], [[4.0, 5.0]])


def test_whatever_is_measured_gives_a_record() -> None:
    for old, new in ((1e-149, 1e149), (1e149, 1e-149)):
        found = contrast(DECODE, steady(old), steady(new))
        assert judge(found, 5, found.p_value).old == old
    for old, new in ((1e-320, 1.0), (1.0, 0.0)):
        assert judge(contrast_values(DECODE, old, new), 5, None).old == old


def test_without_samples_or_a_direction_nothing_is_compared() -> None:
    with pytest.raises(ValueError, match="needs samples on both sides"):
        contrast(DECODE, [[], []], steady(1))
    with pytest.raises(ValueError, match="nobody says whether more or less of of_a_later_version is better"):
        contrast("of_a_later_version", steady(1), steady(1))


def test_what_is_not_compared_exists() -> None:
    assert set(NOT_COMPARED) < set(METRICS)


def test_the_assumed_spread_is_that_of_the_measured_medians() -> None:
    assert pytest.approx(stdev(np.log([58, 69, 73, 76])), abs=0.005) == ASSUMED_SPREAD.log_sd
