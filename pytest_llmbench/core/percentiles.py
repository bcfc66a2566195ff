"""Percentiles, as far as the number of samples allows."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmbench.core.statistics import as_array, quantile_interval

_PERCENTS = (50, 90, 95, 99)


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """Percentiles by name (``p50``, ``p90``, ``p95``, ``p99``), in the samples' unit.

    Only those that have a 95 % interval from order statistics, both ends of it: from 6, 36, 72 and 368 samples on.
    Between two samples, values are interpolated (definition 7 of R. J. Hyndman and Y. Fan, *Sample Quantiles in
    Statistical Packages*, The American Statistician 50(4), 1996), so ``p50`` is the median.

    Raises:
        ValueError: as :func:`~pytest_llmbench.core.statistics.as_array`.
    """
    values = as_array(samples)
    supported = [percent for percent in _PERCENTS if quantile_interval(samples, percent / 100) is not None]
    if not supported:
        return {}
    import numpy as np

    return {f"p{percent}": float(np.percentile(values, percent)) for percent in supported}
