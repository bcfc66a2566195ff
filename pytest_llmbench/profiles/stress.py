"""Stress: one answer after the other without a pause, for minutes, while the machine's sensors are read.

How fast it is in the long run, whether it becomes slower, whether the machine becomes hot, throttles or no longer
responds. What would harm the machine ends it; what was measured until then is kept, and says so.

Nobody can look while an answer streams, so answers are short enough that one takes some seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from pytest_llmbench.client.generation import Generation
from pytest_llmbench.core.change_point import Change, change_point
from pytest_llmbench.core.percentiles import percentiles
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.settings import StressSettings
from pytest_llmbench.core.statistics import Interval, median, quantile_interval
from pytest_llmbench.core.trends import Slope, theil_sen
from pytest_llmbench.errors import CellError, MeasurementInvalid, Primitive, RequestError, ServerError
from pytest_llmbench.profiles.base import ABORTED, STOOD_STILL, Measurement, ProfileContext, PromptTokens, nonce
from pytest_llmbench.profiles.interactive import PROMPT_FILE, PROMPT_TOKENS_AT_MOST
from pytest_llmbench.profiles.sampling import MANY_LATE, another_model, why_not_a_sample, why_nothing_counts
from pytest_llmbench.profiles.vitals import Ending, Probe, Vitals
from pytest_llmbench.telemetry.responsiveness import Responsiveness

WARMUP_TOKENS = 32
ANSWER_SECONDS = 10.0
FEWEST_TOKENS = 8
NONCE_TOKENS = 8  # by which beginnings may differ in length: a tokenizer may have a token for several digits
FAILURES_IN_A_ROW = 2
STALL_SECONDS = 1.0
STALL_FACTOR = 20.0
SIGNIFICANCE = 0.01
LEAST_LOSS = 0.03
EXTRAPOLATED_SECONDS = 600.0
TOO_SHORT_SECONDS = 60.0  # for a loss per hour: chance would become thousands of percent


@dataclass
class _Found:
    """What the requests came to; not the records, of which a long run has many thousands.

    Attributes:
        hours, rates: of each sample, its middle since the beginning and its decode rate in tokens/s.
        decoded: since the last row, (tokens, seconds) of each sample.
        ending: why it ended before its time.
    """

    hours: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    decoded: list[tuple[int, float]] = field(default_factory=list)
    stalls: list[dict[str, Primitive]] = field(default_factory=list)
    samples: int = 0
    uncounted: int = 0
    late: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    failures: list[CellError] = field(default_factory=list)
    ending: Ending | None = None


class StressProfile:
    """See the module's docstring.

    Args:
        probe: makes what tells how responsive the machine is.
        clock: the one of requests and telemetry, in ns.
    """

    name = "stress"
    emits: tuple[str, ...] = (
        "sustained_tokens_per_second",
        "decay_percent_per_hour",
        "scheduling_delay_ms",
    )
    settings_model = StressSettings

    def __init__(
        self, probe: Callable[[], Probe] = Responsiveness, clock: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._probe = probe
        self._clock = clock

    def needed_context(self, settings: StressSettings) -> int:
        """Room for the story in whatever template, and the answer."""
        return PROMPT_TOKENS_AT_MOST + settings.output_tokens

    def run(self, context: ProfileContext) -> Measurement:
        """See :class:`~pytest_llmbench.profiles.base.Profile`."""
        story = context.read_data(PROMPT_FILE)
        prompt = nonce() + story
        length = context.prompt_tokens(prompt)
        warmup = context.request(_continuation(prompt, min(WARMUP_TOKENS, context.settings.output_tokens)), "warmup")
        refusal = another_model(warmup, context.endpoint.signed)
        context.file(warmup, usable=refusal is None)
        if refusal is not None:
            raise refusal
        probe = self._probe()
        probe.start()
        try:
            began_ns = self._clock()
            vitals = Vitals(context.telemetry, probe, began_ns, context.settings.abort_temperature)
            load = _Load(context, story, warmup, PromptTokens(length.expected - NONCE_TOKENS, exact=False), began_ns)
            self._generate(load, vitals, context.settings)
            seconds = (self._clock() - began_ns) / 1e9
        finally:
            delays = probe.stop()
        if not load.found.samples:
            raise _nothing_measured(load.found, load.tokens)
        return _summarise(load, vitals, delays, seconds)

    def _generate(self, load: _Load, vitals: Vitals, settings: StressSettings) -> None:
        """Until the time is over, or something ends it; the row of what remains is closed."""
        interval_ns = int(settings.sample_interval * 1e9)
        end_ns, row_ns = load.began_ns + int(settings.duration * 60e9), load.began_ns + interval_ns
        while True:
            stood_still = load.ask_once()
            now_ns, row_is_open = self._clock(), True
            vitals.look(now_ns, stood_still=stood_still)
            if now_ns >= row_ns:
                vitals.close_row(load.rate_since_last_row())
                row_is_open = False
                row_ns += interval_ns * ((now_ns - row_ns) // interval_ns + 1)
            load.found.ending = load.found.ending or vitals.alarm
            if load.found.ending is not None or now_ns >= end_ns:
                break
        if row_is_open:
            vitals.close_row(load.rate_since_last_row())


class _Load:
    """Asks again and again, and keeps what the answers tell.

    Args:
        length: of every prompt, at least.
        began_ns: of ``time.perf_counter_ns``.

    Attributes:
        tokens: of the next answer.
    """

    def __init__(
        self, context: ProfileContext, story: str, warmup: RequestRecord, length: PromptTokens, began_ns: int
    ) -> None:
        self.found = _Found()
        self.context = context
        self.began_ns = began_ns
        self._story = story
        self._warmup = warmup
        self._length = length
        self._failed_in_a_row = 0
        self.tokens = _answer_tokens(_rough_rate(warmup), context.settings)

    def ask_once(self) -> bool:
        """One request; returns whether something stood still meanwhile.

        A request that fails is noted; the second in a row, or a server that has died, ends the load.

        Raises:
            CellError: the load ended so before anything was measured, or what was measured is worthless.
        """
        found, context = self.found, self.context
        try:
            record = context.ask(_continuation(nonce() + self._story, self.tokens))
        except CellError as error:
            self._note_failure(error)
            return False
        stood_still = STOOD_STILL in record.flags
        only_reasoned = record.error == "empty_answer" and bool(record.reasoning)  # it has worked all the same
        if not (record.ok or stood_still or only_reasoned):
            context.file(record, usable=False)
            self._note_failure(RequestError(record.error or "failed", record.error_message or "the request failed"))
            return False
        self._failed_in_a_row = 0
        refusal = None
        if not stood_still:
            refusal = why_nothing_counts(record, self._length, self._warmup, context.context_size)
        doubt = why_not_a_sample(record, self.tokens, self._warmup) if refusal is None else refusal.code
        context.file(record, usable=doubt is None)
        if refusal is not None:
            raise refusal
        if doubt is None:
            self._keep(record)
        else:
            found.rejected[doubt] = found.rejected.get(doubt, 0) + 1
            if not found.samples and sum(found.rejected.values()) >= context.rule.min_samples:
                raise _nothing_measured(found, self.tokens)
        return stood_still

    def rate_since_last_row(self) -> float | None:
        """Tokens by the time they took, in tokens per second; None where nothing was answered."""
        decoded, self.found.decoded = self.found.decoded, []
        seconds = sum(seconds for _, seconds in decoded)
        return sum(tokens for tokens, _ in decoded) / seconds if seconds else None

    def _note_failure(self, error: CellError) -> None:
        found = self.found
        found.failures.append(error)
        self._failed_in_a_row += 1
        is_dead = isinstance(error, ServerError)
        if not is_dead and self._failed_in_a_row < FAILURES_IN_A_ROW:
            return
        if not found.samples:
            raise error
        found.ending = Ending(error.code if is_dead else "failed_requests", error.message)

    def _keep(self, record: RequestRecord) -> None:
        found = self.found
        found.samples += 1
        found.late += "client_late" in record.flags
        found.uncounted += record.output_tokens is None
        self._note_stalls(record)
        rate, tokens = record.decode_tokens_per_second, record.output_tokens
        if rate is None or tokens is None:
            return
        found.hours.append(((record.t_send_ns + record.t_end_ns) / 2 - self.began_ns) / 3.6e12)
        found.rates.append(rate)
        found.decoded.append((tokens - 1, (tokens - 1) / rate))
        # Twice, so that only a machine that has become much slower gets shorter answers: their length is part of what
        # is measured.
        self.tokens = min(self.tokens, 2 * _answer_tokens(rate, self.context.settings))

    def _note_stalls(self, record: RequestRecord) -> None:
        gaps = [(after - before) / 1e6 for before, after in pairwise(record.token_offsets_us)]
        if not gaps:
            return
        shortest = max(STALL_SECONDS, STALL_FACTOR * median(gaps))
        for offset_us, gap in zip(record.token_offsets_us, gaps, strict=False):
            if gap > shortest:
                minute = (record.t_send_ns - self.began_ns + offset_us * 1000) / 60e9
                self.found.stalls.append({"minute": round(minute, 3), "seconds": gap})


def _continuation(prompt: str, tokens: int) -> Generation:
    return Generation(max_tokens=tokens, prompt=prompt, demand_length=True)


def _rough_rate(record: RequestRecord) -> float:
    """Tokens per second, or pieces where tokens were not counted; 0 where neither can be told."""
    if record.decode_tokens_per_second is not None:
        return record.decode_tokens_per_second
    offsets = record.token_offsets_us
    return (len(offsets) - 1) / (offsets[-1] - offsets[0]) * 1e6 if len(offsets) > 1 and offsets[-1] > offsets[0] else 0


def _answer_tokens(tokens_per_second: float, settings: StressSettings) -> int:
    """As many as come in the time for which nobody looks at the machine; at most those of the settings."""
    seconds = min(ANSWER_SECONDS, settings.sample_interval)
    return min(settings.output_tokens, max(FEWEST_TOKENS, int(seconds * tokens_per_second)))


def _nothing_measured(found: _Found, tokens: int) -> CellError:
    """What to say where no request was a sample: the machine is in danger, one failed, or what all of them lack."""
    rejected = sum(found.rejected.values())
    if found.ending is not None:
        return MeasurementInvalid("aborted", f"aborted before anything was measured: {found.ending.sentence}")
    if found.failures:
        return found.failures[-1]
    code, count = max(found.rejected.items(), key=lambda item: item[1])
    advice = {
        "short_answer": f"the answers ended before {tokens} tokens; ask for fewer (settings.stress.output_tokens)",
        "prompt_cache_hit": "the server answers prompts from a cache we can not switch off; switch it off there",
        STOOD_STILL: "the machine, the server or this client was stopped again and again; see the log",
        "model_reloaded": "the server loads the model again and again; does it have the memory to keep it?",
    }[code]
    message = f"{count} of {rejected} requests were no usable samples, and no other was one: {advice}"
    return MeasurementInvalid(code, message, {"rejected": count})


def _summarise(load: _Load, vitals: Vitals, delays: list[float], seconds: float) -> Measurement:
    measurement, found, settings = Measurement(), load.found, load.context.settings
    measurement.add_median("sustained_tokens_per_second", found.rates)
    if found.rates and not load.context.rule.is_narrow(found.rates):
        measurement.flag("imprecise")
    _add_decay(measurement, found, seconds)
    if (delay := percentiles(delays).get("p95")) is not None:
        measurement.add("scheduling_delay_ms", delay, quantile_interval(delays, 0.95), len(delays))
    throttled_from = vitals.throttled_from_minute
    if throttled_from is not None:
        measurement.flag("throttled")
        measurement.notes.append(f"the hardware throttled, first seen after {throttled_from:.1f} min")
    _add_doubts(measurement, found, seconds)
    measurement.sampling = {
        "samples": found.samples,
        "rejected": sum(found.rejected.values()),
        "failed": len(found.failures),
        "stalls": len(found.stalls),
        "stop_reason": found.ending.code if found.ending is not None else "duration",
        "output_tokens": load.tokens,
        "seconds": seconds,
        "planned_seconds": settings.duration * 60.0,
        "throttled_after_minutes": throttled_from,
    }
    measurement.details = {"vitals": vitals.rows}
    if found.stalls:
        measurement.details["stalls"] = found.stalls
    return measurement


def _add_decay(measurement: Measurement, found: _Found, seconds: float) -> None:
    """The loss by the hour, and the flag ``degrading``: a slow decline, or a fall at one moment."""
    slope, change = theil_sen(found.hours, found.rates), change_point(found.rates)
    if slope is not None:
        percent = 100 / median(found.rates)
        loss = Interval(0.0 - percent * slope.high, 0.0 - percent * slope.low)
        if seconds >= TOO_SHORT_SECONDS:
            measurement.add("decay_percent_per_hour", 0.0 - percent * slope.per_unit, loss, len(found.rates))
        if seconds < TOO_SHORT_SECONDS:
            measurement.notes.append(f"{seconds:.0f} s are too short for a loss per hour")
        elif seconds < EXTRAPOLATED_SECONDS:
            measurement.notes.append(f"the loss per hour is extrapolated from {seconds:.0f} s")
        if _declines(slope, found):
            measurement.flag("degrading")
    if change is not None and _falls(change):
        measurement.flag("degrading")
        measurement.notes.append(
            f"the decode rate fell by {100 * (1 - change.ratio):.1f} %, most likely after "
            f"{60 * found.hours[change.index]:.1f} min"
        )


def _declines(slope: Slope, found: _Found) -> bool:
    loss = -slope.per_unit * (found.hours[-1] - found.hours[0]) / median(found.rates)
    return slope.p_value < SIGNIFICANCE and slope.high < 0 and loss > LEAST_LOSS


def _falls(change: Change) -> bool:
    """A dip that passes is none: it is what comes after, all of it, that is compared with what was before."""
    is_sure = change.p_value < SIGNIFICANCE and change.interval is not None and change.interval.high < 1
    return is_sure and change.ratio < 1 - LEAST_LOSS


def _add_doubts(measurement: Measurement, found: _Found, seconds: float) -> None:
    if found.ending is not None:
        measurement.flag("aborted")
        measurement.notes.append(f"{ABORTED} {seconds / 60:.1f} min: {found.ending.sentence}")
    for flag in found.rejected:
        measurement.flag(flag)
    if found.uncounted:
        measurement.flag("tokens_not_counted")
    if found.late >= MANY_LATE * found.samples:
        measurement.flag("client_late")
    if found.failures:
        first, asked = found.failures[0], found.samples + sum(found.rejected.values()) + len(found.failures)
        measurement.notes.append(
            f"{len(found.failures)} of {asked} requests failed, the first with {first.code}: {first.message}"
        )
    if found.stalls:
        longest = max(found.stalls, key=lambda stall: float(stall["seconds"] or 0))
        measurement.notes.append(
            f"the stream stalled {len(found.stalls)} times, at most for {longest['seconds']:.1f} s, after "
            f"{longest['minute']:.1f} min"
        )
