"""What a batch shows over time: a slow-down, a leak, the end beside the beginning. No I/O; tuned by simulation.

The figures of the rules are from ``tests/unit/profiles/test_batch_trends.py``, which plants what they must find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytest_llmbench.core.comparison import cliffs_delta, hodges_lehmann_ratio, mann_whitney_p
from pytest_llmbench.core.statistics import Interval, median
from pytest_llmbench.core.trends import theil_sen

ENDS = 10  # documents at either end that are compared, as founded
LEAST_AT_AN_END = 2
# A batch that becomes 3 % slower matters to nobody's night; with less noise than that, any drift would be significant.
LEAST_CHANGE_PERCENT = 3.0
# Two-sided. Of 100 batches of 30 documents with 5 % noise, 99 that lose 1 % with every document are found by it, and 1
# that loses nothing.
SIGNIFICANCE = 0.005
LEAST_FOR_A_LEAK = 12
LEAST_LEAK_MB = 0.1  # a document: three hundred documents an hour for a night lose 240 MB
# Growth that levels off loses a factor from third to third; a leak does not.
LEVELLING_OFF = 0.6
_STRETCHES_OF_ALL = 10
_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Trend:
    """How much slower the end of a batch is than its beginning, by a straight line through it.

    Attributes:
        percent: of the median time, over the whole batch; below 0 where it becomes faster.
        p_value: two-sided, that times do not depend on their order (Kendall).
    """

    percent: float
    p_value: float

    @property
    def is_real(self) -> bool:
        """Whether it is more than chance, and more than nothing."""
        return self.p_value < SIGNIFICANCE and abs(self.percent) > LEAST_CHANGE_PERCENT


@dataclass(frozen=True, slots=True)
class Ends:
    """The last documents beside the first.

    Attributes:
        count: of either.
        percent: by how much the last took longer, with its interval: Hodges-Lehmann.
        p_value: two-sided, Mann-Whitney.
        delta: Cliff's.
    """

    count: int
    percent: float
    interval: Interval | None
    p_value: float
    delta: float

    @property
    def are_slower(self) -> bool:
        """Whether the last are slower than chance explains, and by something that matters at the least.

        It finds what happens at one moment, such as a machine that becomes too hot, where a line fits badly.
        """
        low = LEAST_CHANGE_PERCENT if self.interval is None else self.interval.low
        return self.p_value < SIGNIFICANCE and low > LEAST_CHANGE_PERCENT


def without_work(seconds: Sequence[float], prompt_tokens: Sequence[float]) -> tuple[list[float], bool]:
    """Times as they would be, were all documents of the median length; and whether length was found to matter.

    Time is taken to be a constant plus so much per prompt token (Theil-Sen), which reading and, a little, generating
    are; neither part can be negative. What changes with the order is left out while that is estimated, so that a
    slow-down is not mistaken for long documents; both are estimated in turn, twice.

    Args:
        seconds: n times, in the order of the batch, all above 0.
        prompt_tokens: n lengths, above 0.
    """
    order, middle = range(len(seconds)), median(prompt_tokens)
    adjusted, steady, depends = list(seconds), list(seconds), False
    for _ in range(_ROUNDS):
        slope = theil_sen(prompt_tokens, steady)
        typical = median(steady)
        per_token = 0.0 if slope is None else min(max(slope.per_unit, 0.0), typical / middle)
        depends = per_token > 0
        work = [1 + per_token * (tokens - middle) / typical for tokens in prompt_tokens]
        adjusted = [time / share for time, share in zip(seconds, work, strict=True)]
        drift = theil_sen(order, adjusted)
        per_document = 0.0 if drift is None else drift.per_unit / median(adjusted)
        centre = (len(seconds) - 1) / 2
        steady = [time / max(0.2, 1 + per_document * (i - centre)) for i, time in zip(order, seconds, strict=True)]
    return adjusted, depends


def trend_of(adjusted: Sequence[float]) -> Trend | None:
    """Of times without their work, in order; None for fewer than four."""
    slope = theil_sen(range(len(adjusted)), adjusted)
    if slope is None:
        return None
    return Trend(100 * slope.per_unit * (len(adjusted) - 1) / median(adjusted), slope.p_value)


def ends_of(adjusted: Sequence[float]) -> Ends | None:
    """The last ten beside the first ten; with fewer than twenty, thirds of the batch; None for fewer than six."""
    count = ENDS if len(adjusted) >= 2 * ENDS else len(adjusted) // 3
    if count < LEAST_AT_AN_END:
        return None
    first, last = adjusted[:count], adjusted[-count:]
    ratio, interval = hodges_lehmann_ratio(last, first)
    percent = None if interval is None else Interval(100 * (interval.low - 1), 100 * (interval.high - 1))
    return Ends(count, 100 * (ratio - 1), percent, mann_whitney_p(last, first), cliffs_delta(last, first))


def is_leaking(memory_mb: Sequence[float]) -> bool:
    """Whether memory grows with every document, and goes on growing.

    Memory also grows for honest reasons: buffers and cells are touched for the first time, a longer document needs
    more, an allocator takes a block. So the first third is not looked at. In the second and in the last third it must
    grow by 0.1 MB a document or more (Theil-Sen: a single step in a third is none), in the last not much less than in
    the one before; and from stretch to stretch, each a tenth of the batch or a document, it must rise every time, which
    what wanders up and down does once in a hundred times.

    Args:
        memory_mb: after each document, in order; fewer than twelve tell nothing.
    """
    count = len(memory_mb)
    if count < LEAST_FOR_A_LEAK:
        return False
    third = count // 3
    middle = theil_sen(range(third), memory_mb[count - 2 * third : count - third])
    last = theil_sen(range(third), memory_mb[count - third :])
    if middle is None or last is None or min(middle.per_unit, last.per_unit) < LEAST_LEAK_MB:
        return False
    stretch = max(1, count // _STRETCHES_OF_ALL)
    backwards = memory_mb[::-1][: 2 * third + 2 : stretch]
    rises = all(later > earlier for later, earlier in pairwise(backwards))
    return rises and last.per_unit >= LEVELLING_OFF * middle.per_unit
