"""From the requests of a load, read back line by line, to what they say together."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import Field

from pytest_llmbench.client.timings import ServerTimes
from pytest_llmbench.core.records import Finite, Record
from pytest_llmbench.core.statistics import CONFIDENCE, Interval, median, median_interval
from pytest_llmbench.errors import Primitive

SUMMARY_VERSION = 1
SHARES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
MANY_LATE = 0.2
TIMING_TOLERANCE = 0.05
CHUNKING_TOLERANCE = 0.02

# Which flags of a request say that a number of it means something else.
_NO_TTFT = frozenset({"prompt_cache_hit", "model_reloaded", "another_model_answered"})
_NO_RATE = frozenset({"short_answer", "another_model_answered"})


class Quantile(Record):
    """A quantile and its 95 % interval (None where the values depend on each other)."""

    value: Finite
    ci_low: Finite | None = None
    ci_high: Finite | None = None


class Spread(Record):
    """How a quantity is distributed over requests.

    Attributes:
        median: always there; its interval needs six requests.
        percentiles: only those for which there is a 95 % interval within the sample.
    """

    unit: str
    n: int
    median: Quantile
    percentiles: dict[str, Quantile] = Field(default_factory=dict)
    mean: Finite
    minimum: Finite
    maximum: Finite


class Failure(Record):
    """Requests that failed of one cause, and what was said of the first of them."""

    count: int
    first_message: str


class PromptLengths(Record):
    """Prompt tokens: what was wanted, what was sent, and what the server counted."""

    asked: int | None
    expected: int
    at_least: bool
    counted_min: int | None = None
    counted_max: int | None = None


class LoadSummary(Record):
    """``summary.json`` of a load.

    Attributes:
        load: what was asked for.
        server: what answered.
        client: the machine and the versions that measured.
        interrupted: it was stopped before all requests were sent; requests under way then are not counted.
        output_tokens_per_second: of all requests together, from the first one's start to the last one's end.
        flags: how many requests have which doubt.
        doubts: codes that put the whole load in doubt.
    """

    schema_version: int = SUMMARY_VERSION
    started_at: str
    load: dict[str, Primitive]
    server: dict[str, Primitive]
    client: dict[str, Any]
    interrupted: bool
    finished: int
    succeeded: int
    failed: int
    failures: dict[str, Failure]
    duration_seconds: Finite
    ttft_seconds: Spread | None
    ttft_from_schedule_seconds: Spread | None
    time_to_first_reasoning_seconds: Spread | None
    decode_tokens_per_second: Spread | None
    time_per_output_token_ms: Spread | None
    chunk_gap_ms: Spread | None
    output_tokens: int
    output_tokens_per_second: Finite | None
    requests_per_second: Finite | None
    tokens_per_chunk: Finite | None
    prompt_tokens: PromptLengths
    client_lag_p99_ms: Finite | None
    client_lag_max_ms: Finite
    retries: int
    flags: dict[str, int]
    doubts: list[str]
    notes: list[str]


def read_requests(path: Path) -> Iterator[dict[str, Any]]:
    """The requests of a file, one at a time; a torn last line, left by a full disk, is passed over."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def _numbers() -> array[float]:
    return array("d")


@dataclass
class Totals:
    """What is kept of each request: numbers, eight bytes each, and of the gaps only how often which length came."""

    failed: dict[str, Failure] = field(default_factory=dict)
    flags: Counter[str] = field(default_factory=Counter)
    gaps_us: Counter[int] = field(default_factory=Counter)
    ttft: array[float] = field(default_factory=_numbers)
    from_schedule: array[float] = field(default_factory=_numbers)
    reasoning: array[float] = field(default_factory=_numbers)
    rates: array[float] = field(default_factory=_numbers)
    lags_ms: array[float] = field(default_factory=_numbers)
    against_server: array[float] = field(default_factory=_numbers)
    finished: int = 0
    succeeded: int = 0
    retries: int = 0
    output_tokens: int = 0
    chunks: int = 0
    counted: int = 0
    prompt_min: int | None = None
    prompt_max: int | None = None
    begin_ns: int | None = None
    end_ns: int = 0

    @classmethod
    def of(cls, requests: Iterator[dict[str, Any]]) -> Totals:
        """Add up all requests but those of the warm-up."""
        totals = cls()
        for request in requests:
            if request["phase"] == "sample":
                totals.add(request)
        return totals

    @property
    def duration_seconds(self) -> float:
        """From the first request's start to the last one's end."""
        return (self.end_ns - self.begin_ns) / 1e9 if self.begin_ns is not None else 0.0

    def add(self, request: Mapping[str, Any]) -> None:
        """Take in one request."""
        self.finished += 1
        self.retries += request["retries"]
        self.flags.update(request["flags"])
        self.lags_ms.append(request["client_lag_ms"])
        if request["t_send_ns"]:  # one that could not be written down was never sent
            begin = request["t_send_ns"]
            self.begin_ns = begin if self.begin_ns is None else min(self.begin_ns, begin)
        self.end_ns = max(self.end_ns, request["t_end_ns"])
        read = request["prompt_tokens"]
        if read is not None:
            self.prompt_min = read if self.prompt_min is None else min(self.prompt_min, read)
            self.prompt_max = read if self.prompt_max is None else max(self.prompt_max, read)
        if not request["ok"]:
            known = self.failed.get(request["error"]) or Failure(count=0, first_message=request["error_message"] or "")
            self.failed[request["error"]] = known.model_copy(update={"count": known.count + 1})
            return
        self.succeeded += 1
        self._add_times(request, frozenset(request["flags"]))

    def _add_times(self, request: Mapping[str, Any], flags: frozenset[str]) -> None:
        if not flags & _NO_TTFT:
            _append(self.ttft, request["ttft_seconds"])
            _append(self.reasoning, request["time_to_first_reasoning_seconds"])
            if request["t_scheduled_ns"] is not None and request["t_first_token_ns"] is not None:
                self.from_schedule.append((request["t_first_token_ns"] - request["t_scheduled_ns"]) / 1e9)
        tokens, rate = request["output_tokens"], request["decode_tokens_per_second"]
        if tokens is not None:
            self.counted += 1
            self.output_tokens += tokens
            self.chunks += request["chunks"]
        if rate is not None and not flags & _NO_RATE:
            self.rates.append(rate)
            server_rate = ServerTimes.of(request["server_timings"]).decode_tokens_per_second
            if server_rate:
                self.against_server.append(rate / server_rate)
        offsets = request["token_offsets_us"]
        self.gaps_us.update(_three_digits(b - a) for a, b in pairwise(offsets))

    def doubts(self) -> list[str]:
        """What puts the whole load in doubt."""
        found = {flag for flag in self.flags if flag != "client_late"}
        if self.flags["client_late"] >= MANY_LATE * self.finished > 0:
            found.add("client_late")
        if self.against_server and abs(median(self.against_server) - 1) > TIMING_TOLERANCE:
            found.add("server_timing_mismatch")
        if self.chunks and abs(self.output_tokens / self.chunks - 1) > CHUNKING_TOLERANCE:
            found.add("chunked_stream")
        return sorted(found)


