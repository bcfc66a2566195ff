"""Interactive use: a story is continued, 500 tokens, streamed.

How long until the first word, how fast the rest, how evenly. One warm-up request, then samples until the interval of
the decode rate is narrow, free of trend, and clear of the limits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.timings import ServerTimes, was_reloaded
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.settings import InteractiveSettings
from pytest_llmbench.core.statistics import Interval, StoppingRule, has_trend, median, variation_percent, window_rates
from pytest_llmbench.errors import MeasurementInvalid
from pytest_llmbench.profiles.base import STOOD_STILL, Measurement, ProfileContext, PromptTokens, nonce

PROMPT_FILE = "prompts/story.txt"
PROMPT_TOKENS_AT_MOST = 256  # the shipped story has 130 or so; a longer one of the user's is told when it is cut
MANY_LATE = 0.2
WARMUP_TOKENS = 32
# Pieces of text per window, 19 windows in a 500-token answer: long enough to average a scheduler's hiccups, short
# enough to see stalls.
WINDOW_PIECES = 25
TIMING_TOLERANCE = 0.05
HANDOVER_SECONDS = 0.02  # reading the request, tokenising, sampling and sending the first token: 1.5 ms where measured


@dataclass
class _Samples:
    """Usable samples, and why others were not."""

    warmup: RequestRecord
    records: list[RequestRecord] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)

    @property
    def decode_rates(self) -> list[float]:
        return [r.decode_tokens_per_second for r in self.records if r.decode_tokens_per_second is not None]

    @property
    def headline(self) -> list[float]:
        """One value per sample: the decode rate, or the time to first token where a rate is missing."""
        rates = self.decode_rates
        return rates if len(rates) == len(self.records) else self.ttfts

    @property
    def ttfts(self) -> list[float]:
        return [r.ttft_seconds for r in self.records if r.ttft_seconds is not None]


class InteractiveProfile:
    """See the module's docstring."""

    name = "interactive"
    emits: tuple[str, ...] = (
        "ttft_seconds",
        "decode_tokens_per_second",
        "time_per_output_token_ms",
        "variance_percent",
        "prefill_tokens_per_second",
    )
    settings_model = InteractiveSettings

    def needed_context(self, settings: InteractiveSettings) -> int:
        """Room for the story in whatever template, and the answer."""
        return PROMPT_TOKENS_AT_MOST + settings.output_tokens

    def run(self, context: ProfileContext) -> Measurement:
        """See :class:`~pytest_llmbench.profiles.base.Profile`."""
        story = context.read_data(PROMPT_FILE)
        tokens = context.settings.output_tokens
        warmup = context.request(_continuation(nonce() + story, min(WARMUP_TOKENS, tokens)), "warmup")
        refusal = _another_model(warmup, context.endpoint.signed)
        context.file(warmup, usable=refusal is None)
        if refusal is not None:
            raise refusal
        samples, stop_reason = self._sample(context, story, tokens, warmup)
        measurement = _summarise(samples)
        if has_trend(samples.headline):
            measurement.flag("drift")
        if not context.rule.is_narrow(samples.headline):
            measurement.flag("imprecise")
        measurement.sampling = {
            "samples": len(samples.records),
            "rejected": sum(samples.rejected.values()),
            "stop_reason": stop_reason,
            "output_tokens": tokens,
        }
        return measurement

    def _sample(self, context: ProfileContext, story: str, tokens: int, warmup: RequestRecord) -> tuple[_Samples, str]:
        samples, rule, started = _Samples(warmup), context.rule, time.monotonic()
        while True:
            prompt = nonce() + story
            length = context.prompt_tokens(prompt)
            record = context.request(_continuation(prompt, tokens), "sample", may_stand_still=True)
            stood_still = STOOD_STILL in record.flags
            refusal = None if stood_still else _why_nothing_counts(record, length, warmup, context.context_size)
            doubt = _why_not_a_sample(record, tokens, warmup) if refusal is None else refusal.code
            context.file(record, usable=doubt is None)
            if refusal is not None:
                raise refusal
            if doubt is None:
                samples.records.append(record)
            else:
                samples.rejected[doubt] = samples.rejected.get(doubt, 0) + 1
                if sum(samples.rejected.values()) >= rule.min_samples:
                    raise _invalid(samples, tokens)
            reason = rule.stop_reason(samples.headline, _intervals(samples, rule), time.monotonic() - started)
            if reason is not None:
                return samples, reason


def _intervals(samples: _Samples, rule: StoppingRule) -> dict[str, Interval | None]:
    """The interval of every metric so far; not worth computing before the rule may stop."""
    if len(samples.records) < rule.min_samples:
        return {}
    return {
        name: Interval(metric.ci_low, metric.ci_high)
        for name, metric in _summarise(samples).metrics.items()
        if metric.ci_low is not None and metric.ci_high is not None
    }


