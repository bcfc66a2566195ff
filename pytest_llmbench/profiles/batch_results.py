"""What a batch came to: its metrics, doubts and rows, from the records of its documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pytest_llmbench.client.prompts import words
from pytest_llmbench.core.means import mean_interval
from pytest_llmbench.core.percentiles import percentiles
from pytest_llmbench.core.proportions import wilson
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.statistics import Interval, StoppingRule, median, variation_percent
from pytest_llmbench.core.trends import theil_sen
from pytest_llmbench.errors import Primitive
from pytest_llmbench.profiles import streams
from pytest_llmbench.profiles.base import Measurement
from pytest_llmbench.profiles.batch_trends import LEAST_FOR_A_LEAK, ends_of, is_leaking, trend_of, without_work
from pytest_llmbench.profiles.documents import Document
from pytest_llmbench.profiles.sampling import add_doubts
from pytest_llmbench.telemetry.base import Telemetry

STALL_SECONDS = 1.0  # and, where tokens take long, so many of their usual times
STALL_FACTOR = 20.0
_MOST_GROUPS = 50  # for the jackknife, which computes as many deviations as there are groups


@dataclass(frozen=True, slots=True)
class Done:
    """A document that was sent.

    Attributes:
        seconds: from sending it to the end of its summary; None where it failed.
        comparable_seconds: what a summary of the length asked for takes, or would; None for what is no sample.
        memory_mb: of the server, afterwards.
        doubt: the flag of what is no sample.
        again: asked once more because its time lay far off.
    """

    document: Document
    record: RequestRecord
    seconds: float | None
    comparable_seconds: float | None
    memory_mb: float | None
    doubt: str | None
    again: bool

    @property
    def failed(self) -> bool:
        return not self.record.ok and self.doubt is None

    @property
    def work(self) -> float:
        """Prompt tokens, or words where the server does not count."""
        return self.record.prompt_tokens or words(self.document.text)

    @property
    def stall_seconds(self) -> float | None:
        """The longest rest of a stream that went on, None where it never rested for long."""
        gaps = [gap / 1e3 for gap in streams.gaps_ms([self.record])]
        longest = max(gaps, default=0.0)
        is_long = longest > STALL_SECONDS and longest > STALL_FACTOR * median(gaps)
        return longest if is_long and self.doubt is None else None

    def row(self) -> dict[str, Primitive]:
        """A line of the record's details."""
        return {
            "id": self.document.id,
            "again": self.again,
            "seconds": self.seconds,
            "prompt_tokens": self.record.prompt_tokens,
            "output_tokens": self.record.output_tokens,
            "decode_tokens_per_second": self.record.decode_tokens_per_second,
            "stall_seconds": self.stall_seconds,
            "memory_mb": self.memory_mb,
            "doubt": self.doubt,
            "error": f"{self.record.error}: {self.record.error_message}" if self.failed else None,
        }


@dataclass
class Batch:
    """What was sent, in order.

    Attributes:
        again: each document whose time lay far off, and what came of asking it once more, after all others.
    """

    done: list[Done] = field(default_factory=list)
    again: list[tuple[Done, Done]] = field(default_factory=list)

    @property
    def samples(self) -> list[Done]:
        return [one for one in self.done if one.comparable_seconds is not None]

    @property
    def seconds(self) -> list[float]:
        return [one.comparable_seconds for one in self.done if one.comparable_seconds is not None]

    @property
    def judged(self) -> list[Done]:
        """Those that either failed or did not; where something stood still, that says nothing about the server."""
        return [one for one in self.done if one.record.ok or one.failed]

    @property
    def failures(self) -> list[Done]:
        return [one for one in self.done if one.failed]

    @property
    def doubts(self) -> Counter[str]:
        return Counter(one.doubt for one in self.done if one.doubt is not None)


def summarise(batch: Batch, tokens: int, rule: StoppingRule) -> Measurement:
    """Everything but memory, of a batch with one sample or more; ``tokens``: of each summary, as asked for."""
    measurement, seconds, samples = Measurement(), batch.seconds, batch.samples
    measurement.add_median("document_seconds", seconds)
    _add_throughput(measurement, seconds)
    judged, failed = len(batch.judged), len(batch.failures)
    share = wilson(failed, judged)
    measurement.add(
        "failed_documents_percent", 100 * failed / judged, Interval(100 * share.low, 100 * share.high), judged
    )
    measurement.sampling = {
        "documents": len(batch.done),
        "samples": len(samples),
        "rejected": batch.doubts.total(),
        "failed": failed,
        "stalls": sum(one.stall_seconds is not None for one in batch.done),
        "stop_reason": "all_documents",
        "output_tokens": tokens,
        **{f"document_seconds_{name}": value for name, value in percentiles(seconds).items() if name != "p50"},
    }
    adjusted, depends = without_work(seconds, [one.work for one in samples])
    _add_evenness(measurement, seconds, adjusted, depends=depends)
    _add_change(measurement, adjusted)
    if not rule.is_narrow(adjusted):
        measurement.flag("imprecise")
    _add_doubts(measurement, batch, tokens)
    measurement.details["documents"] = [one.row() for one in (*batch.done, *(second for _, second in batch.again))]
    return measurement


def _add_throughput(measurement: Measurement, seconds: Sequence[float]) -> None:
    """3600 / mean, with Student's interval of the mean turned over; none where that reaches down to 0."""
    mean = sum(seconds) / len(seconds)
    around = mean_interval(seconds)
    interval = Interval(3600 / around.high, 3600 / around.low) if around is not None and around.low > 0 else None
    measurement.add("documents_per_hour", 3600 / mean, interval, len(seconds))


