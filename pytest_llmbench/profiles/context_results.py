"""What filling a context has shown: size by size, and in the metrics of the long context profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pytest_llmbench.core.means import log_mean_interval
from pytest_llmbench.core.proportions import wilson
from pytest_llmbench.core.records import RequestRecord, TelemetryRecord
from pytest_llmbench.core.statistics import CONFIDENCE, Interval, median
from pytest_llmbench.core.trends import Slope, theil_sen
from pytest_llmbench.errors import Primitive
from pytest_llmbench.profiles.base import Measurement
from pytest_llmbench.profiles.context_prompts import LongPrompt
from pytest_llmbench.profiles.sampling import MANY_LATE
from pytest_llmbench.profiles.streams import prefill_rates, server_disagrees


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Of the server while a size was measured, in bytes; None where it can not be read.

    Attributes:
        peak_bytes: PSS where it is known, else RSS.
        swap_bytes: the most that was swapped out.
        swap_growth_bytes: by how much that was more than before.
    """

    peak_bytes: float | None = None
    swap_bytes: float | None = None
    swap_growth_bytes: float | None = None

    @classmethod
    def of(cls, readings: Sequence[TelemetryRecord]) -> MemoryUse:
        """From what was read before, during and after, in this order."""
        resident = _series(readings, "server_pss_bytes") or _series(readings, "server_rss_bytes")
        swapped = _series(readings, "server_swap_bytes")
        if not swapped:
            return cls(max(resident, default=None))
        return cls(max(resident, default=None), max(swapped), max(swapped) - swapped[0])


@dataclass
class SizeResult:
    """One context size.

    Attributes:
        cold: requests with a fresh prompt that filled it.
        full: those of them whose answer had the length asked for.
        warm: requests that went on with a conversation the server had just read.
        facts: a row for each planted fact that was asked for.
        failure: why it was not measured, or not to the end.
    """

    context_tokens: int
    cold: list[RequestRecord] = field(default_factory=list)
    full: list[RequestRecord] = field(default_factory=list)
    warm: list[RequestRecord] = field(default_factory=list)
    facts: list[dict[str, Primitive]] = field(default_factory=list)
    memory: MemoryUse = field(default_factory=MemoryUse)
    failure: str | None = None

    @property
    def loads(self) -> list[float]:
        """Seconds from sending to the first token."""
        return [record.ttft_seconds for record in self.cold if record.ttft_seconds is not None]

    @property
    def rates(self) -> list[float]:
        """Decode rates in tokens per second."""
        return [r.decode_tokens_per_second for r in self.full if r.decode_tokens_per_second is not None]

    @property
    def warm_seconds(self) -> list[float]:
        """Seconds from sending one more turn to the first token of its answer."""
        return [record.ttft_seconds for record in self.warm if record.ttft_seconds is not None]

    @property
    def recalled(self) -> int:
        """How many facts were answered."""
        return sum(bool(row["recalled"]) for row in self.facts)

    def add_fact(self, prompt: LongPrompt, answer: str) -> None:
        """Note what a prompt's question was answered with."""
        row: dict[str, Primitive] = {
            "context_tokens": self.context_tokens,
            "place_percent": prompt.place_percent,
            "fact": prompt.fact.sentence,
            "answer": answer,
            "recalled": prompt.fact.is_answered_by(answer),
        }
        self.facts.append(row)

    def is_too_slow(self, limit_seconds: float | None) -> bool:
        """Whether the loads are above a limit beyond doubt: their whole interval is."""
        if limit_seconds is None or len(self.loads) < 2:
            return False
        _, interval = log_mean_interval(self.loads)
        return interval is not None and interval.low > limit_seconds

    def why_unusable(self, limit_seconds: float | None) -> str | None:
        """What keeps this context from being of use, None where nothing does."""
        if self.failure is not None or not self.loads:
            return self.failure or "no load was measured"
        seconds, _ = log_mean_interval(self.loads)
        if limit_seconds is not None and seconds > limit_seconds:
            return f"took {seconds:.1f} s to load, more than the limit of {limit_seconds:g} s"
        if self.memory.swap_growth_bytes:
            return f"{self.memory.swap_growth_bytes / 1e9:.3f} GB of the server's memory were swapped out meanwhile"
        if 2 * self.recalled < len(self.facts):
            return f"only {self.recalled} of {len(self.facts)} planted facts were answered"
        return None

    def row(self, limit_seconds: float | None) -> dict[str, Primitive]:
        """The row of the table of sizes; what was not measured is None."""
        reason, memory = self.why_unusable(limit_seconds), self.memory
        prompt_tokens = min((record.prompt_tokens or 0 for record in self.cold), default=None)
        filled = None if prompt_tokens is None else 100 * prompt_tokens / self.context_tokens
        return {
            "context_tokens": self.context_tokens,
            "prompt_tokens": prompt_tokens,
            "filled_percent": filled,
            "load_seconds": _middle(self.loads),
            "prefill_tokens_per_second": _middle(prefill_rates(self.cold)),
            "decode_tokens_per_second": _middle(self.rates),
            "warm_seconds": _middle(self.warm_seconds),
            "recalled": self.recalled if self.facts else None,
            "facts": len(self.facts) if self.facts else None,
            "memory_gb": None if memory.peak_bytes is None else memory.peak_bytes / 1e9,
            "swap_gb": None if memory.swap_bytes is None else memory.swap_bytes / 1e9,
            "usable": reason is None,
            "reason": reason,
        }


