"""Samples far off the others: they are named, never dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pytest_llmbench.core.statistics import as_array

Rule = Literal["modified_z", "two_mad"]

LEAST_SAMPLES = 3
# MAD of normal samples is 0.6745 standard deviations, so a modified z-score of 3.5 is this many MADs.
_LIMIT_MADS: dict[Rule, float] = {"modified_z": 3.5 / 0.6745, "two_mad": 2.0}
# Where half of the samples or more are equal, as clocks tick and counters count, MAD is 0 and any other sample would be
# infinitely far off. Then a difference must matter to count: 5 %, the precision that samples are taken to by default.
_TOLERANCE = 0.05
_NO_SPREAD = 1e-9  # of the median: rounding, not a spread


def outliers(samples: Sequence[float], rule: Rule = "modified_z") -> list[int]:
    """Indices of the samples that lie far off the median, ascending; none with fewer than three samples.

    ``modified_z``: 0.6745 · |x − median| / MAD > 3.5, where MAD is the median absolute deviation from the median;
    source: B. Iglewicz and D. C. Hoaglin, *How to Detect and Handle Outliers*, 1993. ``two_mad``: the founding rule,
    |x − median| > 2 · MAD. Both are a reason to measure again, no more: of clean cells of six normal samples, the first
    finds an outlier in 14 %, the second in 77 %; at twenty samples, in 9 % and 97 %.

    Where MAD is 0, those are outliers, by either rule, that differ from the median by more than 5 % of it.

    Raises:
        ValueError: as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    values = as_array(samples)
    if values.size < LEAST_SAMPLES:
        return []
    import numpy as np

    centre = np.median(values)
    distances = np.abs(values - centre)
    mad = np.median(distances)
    if mad > _NO_SPREAD * abs(centre):
        limit = _LIMIT_MADS[rule] * mad
    else:
        limit = _TOLERANCE * abs(centre)
    return [int(index) for index in np.flatnonzero(distances > limit)]
