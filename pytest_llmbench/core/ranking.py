"""Which configuration serves a use best: metrics on one scale, a score, an order, and what chance may have made of it.

Every metric is brought onto a scale from 0.1 to 1. Speeds and waits go by their logarithm, because people notice
ratios, and end where nobody notices more (see :data:`SCALES`); shares count as they are; any other metric counts as its
ratio to the best that was measured. The score is the weighted geometric mean: what is bad in one respect is not bought
off by another. It is multiplied by what the rating is worth: of two that are alike the one with room to spare wins.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pytest_llmbench.core.measured import MEMORY, Measured
from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import Rating
from pytest_llmbench.core.use_cases import UseCase

FLOOR = 0.1
# What a metric counts as, at most, where others have it and this one was not measured.
UNKNOWN = 0.5
# Scores closer than this serve as well as each other: the one that takes less memory is preferred.
ALIKE = 1.05
# Memory that differs by less than this is the same.
SAME_MEMORY = 0.9
WORTH: dict[Rating | None, float] = {
    "excellent": 1.0,
    "good": 0.9,
    "acceptable": 0.8,
    "poor": 0.6,
    "failed": 0.4,
    None: 0.8,
}
# Metric → the value that counts as 0.1, and the one that counts as 1. Where ratings.INTERPRETATIONS says that more is
# not noticed, the scale ends; a batch has no such end.
SCALES: dict[str, tuple[float, float]] = {
    "decode_tokens_per_second": (1, 30),
    "steady_tokens_per_second": (1, 30),
    "depth_tokens_per_second": (1, 30),
    "sustained_tokens_per_second": (1, 30),
    "ttft_seconds": (60, 2),
    "warm_continuation_seconds": (60, 2),
    "context_load_seconds": (120, 5),
    "largest_usable_context_tokens": (1024, 131_072),
    "documents_per_hour": (1, 3600),
    MEMORY: (128, 1),
}


@dataclass(frozen=True, slots=True)
class Score:
    """What a configuration is worth for a use.

    Attributes:
        value: 0 to 1.
        fine: tells apart those with equal scores: the same metrics on scales that do not end, as a sum of logarithms.
    """

    value: float
    fine: float


def scores(
    found: Sequence[Measured], use: UseCase, profiles: Sequence[str], ratings: Sequence[Rating | None]
) -> list[Score]:
    """The score of each configuration, in their order; metrics that none of them has count for nothing.

    Args:
        profiles: those the use rests on, in whose cells a metric is looked for first.
        ratings: of each, the worst of its profiles.
    """
    columns: list[tuple[float, list[float], list[float]]] = []
    for name, weight in use.weights.items():
        values = [one.value(name, profiles) for one in found]
        if weight > 0 and any(value is not None for value in values):
            columns.append((weight, normalised(name, values), [_fine(name, value) for value in values]))
    whole = math.fsum(weight for weight, _, _ in columns) or 1.0
    return [
        Score(
            WORTH[rating] * math.exp(math.fsum(w * math.log(column[i]) for w, column, _ in columns) / whole),
            math.fsum(w * fine[i] for w, _, fine in columns) / whole,
        )
        for i, rating in enumerate(ratings)
    ]


def normalised(name: str, values: Sequence[float | None]) -> list[float]:
    """A metric of several configurations, each from :data:`FLOOR` to 1; see the head of this module."""
    share = _share_of(name, [value for value in values if value is not None])
    known = [None if value is None else share(value) for value in values]
    # Not better than what was measured: what nobody knows must not stand before what is known to be poor.
    unknown = min([UNKNOWN, *(one for one in known if one is not None)])
    return [unknown if one is None else one for one in known]


def _share_of(name: str, values: Sequence[float]) -> Callable[[float], float]:
    """How one of these values of a metric becomes a number from :data:`FLOOR` to 1."""
    lower_is_better = name in METRICS and METRICS[name].better == "lower"
    if name in SCALES:
        worst, best = SCALES[name]
        span = math.log(best / worst)
        return lambda v: _between(math.log(v / worst) / span if v > 0 else float(lower_is_better))
    if name in METRICS and METRICS[name].unit == "%":
        return lambda v: _share((100 - v if lower_is_better else v) / 100)
    positive = [v for v in values if v > 0]
    if lower_is_better:
        least = min(positive, default=1.0)
        return lambda v: _share(least / v) if v > 0 else 1.0
    most = max(positive, default=1.0)
    return lambda v: _share(v / most)


def _between(share: float) -> float:
    return FLOOR + (1 - FLOOR) * min(1.0, max(0.0, share))


def _share(share: float) -> float:
    return min(1.0, max(FLOOR, share))


def _fine(name: str, value: float | None) -> float:
    if value is None:
        return 0.0
    size = math.log(max(value, 1e-9))
    return -size if name in METRICS and METRICS[name].better == "lower" else size


def places(given: Sequence[Score], memory_gb: Sequence[float | None]) -> list[int]:
    """Indices of configurations, best first.

    Each is placed by how many others are better. Another is better when its score is, unless the two are alike (less
    than 5 % apart): then the one is better that takes clearly less memory, if one of them does. Counting those that are
    better, rather than sorting in pairs, gives an order although "alike" is not transitive, and one in which nothing
    that improves falls behind.
    """
    order = sorted(range(len(given)), key=lambda i: (-given[i].value, -given[i].fine, i))
    better = _count_better(order, given, memory_gb)
    return sorted(order, key=lambda i: better[i])


def _count_better(order: Sequence[int], given: Sequence[Score], memory_gb: Sequence[float | None]) -> list[int]:
    """For each, how many others are better. One pass over the order, with the memory of those alike kept sorted."""
    better = [0] * len(given)
    near: list[float] = []  # memory of all that are alike the one at hand
    above: list[float] = []  # the same, of those before it
    first = last = unknown_above = 0
    for place, i in enumerate(order):
        while last < len(order) and given[order[last]].value * ALIKE >= given[i].value:
            if (memory := memory_gb[order[last]]) is not None:
                insort(near, memory)
            last += 1
        while given[order[first]].value > given[i].value * ALIKE:
            if (memory := memory_gb[order[first]]) is not None:
                del near[bisect_left(near, memory)]
                del above[bisect_left(above, memory)]
            else:
                unknown_above -= 1
            first += 1
        own = memory_gb[i]
        if own is None:
            better[i] = place
            unknown_above += 1
            continue
        less = bisect_left(near, own * SAME_MEMORY)
        same = bisect_right(above, own / SAME_MEMORY) - bisect_left(above, own * SAME_MEMORY)
        better[i] = first + less + same + unknown_above
        insort(above, own)
    return better


def overlap(one: Measured, other: Measured, metrics: Mapping[str, float], profiles: Sequence[str]) -> bool:
    """Whether chance may have made all the difference between two, in the metrics that count.

    True when in every such metric that both have the intervals overlap, and there is one. Memory does not count: it is
    what decides between two that are alike. A metric without interval tells nothing; an exact one has to be equal.
    """
    compared = 0
    for name, weight in metrics.items():
        ours, theirs = one.metric(name, profiles), other.metric(name, profiles)
        if not weight or name == MEMORY or ours is None or theirs is None:
            continue
        if ours.ci_low is None or ours.ci_high is None or theirs.ci_low is None or theirs.ci_high is None:
            continue
        if ours.ci_low > theirs.ci_high or theirs.ci_low > ours.ci_high:
            return False
        compared += 1
    return compared > 0