def _append(values: array[float], value: float | None) -> None:
    if value is not None:
        values.append(value)


def _three_digits(gap_us: int) -> int:
    """Rounded, so that the lengths of millions of gaps are some thousand numbers."""
    digits = len(str(gap_us))
    return round(gap_us, 3 - digits) if digits > 3 else gap_us


def spread_of(values: Sequence[float], unit: str, *, percentiles: bool = True) -> Spread | None:
    """The distribution of independent values, None for none."""
    if not values:
        return None
    ordered = sorted(values)
    found = {}
    for name, share in SHARES.items() if percentiles else ():
        interval = quantile_interval(ordered, share)
        if interval is not None:
            value = median(ordered) if share == 0.5 else nearest_rank(ordered, share)
            found[name] = Quantile(value=value, ci_low=interval.low, ci_high=interval.high)
    middle = median_interval(ordered)
    return Spread(
        unit=unit,
        n=len(ordered),
        median=Quantile(
            value=median(ordered),
            ci_low=middle.low if middle else None,
            ci_high=middle.high if middle else None,
        ),
        percentiles=found,
        mean=math.fsum(ordered) / len(ordered),
        minimum=ordered[0],
        maximum=ordered[-1],
    )


def nearest_rank(ordered: Sequence[float], share: float) -> float:
    """The least of the values that ``share`` of all do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def quantile_interval(ordered: Sequence[float], share: float, confidence: float = CONFIDENCE) -> Interval | None:
    """Distribution-free interval for a quantile from order statistics; None where the sample holds none.

    The interval is [x₍ₗ₎, x₍ᵤ₎] with P(Bin(n, share) < l) ≤ (1 − confidence) / 2 and the same for ≥ u; see H. A. David
    and H. N. Nagaraja, *Order Statistics*, 3rd ed., 2003, section 7.1. It takes 6 values for the median, 36 for the
    90th percentile, 72 for the 95th and 368 for the 99th.
    """
    n, tail = len(ordered), (1 - confidence) / 2
    if n == 0 or (1 - share) ** n > tail or share**n > tail:
        return None
    from scipy.special import bdtr, bdtrc

    low = 1
    while low < n and bdtr(low, n, share) <= tail:
        low += 1
    high = n
    while high > 1 and bdtrc(high - 2, n, share) <= tail:
        high -= 1
    return Interval(float(ordered[low - 1]), float(ordered[high - 1]))


def values_needed(share: float, confidence: float = CONFIDENCE) -> int:
    """How many values it takes for :func:`quantile_interval`."""
    return math.ceil(math.log((1 - confidence) / 2) / math.log(max(share, 1 - share)))


def gap_spread(gaps_us: Counter[int]) -> Spread | None:
    """The distribution of gaps, to three digits. Gaps of one answer resemble each other, so there is no interval."""
    n = gaps_us.total()
    if not n:
        return None
    lengths = sorted(gaps_us)

    def at(share: float) -> Quantile:
        rank, passed = math.ceil(share * n), 0
        for length in lengths:
            passed += gaps_us[length]
            if passed >= rank:
                return Quantile(value=length / 1e3)
        return Quantile(value=lengths[-1] / 1e3)

    return Spread(
        unit="ms",
        n=n,
        median=at(0.5),
        percentiles={name: at(share) for name, share in SHARES.items() if n >= values_needed(share)},
        mean=sum(length * count for length, count in gaps_us.items()) / n / 1e3,
        minimum=lengths[0] / 1e3,
        maximum=lengths[-1] / 1e3,
    )