def _add_evenness(
    measurement: Measurement, seconds: Sequence[float], adjusted: Sequence[float], *, depends: bool
) -> None:
    """Standard deviation of the times as they are, and their variation without what length explains.

    Both intervals are jackknives of the logarithm, by document (:func:`~core.statistics.variation_percent`): times have
    long tails, for which the chi-square interval is too narrow.
    """
    count = len(seconds)
    if count < 2:
        return
    raw, around = _variation_percent(seconds)
    unit = sum(seconds) / count / 100
    interval = None if around is None else Interval(around.low * unit, around.high * unit)
    measurement.add("document_sd_seconds", raw * unit, interval, count)
    value, around = _variation_percent(adjusted)
    # A slope was estimated beside the mean, which took a degree of freedom.
    lost = ((count - 1) / (count - 2)) ** 0.5 if depends and count > 2 else 1.0
    interval = None if around is None else Interval(around.low * lost, around.high * lost)
    measurement.add("variance_percent", value * lost, interval, count)
    measurement.sampling["raw_variance_percent"] = raw
    if depends:
        measurement.notes.append(
            "what the documents' lengths explain is taken out of variance_percent, of degradation_percent and of the "
            f"search for a slow-down; the times as they are vary by {raw:.1f} %"
        )


def _variation_percent(values: Sequence[float]) -> tuple[float, Interval | None]:
    """Each value for itself, or neighbours together where there are many.

    The coefficient of variation of n positive values is √n at most, when one is everything; with a value that is far
    off, the jackknife does not know that.
    """
    size = -(-len(values) // _MOST_GROUPS)
    value, around = variation_percent([values[begin : begin + size] for begin in range(0, len(values), size)])
    most = 100 * len(values) ** 0.5
    return value, None if around is None else Interval(around.low, min(around.high, most))


def _add_change(measurement: Measurement, adjusted: Sequence[float]) -> None:
    """Whether the server became slower while it worked, and the last documents beside the first."""
    ends, trend = ends_of(adjusted), trend_of(adjusted)
    if ends is not None:
        measurement.add("degradation_percent", ends.percent, ends.interval, 2 * ends.count)
        measurement.sampling |= {
            "compared_at_each_end": ends.count,
            "degradation_p_value": ends.p_value,
            "degradation_cliffs_delta": ends.delta,
        }
    if trend is None:
        return
    measurement.sampling |= {"trend_percent": trend.percent, "trend_p_value": trend.p_value}
    if trend.is_real and trend.percent > 0:
        measurement.flag("degrading")
        measurement.notes.append(
            f"the server became slower: by {trend.percent:.1f} % from the first document to the last "
            f"(p = {trend.p_value:.2g})"
        )
    elif ends is not None and ends.are_slower:
        measurement.flag("degrading")
        measurement.notes.append(
            f"the server became slower: the last {ends.count} documents took {ends.percent:.1f} % longer than the "
            f"first (p = {ends.p_value:.2g})"
        )
    elif trend.is_real:
        measurement.flag("drift")


def _add_doubts(measurement: Measurement, batch: Batch, tokens: int) -> None:
    records = [one.record for one in batch.samples]
    add_doubts(measurement, batch.doubts, records)
    lengths = [record.output_tokens for record in records if record.output_tokens is not None]
    if any(length != tokens for length in lengths):
        measurement.notes.append(
            f"this server ends summaries where the model does, after {min(lengths)} to {max(lengths)} tokens; every "
            f"time is what {tokens} tokens take at the rate of that summary"
        )
    for one in batch.done:
        if one.stall_seconds is not None:
            measurement.notes.append(f"the summary of {one.document.id} stood still for {one.stall_seconds:.1f} s")
    for first, second in batch.again:
        measurement.flag("outliers")
        found = "gave no time" if second.comparable_seconds is None else f"took {second.comparable_seconds:.2f} s"
        measurement.notes.append(
            f"the time of {first.document.id} lies far off: {first.comparable_seconds:.2f} s, which was kept; "
            f"asked again, it {found}"
        )


def add_memory(measurement: Measurement, batch: Batch, telemetry: Telemetry) -> None:
    """The slope of the server's memory over the documents, failed ones too: they may leak as well."""
    known = [(float(index), one.memory_mb) for index, one in enumerate(batch.done) if one.memory_mb is not None]
    memory_mb = [value for _, value in known]
    slope = theil_sen([index for index, _ in known], memory_mb)
    if slope is not None:
        interval = Interval(slope.low, slope.high)
        measurement.add("memory_slope_mb_per_document", slope.per_unit, interval, len(memory_mb))
    if is_leaking(memory_mb):
        measurement.flag("leaking")
        measurement.notes.append(
            f"the server's memory grew from {memory_mb[0]:.0f} MB to {memory_mb[-1]:.0f} MB in {len(memory_mb)} "
            "documents, and had not stopped growing"
        )
    elif not memory_mb:
        why = telemetry.why_not.get("server_rss_bytes", "its processes are not ours to look into")
        measurement.notes.append(f"the server's memory is not known, so no leak could be found: {why}")
    elif len(memory_mb) < LEAST_FOR_A_LEAK:
        measurement.notes.append(f"a leak can not be told by fewer than {LEAST_FOR_A_LEAK} documents")