def summarise(results: Sequence[SizeResult], limit_seconds: float | None, target_percent: float) -> Measurement:
    """The metrics of all sizes, and the tables they come from.

    Args:
        results: in ascending order, those that were not tried included.
        limit_seconds: of loading a context; None: there is none.
        target_percent: half width that the intervals should have at most.
    """
    measurement = Measurement()
    measured = [result for result in results if result.loads]
    largest = measured[-1]
    _add_mean(measurement, "context_load_seconds", largest.loads)
    _add_mean(measurement, "prefill_tokens_per_second", prefill_rates(largest.cold))
    _add_mean(measurement, "depth_tokens_per_second", largest.rates)
    _add_mean(measurement, "warm_continuation_seconds", largest.warm_seconds)
    _add_slowdown(measurement, measured)
    _add_recall(measurement, measured)
    _add_usable(measurement, results, limit_seconds)
    measurement.details["sizes"] = [result.row(limit_seconds) for result in results]
    measurement.details["facts"] = [row for result in measured for row in result.facts]
    _add_doubts(measurement, measured, target_percent)
    return measurement


def slowdown(results: Sequence[SizeResult]) -> tuple[Slope | None, int]:
    """How much of the smallest context's decode rate is lost per 1000 tokens of prompt, in percent; and of how many
    points that is the slope. None with fewer than two sizes or four points.

    All prompts of a size count as equally long, as where they are not quite, a token of difference would be a slope.
    """
    deep = [result for result in results if result.rates]
    if len(deep) < 2:
        return None, 0
    at_first, _ = log_mean_interval(deep[0].rates)
    points = [
        (median([record.prompt_tokens or 0 for record in result.full]) / 1000, 100 * (1 - rate / at_first))
        for result in deep
        for rate in result.rates
    ]
    return theil_sen([x for x, _ in points], [y for _, y in points]), len(points)


def _add_mean(measurement: Measurement, name: str, samples: list[float]) -> None:
    """Add a geometric mean: of something costly there are too few samples for a median's interval."""
    if samples:
        measurement.samples[name] = samples
        measurement.add(name, *log_mean_interval(samples), len(samples))


def _add_slowdown(measurement: Measurement, measured: Sequence[SizeResult]) -> None:
    slope, points = slowdown(measured)
    if slope is not None:
        interval = Interval(slope.low, slope.high) if _chance_of_order(measured) < 1 - CONFIDENCE else None
        measurement.add("slowdown_percent_per_1k_tokens", slope.per_unit, interval, points)


def _chance_of_order(measured: Sequence[SizeResult]) -> float:
    """How likely noise alone orders all rates by size: so often not even the range of all slopes holds the true one.

    A third for two sizes of two samples each, a tenth for two of three.
    """
    counts = [len(result.rates) for result in measured]
    return 2 * math.prod(map(math.factorial, counts)) / math.factorial(sum(counts))


def _add_recall(measurement: Measurement, measured: Sequence[SizeResult]) -> None:
    recalled, facts = sum(result.recalled for result in measured), sum(len(result.facts) for result in measured)
    share = wilson(recalled, facts)
    measurement.add("recall_percent", 100 * recalled / facts, Interval(100 * share.low, 100 * share.high), facts)


def _add_usable(measurement: Measurement, results: Sequence[SizeResult], limit_seconds: float | None) -> None:
    usable = [result.context_tokens for result in results if result.why_unusable(limit_seconds) is None]
    measurement.add_exact("largest_usable_context_tokens", max(usable, default=0))
    if not usable:
        smallest = next(result for result in results if result.loads)
        why = smallest.why_unusable(limit_seconds)
        measurement.notes.append(f"no context was usable; that of {smallest.context_tokens} tokens: {why}")


def _add_doubts(measurement: Measurement, measured: Sequence[SizeResult], target_percent: float) -> None:
    cold = [record for result in measured for record in result.cold]
    if any(record.output_tokens is None for record in cold):
        measurement.flag("tokens_not_counted")
    if sum(record.output_tokens is not None for record in cold) > sum(len(result.full) for result in measured):
        measurement.flag("short_answer")
    if any(result.memory.swap_growth_bytes for result in measured):
        measurement.flag("swapped")
    if any(result.memory.swap_growth_bytes is None for result in measured):
        measurement.notes.append("whether the server's memory was swapped could not be read here")
    if server_disagrees(cold):
        measurement.flag("server_timing_mismatch")
    if sum("client_late" in record.flags for record in cold) >= MANY_LATE * len(cold):
        measurement.flag("client_late")
    for name in ("context_load_seconds", "depth_tokens_per_second"):
        metric = measurement.metrics.get(name)
        if metric is None:
            continue
        low, high = metric.ci_low, metric.ci_high
        if low is None or high is None or (high - low) / 2 > target_percent / 100 * metric.value:
            measurement.flag("imprecise")


def _middle(samples: list[float]) -> float | None:
    return log_mean_interval(samples)[0] if samples else None


def _series(readings: Sequence[TelemetryRecord], name: str) -> list[float]:
    return [reading.values[name] for reading in readings if name in reading.values]
