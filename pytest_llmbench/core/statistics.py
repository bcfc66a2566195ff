"""The arithmetic of measured samples: intervals, the stopping rule, evenness of a stream.

numpy and scipy are imported when first needed: together they cost most of a second, and a run that measures nothing
should not pay for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
StopReason = Literal["precise", "max_samples", "time_budget"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float


def median(samples: Sequence[float]) -> float:
    """Sample median. Raises ValueError for no samples."""
    if not samples:
        msg = "the median of no samples does not exist"
        raise ValueError(msg)
    import numpy as np

    return float(np.median(samples))


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Distribution-free confidence interval for the median from order statistics.

    The interval is [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎] with the largest k for which P(Bin(n, ½) < k) ≤ (1 − confidence) / 2; see
    H. A. David and H. N. Nagaraja, *Order Statistics*, 3rd ed., 2003, section 7.1. With fewer than six samples no
    such interval reaches 95 %, and None is returned.
    """
    n = len(samples)
    tail = (1 - confidence) / 2
    if n == 0 or 0.5**n > tail:
        return None
    from scipy.special import bdtr

    k = 1
    while k + 1 <= n // 2 and bdtr(k, n, 0.5) <= tail:
        k += 1
    ordered = sorted(samples)
    return Interval(float(ordered[k - 1]), float(ordered[n - k]))


def has_trend(samples: Sequence[float], significance: float = 0.05) -> bool:
    """Whether samples rise or fall with their order: Mann-Kendall test, as Kendall's tau against the index."""
    if len(samples) < 4 or min(samples) == max(samples):
        return False
    from scipy.stats import kendalltau

    return bool(kendalltau(range(len(samples)), samples).pvalue < significance)


def window_rates(token_times_seconds: Sequence[float], tokens_per_event: float, window: int) -> list[float]:
    """Token rates over consecutive windows of one stream, in tokens per second.

    Args:
        token_times_seconds: arrival time of each event that carried text, ascending.
        tokens_per_event: tokens of the answer divided by such events; 1 for most servers.
        window: intervals per window. A remainder shorter than a window is left out.
    """
    rates = []
    for start in range(0, len(token_times_seconds) - window, window):
        elapsed = token_times_seconds[start + window] - token_times_seconds[start]
        if elapsed > 0:
            rates.append(window * tokens_per_event / elapsed)
    return rates


def variation_percent(groups: Sequence[Sequence[float]]) -> tuple[float, Interval | None]:
    """Coefficient of variation of all values, in percent, with an interval that respects their grouping.

    The interval is a jackknife over groups (delete one request at a time) of log CV, centred on its bias-corrected
    value, with Student's t: windows of one request resemble each other, so requests, not windows, are the independent
    units. Source: B. Efron and C. Stein, *The Jackknife Estimate of Variance*, Annals of Statistics 9(3), 1981. It is
    widened to hold the point estimate. At six groups it is a 95 % interval when requests resemble each other; by
    simulation it covers some 88 % when they differ as much as the windows within them. None with fewer than three
    groups, or when nothing varies.

    Raises:
        ValueError: fewer than two values in all.
    """
    import numpy as np

    def cv(parts: Sequence[Sequence[float]]) -> float:
        values = np.concatenate([np.asarray(part, dtype=float) for part in parts])
        if values.size < 2:
            msg = "a coefficient of variation needs at least two values"
            raise ValueError(msg)
        return float(100 * values.std(ddof=1) / values.mean())

    parts = [group for group in groups if len(group)]
    point = cv(parts) if parts else cv([[]])
    m = len(parts)
    if m < 3 or point == 0 or sum(len(p) for p in parts) - max(len(p) for p in parts) < 2:
        return point, None
    leave_one_out = np.array([cv(parts[:i] + parts[i + 1 :]) for i in range(m)])
    if (leave_one_out <= 0).any():
        return point, None
    from scipy.special import stdtrit

    logs = np.log(leave_one_out)
    standard_error = math.sqrt((m - 1) / m * float(((logs - logs.mean()) ** 2).sum()))
    half = float(stdtrit(m - 1, (1 + CONFIDENCE) / 2)) * standard_error
    centre = m * math.log(point) - (m - 1) * float(logs.mean())
    return point, Interval(min(point, math.exp(centre - half)), max(point, math.exp(centre + half)))


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """When enough has been sampled.

    Attributes:
        target_half_width_percent: of the headline metric's interval, relative to its median.
        max_seconds: time budget; ``min_samples`` are taken whatever they cost.
        limits: metric name → limits; sampling goes on while a metric's interval straddles one.
    """

    min_samples: int
    max_samples: int
    target_half_width_percent: float
    max_seconds: float
    limits: Mapping[str, Sequence[float]]

    def stop_reason(
        self, headline: Sequence[float], judged: Mapping[str, Interval | None], elapsed_seconds: float
    ) -> StopReason | None:
        """Why sampling may stop now, None to take another sample.

        Args:
            headline: samples of the metric whose interval must be narrow and free of trend.
            judged: intervals by metric name, of everything that thresholds may judge.
        """
        if len(headline) < self.min_samples:
            return None
        precise = self.is_narrow(headline) and not has_trend(headline)
        if precise and not any(self._straddles(*metric) for metric in judged.items()):
            return "precise"
        if len(headline) >= self.max_samples:
            return "max_samples"
        return "time_budget" if elapsed_seconds >= self.max_seconds else None

    def is_narrow(self, samples: Sequence[float]) -> bool:
        """Whether the interval of the median is within the target."""
        interval = median_interval(samples)
        if interval is None:
            return False
        half_width = (interval.high - interval.low) / 2
        return half_width <= self.target_half_width_percent / 100 * abs(median(samples))

    def _straddles(self, name: str, interval: Interval | None) -> bool:
        return interval is not None and any(interval.low < limit < interval.high for limit in self.limits.get(name, ()))