def _continuation(prompt: str, tokens: int) -> Generation:
    return Generation(max_tokens=tokens, prompt=prompt, demand_length=True)


def _why_nothing_counts(
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
    return _another_model(record, warmup.response_model)


def _another_model(record: RequestRecord, before: str | None) -> MeasurementInvalid | None:
    if before is None or record.response_model == before:
        return None
    return MeasurementInvalid(
        "another_model_answered",
        f"{record.response_model!r} answered, where {before!r} did at first: something switches models on this "
        "server; let nobody else use it",
        {"answered": record.response_model, "before": before},
    )


def _why_not_a_sample(record: RequestRecord, tokens: int, warmup: RequestRecord) -> str | None:
    """The flag of a request whose numbers would mean something else, None for a clean one."""
    if STOOD_STILL in record.flags:
        return STOOD_STILL
    warm_load_seconds = ServerTimes.of(warmup.server_timings).load_seconds
    if was_reloaded(record.server_timings, warm_load_seconds):
        return "model_reloaded"
    if record.cached_tokens:
        return "prompt_cache_hit"
    if record.output_tokens is not None:
        short = record.output_tokens != tokens
    else:
        short = record.finish_reason != "length"
    return "short_answer" if short else None


def _invalid(samples: _Samples, tokens: int) -> MeasurementInvalid:
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


def _summarise(samples: _Samples) -> Measurement:
    measurement, records = Measurement(), samples.records
    rates = samples.decode_rates
    measurement.add_median("ttft_seconds", samples.ttfts)
    measurement.add_median("decode_tokens_per_second", rates)
    measurement.add_median("time_per_output_token_ms", [1000 / rate for rate in rates])
    measurement.add_median("prefill_tokens_per_second", _prefill_rates(records))
    windows = [_windows(record) for record in records]
    if sum(map(len, windows)) >= 2:
        value, interval = variation_percent(windows)
        measurement.add("variance_percent", value, interval, sum(map(len, windows)))
    else:
        measurement.notes.append(f"answers are too short for windows of {WINDOW_PIECES} pieces; variance not measured")
    for flag in samples.rejected:
        measurement.flag(flag)
    if any(record.output_tokens is None for record in records):
        measurement.flag("tokens_not_counted")
    if _server_disagrees(records):
        measurement.flag("server_timing_mismatch")
    late = sum("client_late" in record.flags for record in records)
    if late >= MANY_LATE * len(records):
        measurement.flag("client_late")
    elif late:
        measurement.notes.append(f"in {late} of {len(records)} samples this client was late itself")
    per_chunk = _tokens_per_chunk(records)
    if per_chunk is not None and abs(per_chunk - 1) > 0.02:
        measurement.flag("chunked_stream")
        measurement.notes.append(
            f"a piece of text carries {per_chunk:.2f} tokens on average; windows are scaled by that"
        )
    if any(record.reasoning for record in records):
        measurement.notes.append(
            "tokens went to reasoning; the decode rate spans them, the time to first token does not"
        )
    return measurement


def _windows(record: RequestRecord) -> list[float]:
    if record.output_tokens is None or not record.chunks:
        return []
    times = [offset / 1e6 for offset in record.token_offsets_us]
    return window_rates(times, record.output_tokens / record.chunks, WINDOW_PIECES)


def _tokens_per_chunk(records: list[RequestRecord]) -> float | None:
    ratios = [r.output_tokens / r.chunks for r in records if r.output_tokens is not None and r.chunks]
    return median(ratios) if ratios else None


def _prefill_rates(records: list[RequestRecord]) -> list[float]:
    """Prompt tokens over the server's prompt time, only where it says that none came from its cache (P01, P02)."""
    rates = (ServerTimes.of(record.server_timings).prefill_tokens_per_second for record in records)
    return [rate for rate in rates if rate is not None]


def _server_disagrees(records: list[RequestRecord]) -> bool:
    """Whether the server's own times are off ours by more than the tolerance, in the median."""
    rates, waits = [], []
    for record in records:
        times = ServerTimes.of(record.server_timings)
        if times.decode_tokens_per_second is not None and record.decode_tokens_per_second is not None:
            rates.append(record.decode_tokens_per_second / times.decode_tokens_per_second)
        if times.prompt_seconds is not None and record.ttft_seconds and not record.reasoning:
            unexplained = record.ttft_seconds - times.prompt_seconds - (times.load_seconds or 0.0)
            waits.append(max(0.0, unexplained - HANDOVER_SECONDS) / record.ttft_seconds)
    off = [abs(median(values) - aim) for values, aim in ((rates, 1), (waits, 0)) if values]
    return any(difference > TIMING_TOLERANCE for difference in off)
