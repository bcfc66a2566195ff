"""Shares of yes and no: the interval of one, the difference of two on the same questions."""

from __future__ import annotations

import math
from functools import lru_cache

from pytest_llmbench.core.statistics import CONFIDENCE, Interval

_COUNTED = 1000  # beyond so many, whole numbers become slower than scipy


@lru_cache(maxsize=4096)
def wilson(successes: int, n: int) -> Interval:
    """95 % score interval of a share, as fractions from 0 to 1; with nothing asked it is all of that.

    Source: E. B. Wilson, *Probable Inference, the Law of Succession, and Statistical Inference*, JASA 22, 1927.

    Raises:
        ValueError: ``successes`` is negative or more than ``n``.
    """
    if not 0 <= successes <= n:
        msg = f"{successes} of {n} is no share"
        raise ValueError(msg)
    if n == 0:
        return Interval(0.0, 1.0)
    from scipy.stats import binomtest

    found = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), float(found.high))


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact McNemar test: are two solvers of the same questions equally good?

    Questions that both solve, or neither, say nothing; of the others, each solver should have half. 1 where there are
    none. Source: Q. McNemar, *Note on the Sampling Error of the Difference Between Correlated Proportions*,
    Psychometrika 12, 1947, with the binomial distribution itself.

    Args:
        only_first: questions that the first solved and the second did not.
        only_second: the other way round.

    Raises:
        ValueError: a count is negative.
    """
    if min(only_first, only_second) < 0:
        msg = f"{only_first} and {only_second} are no counts of questions"
        raise ValueError(msg)
    n = only_first + only_second
    if n > _COUNTED:
        from scipy.stats import binomtest

        return float(binomtest(only_first, n).pvalue)
    # Whole numbers are exact, and a hundred times as quick: a report of many quantizations makes thousands of these.
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return float(min(1.0, 2 * tail / 2**n))
