"""Did it become worse? A metric of one cell in an earlier run and in a new one.

The unit is the load. One file, loaded again and again, gave medians from 58 to 69 tokens/s in one session: samples of
one load resemble each other more than those of the next, so a test that takes them for independent calls a change what
is two loads. Where loads spread by 4 %, the Mann-Whitney test on the samples of one load each does so in 39 % of
comparisons of unchanged runs. Therefore each load counts once, by the logarithm of its median, and the test is
Student's t with the spread between loads. Where neither run has several loads, that spread is taken from stored runs,
or else assumed to be large; then only large changes are told.

A change is a regression when it is both unlikely to be chance and larger than a limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_llmbench.core.comparison import hodges_lehmann_ratio
from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.proportions import mcnemar_p
from pytest_llmbench.core.records import Change, MetricComparison
from pytest_llmbench.core.spread import (
    ASSUMED_SPREAD,
    SIGNIFICANCE,
    Loads,
    Spread,
    between_loads,
    filled,
    log_medians,
    median_variance,
    needed_loads,
    told_percent,
)
from pytest_llmbench.core.statistics import CONFIDENCE, LARGEST, Interval, median
from pytest_llmbench.errors import Primitive

__all__ = [
    "ASSUMED_SPREAD",
    "NOT_COMPARED",
    "RECOMMENDED_LOADS",
    "Contrast",
    "Loads",
    "Spread",
    "between_loads",
    "contrast",
    "contrast_answers",
    "contrast_values",
    "judge",
    "needed_loads",
]

RECOMMENDED_LOADS = 3
# Of values without samples nothing is known of their noise: only a change beyond so many limits is one.
LIMITS_BEYOND_DOUBT = 2
_MANY_LOADS = 20  # in each run; nobody waits for more

# What says nothing of its own about a change, and so would only make the others harder to tell, and why.
NOT_COMPARED: dict[str, str] = {
    "time_per_output_token_ms": "it is the inverse of decode_tokens_per_second",
    "steady_tokens_per_second": "it changes with decode_tokens_per_second",
    "answering_seconds": "it changes with decode_tokens_per_second",
    "efficiency_score": "it changes with decode_tokens_per_second",
    "cost_benefit_score": "it is relative to the other models of its run",
    "documents_per_hour": "it changes with document_seconds",
    "one_line_answer_seconds": "the model decides how long the answer is",
    "paragraph_answer_seconds": "the model decides how long the answer is",
    "first_sentence_seconds": "the model decides how long the sentence is",
    "reasoning_seconds": "the model decides how long it reasons",
    "variance_percent": "it varies more than any limit; thresholds judge it",
    "variance_within_percent": "it varies more than any limit; thresholds judge it",
    "variance_between_percent": "it varies more than any limit; thresholds judge it",
    "document_sd_seconds": "it varies more than any limit",
    "slowdown_percent_per_1k_tokens": "a slope near 0 has no percentage",
    "degradation_percent": "a slope near 0 has no percentage",
    "decay_percent_per_hour": "a slope near 0 has no percentage",
    "memory_slope_mb_per_document": "a slope near 0 has no percentage",
    "load_seconds": "it depends on what the page cache holds",
    "load_read_mb_per_second": "it depends on what the page cache holds",
    "swap_gb": "it is of the machine at that hour",
    "scheduling_delay_ms": "it is of the machine at that hour",
    "cpu_temperature_celsius": "it is of the machine at that hour",
    "gpu_temperature_celsius": "it is of the machine at that hour",
    "frequency_drop_percent": "it is of the machine at that hour",
    "throttle_events": "it is of the machine at that hour",
}


@dataclass(frozen=True, slots=True)
class Contrast:
    """How far a metric is from where it was, before anything is judged.

    Attributes:
        kind: ``loads``: medians over loads; ``values``: one number each, of whose noise nothing is known; ``answers``:
            scores of the same questions.
        old: the earlier value, in the metric's unit.
        ratio: new / old; None where old is 0.
        interval: of the ratio, 95 %.
        p_value: two-sided, not adjusted; None where nothing can be tested.
        worse_percent: how much worse the new value is, in percent of the old one; of ``answers`` in percentage points.
            Negative where it is better; None where old is 0 and new is not.
        worst_percent: the interval's worse end, as ``worse_percent``.
        best_percent: its better end.
        spread: between loads, as it was used.
        loads: in the old run and in the new one.
        samples: in the old run and in the new one; of ``answers``, questions that both were asked.
    """

    metric: str
    kind: Literal["loads", "values", "answers"]
    old: float
    new: float
    ratio: float | None
    interval: Interval | None
    p_value: float | None
    worse_percent: float | None
    worst_percent: float | None
    best_percent: float | None
    spread: Spread | None
    loads: tuple[int, int]
    samples: tuple[int, int]


def contrast(metric: str, old: Loads, new: Loads, stored: Spread | None = None) -> Contrast:
    """Compare the loads of two runs of the same cell.

    Student's t on the logarithms of the loads' medians. Their variance is pooled over both runs, and with ``stored``
    unless these loads differ significantly more; but it is never less than what they themselves show, nor than the
    sampling error of a median as samples vary within them. Where neither run has two loads, it is that of ``stored``,
    or else of :data:`ASSUMED_SPREAD`, plus that sampling error.

    The ratio is that of the medians over loads, which is what reports show, and the interval is widened to hold it;
    with one load each, also to hold the interval of Hodges and Lehmann, which knows the samples only and so is too
    narrow alone.

    Source of the pooled test: Student, *The Probable Error of a Mean*, Biometrika 6(1), 1908, and R. A. Fisher,
    *Applications of "Student's" Distribution*, Metron 5, 1925.

    Args:
        old: samples by load; loads without samples do not count.
        stored: of other loads than these; None: nothing is known.

    Raises:
        ValueError: a side has no samples, or one that is not positive and so has no logarithm; nobody says in which
            direction the metric is better; as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    sides = (filled(old), filled(new))
    if not all(sides):
        msg = f"a comparison of {metric} needs samples on both sides"
        raise ValueError(msg)
    before, after = (median([median(load) for load in side]) for side in sides)
    logs = tuple(log_medians(side) for side in sides)
    if logs[0] is None or logs[1] is None:
        msg = f"a sample of {metric} is 0 or less, so there is no ratio of it"
        raise ValueError(msg)
    spread = _spread_of(sides, stored)
    n, m = len(logs[0]), len(logs[1])
    difference = math.fsum(logs[1]) / m - math.fsum(logs[0]) / n
    error = spread.log_sd * math.sqrt(1 / n + 1 / m)
    ratio = after / before
    interval = _t_interval(difference, error, spread.degrees, ratio)
    if n == m == 1:
        interval = _holding(interval, hodges_lehmann_ratio(sides[1][0], sides[0][0])[1])
    low, high = sorted((_worse(metric, interval.low), _worse(metric, interval.high)))
    return Contrast(
        metric=metric,
        kind="loads",
        old=before,
        new=after,
        ratio=ratio,
        interval=interval,
        p_value=_t_p(difference, error, spread.degrees),
        worse_percent=_worse(metric, ratio),
        worst_percent=high,
        best_percent=low,
        spread=spread,
        loads=(n, m),
        samples=(sum(map(len, sides[0])), sum(map(len, sides[1]))),
    )


