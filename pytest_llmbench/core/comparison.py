"""Two groups of samples: do they differ, by how much, and how sure is that when many are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, combinations
from typing import TYPE_CHECKING

from pytest_llmbench.core.statistics import CONFIDENCE, LARGEST, Interval, as_array

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

_EXACT_PAIRS = 400  # beyond 20 against 20, the normal distribution is as good as the exact one
_EXACT_SPLITS = 20_000  # with ties, every split of the samples into two groups is counted, up to so many
_MOST_SAMPLES = 1000  # of a group, whose pairs are formed


def mann_whitney_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p-value of the Mann-Whitney test that samples of neither group tend to be larger.

    Exact for up to 400 pairs without ties, and with ties for up to 20 000 ways to split the samples (8 against 8);
    else by the normal approximation. Source: H. B. Mann and D. R. Whitney, *On a Test of Whether one of Two Random
    Variables is Stochastically Larger than the Other*, Annals of Mathematical Statistics 18(1), 1947.

    Raises:
        ValueError: a group is empty; as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    import numpy as np

    first, second = _groups(a, b)
    pooled = np.concatenate([first, second])
    if pooled.min() == pooled.max():
        return 1.0
    from scipy.stats import mannwhitneyu

    tied = np.unique(pooled).size < pooled.size
    if tied and math.comb(pooled.size, first.size) <= _EXACT_SPLITS:
        return _p_of_all_splits(pooled, first.size)
    method = "exact" if not tied and first.size * second.size <= _EXACT_PAIRS else "asymptotic"
    return float(min(1.0, mannwhitneyu(first, second, alternative="two-sided", method=method).pvalue))


def hodges_lehmann_ratio(new: Sequence[float], old: Sequence[float]) -> tuple[float, Interval | None]:
    """How many times the old samples the new ones are, and the 95 % interval of that.

    The median of the logarithms of all ratios of a new to an old sample; the interval inverts the Mann-Whitney test and
    takes samples for independent. None where the groups are too small for one (3 against 3, say). Source: J. L. Hodges
    and E. L. Lehmann, *Estimates of Location Based on Rank Tests*, Annals of Mathematical Statistics 34(2), 1963;
    the interval: M. Hollander, D. A. Wolfe and E. Chicken, *Nonparametric Statistical Methods*, 3rd ed., 2014,
    section 4.3. Of a group of more than 1000 samples, as many quantiles stand for them.

    Raises:
        ValueError: a group is empty or has a sample below 1e-150; as
            :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    import numpy as np

    above, below = _groups(new, old)
    if min(above.min(), below.min()) < 1 / LARGEST:
        msg = f"a ratio needs positive samples, of {1 / LARGEST} or more"
        raise ValueError(msg)
    pairs = np.sort(np.subtract.outer(_representatives(np.log(above)), _representatives(np.log(below))).ravel())
    ratio = math.exp(float(np.median(pairs)))
    outside = _pairs_outside(above.size, below.size)
    if outside == 0:
        return ratio, None
    index = int((outside - 1) * (pairs.size / (above.size * below.size)))
    low, high = math.exp(float(pairs[index])), math.exp(float(pairs[pairs.size - 1 - index]))
    return ratio, Interval(min(low, ratio), max(high, ratio))


def cliffs_delta(new: Sequence[float], old: Sequence[float]) -> float:
    """How far two groups are apart, from −1 (every new sample is smaller than every old one) over 0 to 1.

    P(new > old) − P(new < old) over all pairs. Source: N. Cliff, *Dominance Statistics: Ordinal Analyses to Answer
    Ordinal Questions*, Psychological Bulletin 114(3), 1993.

    Raises:
        ValueError: a group is empty; as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    import numpy as np

    above, below = _groups(new, old)
    ordered = np.sort(below)
    larger = int(np.searchsorted(ordered, above, side="left").sum())
    smaller = int((below.size - np.searchsorted(ordered, above, side="right")).sum())
    return (larger - smaller) / (above.size * below.size)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in their order: calling those below 5 % errs in 5 % of all families.

    Source: S. Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, Scandinavian Journal of Statistics
    6(2), 1979.

    Raises:
        ValueError: one is not between 0 and 1.
    """
    wrong = next((p for p in p_values if not 0 <= p <= 1), None)
    if wrong is not None:
        msg = f"{wrong} is no p-value; they lie between 0 and 1"
        raise ValueError(msg)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _groups(a: Sequence[float], b: Sequence[float]) -> tuple[NDArray[float64], NDArray[float64]]:
    if not len(a) or not len(b):
        msg = "a comparison needs samples on both sides"
        raise ValueError(msg)
    return as_array(a), as_array(b)


def _p_of_all_splits(pooled: NDArray[float64], n: int) -> float:
    """Twice the share of all splits into n samples and the rest whose rank sum is as far out as that of the first n."""
    import numpy as np
    from scipy.stats import rankdata

    doubled_ranks = np.rint(2 * rankdata(pooled)).astype(np.int64)  # whole numbers, so that equal sums are equal
    fewer = min(n, pooled.size - n)
    observed = (doubled_ranks[:n] if n == fewer else doubled_ranks[n:]).sum()
    splits = np.array(list(combinations(range(pooled.size), fewer)))
    sums = doubled_ranks[splits].sum(axis=1)
    return min(1.0, 2 * min(float((sums >= observed).mean()), float((sums <= observed).mean())))


def _representatives(values: NDArray[float64]) -> NDArray[float64]:
    """The values, shape (n,), or as many quantiles of them as pairs can be formed of."""
    if values.size <= _MOST_SAMPLES:
        return values
    import numpy as np

    return np.quantile(values, (np.arange(_MOST_SAMPLES) + 0.5) / _MOST_SAMPLES)


def _pairs_outside(n: int, m: int) -> int:
    """The rank of the pair that is the interval's end, of n · m pairs from either side; 0 where there is none.

    The largest k with P(U < k) ≤ 2.5 %, where U is Mann and Whitney's count without a difference: exact up to 400
    pairs, else normal.
    """
    tail = (1 - CONFIDENCE) / 2
    if n * m > _EXACT_PAIRS:
        from scipy.special import ndtri

        return max(0, math.floor(n * m / 2 + float(ndtri(tail)) * math.sqrt(n * m * (n + m + 1) / 12)))
    most = tail * math.comb(n + m, n)
    return sum(below <= most for below in accumulate(_splits_by_u(n, m)))


def _splits_by_u(n: int, m: int) -> list[int]:
    """Of all ways to split n + m ranks into two groups, how many have each U: 0, 1, …, n · m.

    The coefficients of the Gaussian binomial ∏ᵢ (1 − qⁿ⁺ⁱ) / (1 − qⁱ), i = 1…m; see G. E. Andrews, *The Theory of
    Partitions*, 1976, chapter 3.
    """
    ways = [1] + [0] * (n * m)
    for i in range(1, m + 1):
        for u in range(n * m, n + i - 1, -1):
            ways[u] -= ways[u - n - i]
        for u in range(i, n * m + 1):
            ways[u] += ways[u - i]
    return ways
