"""Means of few samples: where a sample costs minutes, there are too few for an interval without any assumption."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_llmbench.core.statistics import CONFIDENCE, LARGEST, Interval, as_array


def mean_interval(samples: Sequence[float]) -> Interval | None:
    """95 % interval of the mean by Student's t, for about normal samples; None for fewer than two.

    Source: Student, *The Probable Error of a Mean*, Biometrika 6(1), 1908.

    Raises:
        ValueError: as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    values = as_array(samples)
    n = values.size
    if n < 2:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * float(values.std(ddof=1)) / math.sqrt(n)
    mean = float(values.mean())
    return Interval(mean - half, mean + half)


def log_mean_interval(samples: Sequence[float]) -> tuple[float, Interval | None]:
    """Geometric mean of positive samples, and its 95 % interval by Student's t on their logarithms.

    For rates and times, whose noise is about proportional to them. None for fewer than two samples, and where the
    interval reaches beyond 1e150: two samples that are many powers of ten apart.

    Raises:
        ValueError: no samples, or one that is not positive; as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    import numpy as np

    values = as_array(samples)
    if values.size == 0 or values.min() <= 0:
        msg = "a geometric mean needs positive samples" if values.size else "the mean of no samples does not exist"
        raise ValueError(msg)
    logs = np.log(values)
    around = mean_interval(logs.tolist())
    mean = math.exp(float(logs.mean()))
    if around is None or around.high > math.log(LARGEST):
        return mean, None
    return mean, Interval(math.exp(around.low), math.exp(around.high))