def contrast_values(metric: str, old: float, new: float) -> Contrast:
    """Compare two numbers of whose noise nothing is known, such as a peak of memory.

    Raises:
        ValueError: nobody says in which direction the metric is better.
    """
    ratio = new / old if old > 1 / LARGEST and new >= 0 else None
    worse = _worse(metric, ratio) if ratio is not None else 0.0 if new == old else None
    return Contrast(metric, "values", old, new, ratio, None, None, worse, None, None, None, (1, 1), (1, 1))


def contrast_answers(
    metric: str, old_rows: Sequence[Mapping[str, Primitive]], new_rows: Sequence[Mapping[str, Primitive]]
) -> Contrast:
    """Compare the scores of the questions that were asked in both runs, in percent of them.

    The questions are paired: exact McNemar test, and the interval of the difference by D. G. Bonett and R. M. Price,
    *Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data*, Journal of
    Educational and Behavioral Statistics 37(4), 2012, which stays honest where no answer changed. That of the ratio
    takes the old score for known.

    Args:
        old_rows: ``id`` and ``correct`` of each question.

    Raises:
        ValueError: no question was asked in both.
    """
    before = {row["id"]: bool(row["correct"]) for row in old_rows}
    pairs = [(before[row["id"]], bool(row["correct"])) for row in new_rows if row["id"] in before]
    if not pairs:
        msg = "no question was asked in both runs; measure them with the same questions"
        raise ValueError(msg)
    n = len(pairs)
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    old, new = (100 * sum(side) / n for side in zip(*pairs, strict=True))
    lost_share, won_share = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    middle = lost_share - won_share
    half = _normal_quantile() * math.sqrt((lost_share + won_share - middle**2) / (n + 2))
    best, worst = max(-1.0, middle - half) * 100, min(1.0, middle + half) * 100
    return Contrast(
        metric=metric,
        kind="answers",
        old=old,
        new=new,
        ratio=new / old if old else None,
        interval=Interval(max(0.0, 1 - worst / old), 1 - best / old) if old else None,
        p_value=mcnemar_p(lost, won),
        worse_percent=old - new,
        worst_percent=worst,
        best_percent=best,
        spread=None,
        loads=(1, 1),
        samples=(n, n),
    )


