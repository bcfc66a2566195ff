"""Trends: how much a quantity changes with another, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmbench.core.statistics import CONFIDENCE, LARGEST, as_array, mann_kendall_p

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

__all__ = ["Slope", "mann_kendall_p", "theil_sen"]

LEAST_POINTS = 4
MOST_POINTS = 1000  # half a million pairs, 4 MB; a slope is no surer for more


@dataclass(frozen=True, slots=True)
class Slope:
    """How much y changes when x grows by one, with its 95 % interval.

    Attributes:
        p_value: two-sided, of Kendall's test that y does not depend on x.
    """

    per_unit: float
    low: float
    high: float
    p_value: float


def theil_sen(x: Sequence[float], y: Sequence[float]) -> Slope | None:
    """Median of the slopes between all pairs of points: a third of the points may be wild, and it stays where it is.

    The interval inverts Kendall's test, so it holds for any distribution, but it takes points for independent. With
    four points it is the range of all slopes, which covers 92 %, not 95 %; where x has ties it may cover still less
    (two points at each of two x: 67 %). Beyond 1000 points, the medians of as many blocks of neighbours are taken for
    them, because pairs grow with the square. Source: P. K. Sen, *Estimates of the Regression Coefficient Based on
    Kendall's Tau*, JASA 63, 1968.

    Args:
        x: n positions, in any order; ties are allowed.
        y: n values.

    Returns:
        In units of y per unit of x; None for fewer than four points or where all of x is equal.

    Raises:
        ValueError: x and y differ in length; a number is not finite or too large, or a slope would be.
    """
    if len(x) != len(y):
        msg = f"{len(x)} positions and {len(y)} values make no points"
        raise ValueError(msg)
    at, values = _thinned(as_array(x), as_array(y))
    if at.size < LEAST_POINTS or at.min() == at.max():
        return None
    import numpy as np
    from scipy.stats import kendalltau

    slopes = _pairwise_slopes(at, values)
    low, high = _ends(at, slopes.size)
    p_value = 1.0 if values.min() == values.max() else float(kendalltau(at, values).pvalue)
    return Slope(float(np.median(slopes)), float(slopes[low]), float(slopes[high]), p_value)


def _pairwise_slopes(x: NDArray[float64], y: NDArray[float64]) -> NDArray[float64]:
    """The slopes between all points of different x, ascending. Raises ValueError for one that is too steep."""
    import numpy as np

    first, second = np.triu_indices(x.size, 1)
    dx, dy = x[second] - x[first], y[second] - y[first]
    with np.errstate(over="ignore"):
        slopes = np.sort(dy[dx != 0] / dx[dx != 0])
    if np.abs(slopes).max() > LARGEST:
        msg = "some positions are too close to each other for a slope"
        raise ValueError(msg)
    return slopes


def _ends(x: NDArray[float64], pairs: int) -> tuple[int, int]:
    """Which of the ordered slopes are the ends of the interval: Kendall's S is about normal, with this variance.

    Ties in y are not taken off the variance, which makes the interval wider; ``scipy.stats.theilslopes`` does take them
    off, and its variance is negative where x has ties as well.
    """
    import numpy as np
    from scipy.special import ndtri

    ties = np.unique(x, return_counts=True)[1]
    variance = (_orders(float(x.size)) - sum(_orders(float(tied)) for tied in ties)) / 18
    reach = float(ndtri((1 + CONFIDENCE) / 2)) * variance**0.5
    return max(round((pairs - reach) / 2) - 1, 0), min(round((pairs + reach) / 2), pairs - 1)


def _orders(n: float) -> float:
    return n * (n - 1) * (2 * n + 5)


def _thinned(x: NDArray[float64], y: NDArray[float64]) -> tuple[NDArray[float64], NDArray[float64]]:
    """At most ``MOST_POINTS`` points, (n,) each: the medians of neighbours in x where there are more."""
    if x.size <= MOST_POINTS:
        return x, y
    import numpy as np

    order = np.argsort(x, kind="stable")
    blocks = np.array_split(order, MOST_POINTS)
    return np.array([np.median(x[block]) for block in blocks]), np.array([np.median(y[block]) for block in blocks])
