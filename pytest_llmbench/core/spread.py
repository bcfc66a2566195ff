"""How much loads of the same model differ: restarts are a level of their own, above the samples taken within one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_llmbench.core.statistics import LARGEST, median

Loads = Sequence[Sequence[float]]  # samples of one metric by load

SIGNIFICANCE = 0.05
_MAD_TO_SD = 1.4826  # of a normal distribution
_MEDIAN_INEFFICIENCY = math.pi / 2  # of large normal samples: variance of the median over that of the mean
_MOST_LOADS = 1000


@dataclass(frozen=True, slots=True)
class Spread:
    """How much loads of the same model differ.

    Attributes:
        log_sd: standard deviation of the natural logarithms of the loads' medians; 0.02 is about 2 %.
        degrees: of freedom, with which it was estimated.
        source: in words, to follow "the spread of": ``6 loads``, ``12 stored runs of this host``.
    """

    log_sd: float
    degrees: int
    source: str


# The one file of which the design knows medians of many loads: 58 to 69 tokens/s in one session, 73 to 76 in another.
# The logarithms of these four have a standard deviation of 0.12. Taken for known: so a difference of 28 % between two
# loads may be chance, and half the speed is told even among a hundred comparisons.
ASSUMED_SPREAD = Spread(0.12, 1000, "an assumption")


def between_loads(groups: Iterable[Loads]) -> Spread | None:
    """The spread between loads, pooled over cells: each cell's loads around their own mean.

    What samples vary within a load is in it too and not taken off, as in
    :func:`~pytest_llmbench.core.loads.between_load_spread_percent`. Loads of one cell that are of several runs may be
    given as one group; then it also holds what differs from one session to the next.

    Args:
        groups: of each cell, the samples by load. Cells with a sample that is not positive do not count.

    Returns:
        None where no cell has two loads.

    Raises:
        ValueError: as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    squares, degrees, loads = 0.0, 0, 0
    for group in groups:
        logs = log_medians(filled(group))
        if logs is not None and len(logs) > 1:
            mean = math.fsum(logs) / len(logs)
            squares += math.fsum((log - mean) ** 2 for log in logs)
            degrees += len(logs) - 1
            loads += len(logs)
    return Spread(math.sqrt(squares / degrees), degrees, f"{loads} loads") if degrees else None


def needed_loads(spread: Spread, limit_percent: float, comparisons: int = 1) -> int:
    """With how many loads in each run a change as large as the limit would be significant; 1000 stands for more.

    Args:
        comparisons: how many are made together, by Bonferroni.
    """
    from scipy.special import stdtrit

    tail = SIGNIFICANCE / 2 / max(1, comparisons)
    change = math.log1p(limit_percent / 100)
    for loads in range(2, _MOST_LOADS):
        if float(stdtrit(2 * loads - 2, 1 - tail)) * spread.log_sd * math.sqrt(2 / loads) <= change:
            return loads
    return _MOST_LOADS


def told_percent(spread: Spread, loads: tuple[int, int], comparisons: int = 1) -> float:
    """How large a change has to be to be significant, in percent.

    Args:
        loads: of the one run and of the other.
        comparisons: how many are made together, by Bonferroni.
    """
    from scipy.special import stdtrit

    quantile = float(stdtrit(spread.degrees, 1 - SIGNIFICANCE / 2 / max(1, comparisons)))
    exponent = quantile * spread.log_sd * math.sqrt(1 / loads[0] + 1 / loads[1])
    return 100 * math.expm1(min(exponent, math.log(LARGEST)))


def filled(groups: Loads) -> list[Sequence[float]]:
    """The loads that have samples."""
    return [load for load in groups if len(load)]


def log_medians(loads: Loads) -> list[float] | None:
    """Logarithms of the loads' medians; None where a sample is not positive, and so has none.

    Raises:
        ValueError: as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    if any(min(load) < 1 / LARGEST for load in loads):
        return None
    return [math.log(median(load)) for load in loads]


def median_variance(sides: Sequence[Loads]) -> float:
    """Sampling variance of the logarithm of a load's median, as samples vary around the medians of their loads.

    By the median of the absolute deviations of all of them, which a stray sample does not change. 0 where no load has
    two samples.

    Args:
        sides: the loads of each run; samples are positive.
    """
    deviations: list[float] = []
    loads = [load for side in sides for load in side]
    for load in loads:
        middle = math.log(median(load))
        deviations.extend(abs(math.log(sample) - middle) for sample in load)
    n = len(deviations)
    if n == len(loads):
        return 0.0
    variance = (_MAD_TO_SD * median(deviations)) ** 2 * n / (n - len(loads))
    return _MEDIAN_INEFFICIENCY * variance * len(loads) / n