def judge(
    contrast: Contrast, limit_percent: float, adjusted_p: float | None, comparisons: int = 1, *, can_repeat: bool = True
) -> MetricComparison:
    """Say whether a metric has become worse, better, neither, or that this can not be told.

    Worse, and better, is what is significant at 5 % and beyond the limit. Unchanged is what the interval shows to be
    no worse than the limit, significant or not. Of values, whose noise is unknown, unchanged is what is within the
    limit, and worse what is beyond twice the limit. All else is inconclusive.

    Args:
        limit_percent: how much worse counts; of scores, percentage points.
        adjusted_p: ``contrast.p_value``, adjusted for all that is compared.
        comparisons: how many that is, to tell how many loads would be needed.
        can_repeat: whether the profile is measured over several loads where one asks for them.
    """
    verdict = _verdict(contrast, limit_percent, adjusted_p)
    message = _message(contrast, verdict, limit_percent, adjusted_p)
    if verdict == "inconclusive" and contrast.worse_percent is not None:
        message += f"; {_needed(contrast, limit_percent, comparisons, can_repeat)}"
    interval = contrast.interval
    return MetricComparison(
        metric=contrast.metric,
        old=contrast.old,
        new=contrast.new,
        ratio=contrast.ratio,
        ci_low=interval.low if interval is not None else None,
        ci_high=interval.high if interval is not None else None,
        p_value=adjusted_p,
        limit_percent=limit_percent,
        verdict=verdict,
        message=message,
    )


def _verdict(contrast: Contrast, limit_percent: float, adjusted_p: float | None) -> Change:
    worse, worst = contrast.worse_percent, contrast.worst_percent
    if worse is None:
        return "inconclusive"
    if contrast.kind == "values":
        if abs(worse) > LIMITS_BEYOND_DOUBT * limit_percent:
            return "regressed" if worse > 0 else "improved"
        return "unchanged" if worse <= limit_percent else "inconclusive"
    if adjusted_p is not None and adjusted_p < SIGNIFICANCE and abs(worse) > limit_percent and _is_clear(contrast):
        return "regressed" if worse > 0 else "improved"
    return "unchanged" if worst is not None and worst <= limit_percent else "inconclusive"


def _is_clear(contrast: Contrast) -> bool:
    """Whether the interval, which knows more than the test does, leaves no doubt of the direction."""
    best, worst = contrast.best_percent, contrast.worst_percent
    return best is None or worst is None or best > 0 or worst < 0


def _message(contrast: Contrast, verdict: Change, limit_percent: float, adjusted_p: float | None) -> str:
    unit = "points" if contrast.kind == "answers" else "%"
    limit = f"{limit_percent:g} {unit}"
    if contrast.worse_percent is None:
        return "it was 0, of which there is no percentage; look at both values"
    found = f"{_signed(contrast.worse_percent, unit)}{_interval_words(contrast, unit)}"
    if verdict in ("regressed", "improved"):
        if adjusted_p is None:
            return f"{found}: beyond {LIMITS_BEYOND_DOUBT} times the limit of {limit}"
        p = "p < 0.001" if adjusted_p < 0.001 else f"p = {adjusted_p:.3f}"
        return f"{found}: beyond the limit of {limit}, {p}"
    if verdict == "unchanged":
        evident = adjusted_p is not None and adjusted_p < SIGNIFICANCE
        return f"{found}: {'' if evident else 'no evidence of a change, and '}no worse than the limit of {limit}"
    return f"{found}: whether it is worse by more than {limit} can not be told"


def _signed(worse: float, unit: str) -> str:
    if abs(worse) < 0.05:
        return f"0.0 {unit}"
    return f"{abs(worse):.1f} {unit} {'worse' if worse > 0 else 'better'}"


