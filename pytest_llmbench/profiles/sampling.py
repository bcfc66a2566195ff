"""Sampling one kind of request: what is no sample and why, when it is enough, and samples that lie far off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.timings import ServerTimes, was_reloaded
from pytest_llmbench.core.outliers import outliers
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.statistics import Interval, StoppingRule, StopReason, median
from pytest_llmbench.errors import MeasurementInvalid
from pytest_llmbench.profiles.base import STOOD_STILL, Measurement, ProfileContext, PromptTokens
from pytest_llmbench.profiles.streams import server_disagrees

MOST_AGAIN = 3
MANY_LATE = 0.2  # of the samples: more late ones than that put a measurement in doubt


@dataclass
class Samples:
    """Usable samples, and why others were not: flag → how many."""

    warmup: RequestRecord
    records: list[RequestRecord] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)

    @property
    def decode_rates(self) -> list[float]:
        return [r.decode_tokens_per_second for r in self.records if r.decode_tokens_per_second is not None]

    @property
    def headline_name(self) -> str:
        """What the stopping rule looks at: the decode rate, or the time to first token where a rate is missing."""
        return "decode_tokens_per_second" if len(self.decode_rates) == len(self.records) else "ttft_seconds"

    @property
    def headline(self) -> list[float]:
        """One value per sample."""
        return self.decode_rates if self.headline_name == "decode_tokens_per_second" else self.ttfts

    @property
    def ttfts(self) -> list[float]:
        return [r.ttft_seconds for r in self.records if r.ttft_seconds is not None]


@dataclass(frozen=True, slots=True)
class FarOff:
    """Samples that lie far off the others, and those that were taken beside them; all of them are kept.

    Attributes:
        values: of the headline metric, as ``again``.
        still: how many of ``again`` lie far off as well.
    """

    values: list[float]
    again: list[float]
    still: int


class Sampler:
    """Takes samples of one kind of request.

    Args:
        ask: makes the next request, with the prompt's expected length.
        tokens: how many every answer must have.
        warmup: a request before the first sample: which model answered, how long it takes to find it loaded.
        judged: intervals by metric of the samples so far, for the limits in force.
    """

    def __init__(
        self,
        context: ProfileContext,
        ask: Callable[[], tuple[Generation, PromptTokens]],
        tokens: int,
        warmup: RequestRecord,
        judged: Callable[[Samples], Mapping[str, Interval | None]],
    ) -> None:
        self.samples = Samples(warmup)
        self._context = context
        self._rule = context.rule
        self._ask = ask
        self._tokens = tokens
        self._judged = judged
        self._began = time.monotonic()

    def run(self) -> StopReason:
        """Take samples until the stopping rule is content.

        Raises:
            LlmbenchError: a request failed, the server answers another model or another prompt, or too many answers
                are no samples.
        """
        samples, rule = self.samples, self._rule
        while True:
            self._take()
            # What no rule looks at yet is not worth computing.
            judged = self._judged(samples) if len(samples.records) >= rule.min_samples else {}
            reason = rule.stop_reason(samples.headline, judged, self._elapsed_seconds)
            if reason is not None:
                return reason

    def look_again(self) -> FarOff | None:
        """Take as many samples again as lie far off, at most three and within the time budget; None where none does.

        The budget of ``max_samples`` may be exceeded by these. Raises as :meth:`run`.
        """
        samples = self.samples
        before = len(samples.records)
        values = [samples.headline[index] for index in far_off(samples.headline, self._rule)]
        if not values:
            return None
        for _ in range(min(len(values), MOST_AGAIN)):
            if self._elapsed_seconds >= self._rule.max_seconds:
                break
            self._take()
        headline = samples.headline
        still = sum(index >= before for index in far_off(headline, self._rule))
        return FarOff(values, headline[before:], still)

    @property
    def _elapsed_seconds(self) -> float:
        return time.monotonic() - self._began

    def _take(self) -> None:
        samples, context = self.samples, self._context
        generation, length = self._ask()
        record = context.request(generation, "sample", may_stand_still=True)
        stood_still = STOOD_STILL in record.flags
        refusal = None if stood_still else why_nothing_counts(record, length, samples.warmup, context.context_size)
        doubt = why_not_a_sample(record, self._tokens, samples.warmup) if refusal is None else refusal.code
        context.file(record, usable=doubt is None)
        if refusal is not None:
            raise refusal
        if doubt is None:
            samples.records.append(record)
            return
        samples.rejected[doubt] = samples.rejected.get(doubt, 0) + 1
        if sum(samples.rejected.values()) >= self._rule.min_samples:
            raise _invalid(samples, self._tokens)


def far_off(headline: list[float], rule: StoppingRule) -> list[int]:
    """Indices of outliers that matter.

    By the modified z-score alone, one of seven clean runs of six samples has an outlier (14 %, by simulation of normal
    samples): six samples hardly tell their own spread. So it must also be further off the median than the precision
    that is asked for; what is not can move no result by as much as that.
    """
    if not headline:
        return []
    middle = median(headline)
    matters = rule.target_half_width_percent / 100 * abs(middle)
    return [index for index in outliers(headline) if abs(headline[index] - middle) > matters]


def why_nothing_counts(
    record: RequestRecord, length: PromptTokens, warmup: RequestRecord, context_size: int | None
) -> MeasurementInvalid | None:
    """What makes not only this request worthless, but all that this server would answer."""
    if length.contradicts(record):
        return MeasurementInvalid(
            "prompt_truncated",
            f"the server read {record.prompt_tokens} tokens of a prompt that has "
            f"{'' if length.exact else 'at least '}{length.expected}: it cuts prompts; give it a larger context",
            {"read": record.prompt_tokens, "expected": length.expected},
        )
    used = (record.prompt_tokens or 0) + (record.output_tokens or 0)
    if context_size is not None and used > context_size:
        return MeasurementInvalid(
            "prompt_truncated",
            f"prompt and answer have {used} tokens together and the context holds {context_size}: the server cut the "
            "prompt, or forgot its beginning; give it a larger context",
            {"read": record.prompt_tokens, "answered": record.output_tokens, "context_size": context_size},
        )
    return another_model(record, warmup.response_model)


def another_model(record: RequestRecord, before: str | None) -> MeasurementInvalid | None:
    """The error of a request that another model answered than the one that did before."""
    if before is None or record.response_model == before:
        return None
    return MeasurementInvalid(
        "another_model_answered",
        f"{record.response_model!r} answered, where {before!r} did at first: something switches models on this "
        "server; let nobody else use it",
        {"answered": record.response_model, "before": before},
    )


def why_not_a_sample(record: RequestRecord, tokens: int, warmup: RequestRecord) -> str | None:
    """The flag of a request whose numbers would mean something else, None for a clean one."""
    doubt = disturbance_of(record, warmup)
    if doubt is not None:
        return doubt
    if record.cached_tokens:
        return "prompt_cache_hit"
    if record.output_tokens is not None:
        short = record.output_tokens != tokens
    else:
        short = record.finish_reason != "length"
    return "short_answer" if short else None


def disturbance_of(record: RequestRecord, warmup: RequestRecord) -> str | None:
    """The flag of a request that something disturbed, whatever was asked."""
    if STOOD_STILL in record.flags:
        return STOOD_STILL
    warm_load_seconds = ServerTimes.of(warmup.server_timings).load_seconds
    return "model_reloaded" if was_reloaded(record.server_timings, warm_load_seconds) else None


def _invalid(samples: Samples, tokens: int) -> MeasurementInvalid:
    code, count = max(samples.rejected.items(), key=lambda item: item[1])
    advice = {
        "short_answer": f"the answers ended before {tokens} tokens; ask for fewer (settings.interactive.output_tokens)",
        "prompt_cache_hit": "the server answers prompts from a cache we can not switch off; switch it off there",
        STOOD_STILL: "the machine, the server or this client was stopped again and again; see the log",
        "model_reloaded": "the server loads the model again and again; does it have the memory to keep it, and is "
        "nobody else using it with other options?",
    }[code]
    return MeasurementInvalid(
        code,
        f"{count} of {count + len(samples.records)} requests were no usable samples: {advice}",
        {"rejected": count, "usable": len(samples.records)},
    )


def add_doubts(measurement: Measurement, rejected: Iterable[str], records: Sequence[RequestRecord]) -> None:
    """What is in doubt whatever was asked: why requests were no samples, and how samples were counted and timed."""
    for flag in rejected:
        measurement.flag(flag)
    if any(record.output_tokens is None for record in records):
        measurement.flag("tokens_not_counted")
    if server_disagrees(records):
        measurement.flag("server_timing_mismatch")
    late = sum("client_late" in record.flags for record in records)
    if late >= MANY_LATE * len(records):
        measurement.flag("client_late")
    elif late:
        measurement.notes.append(f"in {late} of {len(records)} samples this client was late itself")
