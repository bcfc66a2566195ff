"""A level that changes at one moment: when, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmbench.core.comparison import hodges_lehmann_ratio
from pytest_llmbench.core.statistics import Interval, as_array

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

LEAST_SIDE = 3  # samples before and after
LEAST_SHARE = 0.1  # of all samples before and after: what happens at the very ends is no new level
MOST_SAMPLES = 1000
_SHUFFLES = 1999


@dataclass(frozen=True, slots=True)
class Change:
    """The likeliest moment at which a level changed.

    Attributes:
        index: of the first sample after it.
        ratio: what comes after over what comes before: Hodges-Lehmann.
        interval: of the ratio, 95 %, as if the moment had been known.
        p_value: two-sided, that there is no change at all; at least 1 / 2000.
    """

    index: int
    ratio: float
    interval: Interval | None
    p_value: float


def change_point(samples: Sequence[float]) -> Change | None:
    """Where samples before and after differ most, by the largest of the standardized rank sums of all splits.

    Neither the moment nor a distribution has to be known: that the largest one is selected is allowed for by shuffling
    the samples 1999 times, always the same way. Samples are taken for independent. Beyond 1000, the medians of as many
    blocks of neighbours are taken for them. Source: B. Lausen and M. Schumacher, *Maximally Selected Rank Statistics*,
    Biometrics 48(1), 1992.

    Args:
        samples: n positive numbers, in the order of time.

    Returns:
        None for fewer than six samples, or where all are equal.

    Raises:
        ValueError: a sample is not positive; as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    values = as_array(samples)
    if values.size < 2 * LEAST_SIDE or values.min() == values.max():
        return None
    import numpy as np
    from scipy.stats import rankdata

    blocks = np.array_split(np.arange(values.size), min(values.size, MOST_SAMPLES))
    ranks = rankdata([np.median(values[block]) for block in blocks])
    # The split that was found is the first row; what shuffled samples would have shown are the others.
    shuffled = np.random.default_rng(0).permuted(np.tile(ranks, (_SHUFFLES, 1)), axis=1)
    split, largest = _largest(np.vstack([ranks, shuffled]))
    p_value = float((largest >= largest[0] - 1e-9).mean())
    index = int(blocks[split][0])
    ratio, interval = hodges_lehmann_ratio(values[index:].tolist(), values[:index].tolist())
    return Change(index, ratio, interval, p_value)


def _largest(ranks: NDArray[float64]) -> tuple[int, NDArray[float64]]:
    """The best split of the first row, and every row's largest rank sum in standard deviations, (m,) for ranks (m, n).

    The sum of t of n ranks, drawn without replacement, has the variance t · (n − t) / n · s².
    """
    import numpy as np

    n = ranks.shape[1]
    edge = max(LEAST_SIDE, math.ceil(LEAST_SHARE * n))
    sizes = np.arange(edge, n - edge + 1)
    sums = np.cumsum(ranks - ranks.mean(axis=1, keepdims=True), axis=1)[:, edge - 1 : n - edge]
    deviations = np.sqrt(sizes * (n - sizes) / n) * ranks[0].std(ddof=1)
    standardized = np.abs(sums) / deviations
    return int(sizes[np.argmax(standardized[0])]), standardized.max(axis=1)
