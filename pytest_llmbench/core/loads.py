"""Several loads of the same model: restarts are a level of their own, above the samples taken within one."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmbench.core.means import mean_interval
from pytest_llmbench.core.statistics import Interval, as_array, median, median_interval

SIGNIFICANCE = 0.01
_PERMUTATIONS = 4999
_MANY_SAMPLES = 200  # chi-squared is good enough then, and as many permutations would take long


def over_loads(groups: Sequence[Sequence[float]]) -> tuple[float, Interval | None]:
    """The median of the loads' medians, and a 95 % interval that knows how loads differ.

    Student's t on the loads' medians, which are the independent units, never narrower than the order-statistic interval
    of all samples, and widened to hold the point. With one load: the median of its samples and their order-statistic
    interval, which knows nothing of restarts.

    Args:
        groups: samples by load; loads without samples do not count.

    Raises:
        ValueError: no samples at all; as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    loads = _filled(groups)
    pooled = [sample for load in loads for sample in load]
    pooled_interval = median_interval(pooled)
    if len(loads) < 2:
        return median(pooled), pooled_interval
    medians = [median(load) for load in loads]
    point = median(medians)
    found = [interval for interval in (mean_interval(medians), pooled_interval) if interval is not None]
    low, high = min(interval.low for interval in found), max(interval.high for interval in found)
    return point, Interval(min(low, point), max(high, point))


def loads_differ(groups: Sequence[Sequence[float]]) -> bool:
    """Whether samples differ more between loads than within them, at 1 %.

    The Kruskal-Wallis test. Up to 200 samples its distribution is taken from 4999 random permutations of them (always
    the same ones), as three samples per load are too few for the chi-squared approximation. Two loads of four samples,
    or three of two, can never show a difference at 1 %. Source: W. H. Kruskal and W. A. Wallis, *Use of Ranks in
    One-Criterion Variance Analysis*, JASA 47, 1952.

    Raises:
        ValueError: as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    import numpy as np
    from scipy.stats import kruskal, rankdata

    loads = [as_array(load) for load in _filled(groups)]
    if len(loads) < 2:
        return False
    pooled = np.concatenate(loads)
    if pooled.min() == pooled.max():
        return False
    if pooled.size > _MANY_SAMPLES:
        return bool(kruskal(*loads).pvalue < SIGNIFICANCE)
    sizes, ranks = np.array([load.size for load in loads]), rankdata(pooled)
    orders = np.random.default_rng(0).permuted(np.tile(ranks, (_PERMUTATIONS, 1)), axis=1)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    # All that varies in the statistic: the loads' rank sums, squared, over their sizes.
    observed = (np.add.reduceat(ranks, starts) ** 2 / sizes).sum()
    shuffled = (np.add.reduceat(orders, starts, axis=1) ** 2 / sizes).sum(axis=1)
    as_extreme = int((shuffled >= observed * (1 - 1e-12)).sum())
    return (1 + as_extreme) / (1 + _PERMUTATIONS) < SIGNIFICANCE


def between_load_spread_percent(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation of the loads' medians, in percent of their mean; None for fewer than two loads.

    What samples vary within a load is in it too, and not taken off: with few loads that would too often leave nothing,
    and a spread taken for 0 calls every small difference a regression. None also where the mean is 0.

    Raises:
        ValueError: as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    medians = as_array([median(load) for load in _filled(groups)])
    if medians.size < 2 or medians.mean() == 0:
        return None
    return float(100 * medians.std(ddof=1) / abs(medians.mean()))


def _filled(groups: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    return [load for load in groups if len(load)]