def _interval_words(contrast: Contrast, unit: str) -> str:
    best, worst = contrast.best_percent, contrast.worst_percent
    if best is None or worst is None:
        return ""
    if best > 0:
        return f" (95 % interval: {best:.1f} to {_signed(worst, unit)})"
    if worst <= 0:
        return f" (95 % interval: {-worst:.1f} to {_signed(best, unit)})"
    return f" (95 % interval: {_signed(best, unit)} to {_signed(worst, unit)})"


def _needed(contrast: Contrast, limit_percent: float, comparisons: int, can_repeat: bool) -> str:
    """What would give a verdict that is missing."""
    spread = contrast.spread
    if contrast.kind == "values":
        return f"nothing is known of its noise, so only more than {LIMITS_BEYOND_DOUBT * limit_percent:g} % counts"
    if spread is None:
        return _needed_questions(contrast, limit_percent)
    told = f"only a change of {told_percent(spread, contrast.loads, comparisons):.0f} % or more could be told"
    if spread.source == ASSUMED_SPREAD.source:
        unknown = "with one load in each run nothing is known of how loads differ"
        if can_repeat:
            return f"{unknown}; measure both with measurement.loads: {RECOMMENDED_LOADS} or more"
        return f"{unknown}, and {told}"
    differ = f"loads differ by {100 * spread.log_sd:.1f} % here"
    # One more than on average, because the next loads may differ more than these.
    loads = max(needed_loads(spread, limit_percent, comparisons), min(contrast.loads)) + 1
    if not can_repeat:
        return f"{differ}, so {told}"
    if loads > _MANY_LOADS:
        return f"{differ}, so {told}: a quieter machine would help more than further loads"
    return f"{differ}; measurement.loads: {loads} in both runs should tell"


def _needed_questions(contrast: Contrast, limit_percent: float) -> str:
    asked = contrast.samples[0]
    width = (contrast.worst_percent or 0.0) - (contrast.best_percent or 0.0)
    questions = math.ceil(asked * (width / 2 / limit_percent) ** 2) if limit_percent else 0
    return f"{max(questions, asked + 1)} questions or more would tell, {asked} were asked in both runs"


def _spread_of(sides: Sequence[Loads], stored: Spread | None) -> Spread:
    """Of the loads of a comparison; see :func:`contrast`."""
    own, sampling = between_loads(sides), median_variance(sides)
    if own is None:
        known = stored or ASSUMED_SPREAD
        if not sampling:
            return known
        return Spread(math.sqrt(known.log_sd**2 + sampling), known.degrees, known.source)
    if stored is not None and not _differ_more(own, stored):
        degrees = own.degrees + stored.degrees
        variance = (own.degrees * own.log_sd**2 + stored.degrees * stored.log_sd**2) / degrees
        own = Spread(max(own.log_sd, math.sqrt(variance)), degrees, f"{own.source} and {stored.source}")
    return Spread(max(own.log_sd, math.sqrt(sampling)), own.degrees, own.source)


def _differ_more(own: Spread, stored: Spread) -> bool:
    """Whether these loads differ more than those known before, by the F test: then those say nothing of these."""
    from scipy.special import fdtrc

    if stored.log_sd == 0:
        return own.log_sd > 0
    ratio = min((own.log_sd / stored.log_sd) ** 2, LARGEST)
    return bool(fdtrc(own.degrees, stored.degrees, ratio) < SIGNIFICANCE)


def _t_interval(difference: float, error: float, degrees: int, ratio: float) -> Interval:
    """Of a ratio, from the difference of logarithms; widened to hold ``ratio``, and within what floats hold."""
    from scipy.special import stdtrit

    half = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error
    most = math.log(LARGEST)
    low, high = (math.exp(max(-most, min(most, end))) for end in (difference - half, difference + half))
    return Interval(min(low, ratio), max(high, ratio))


def _t_p(difference: float, error: float, degrees: int) -> float:
    from scipy.special import stdtr

    if difference == 0 or error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(min(1.0, 2 * stdtr(degrees, -abs(difference) / error)))


def _holding(interval: Interval, other: Interval | None) -> Interval:
    if other is None:
        return interval
    return Interval(min(interval.low, other.low), max(interval.high, other.high))


def _normal_quantile() -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + CONFIDENCE) / 2))


def _worse(metric: str, ratio: float) -> float:
    """How much worse a ratio of new to old is, in percent.

    Raises:
        ValueError: nobody says in which direction the metric is better.
    """
    known = METRICS.get(metric)
    if known is None or known.better == "neither":
        msg = f"nobody says whether more or less of {metric} is better; compare metrics that have a direction"
        raise ValueError(msg)
    return 100 * (1 - ratio) if known.better == "higher" else 100 * (ratio - 1)
