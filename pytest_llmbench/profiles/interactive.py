"""Interactive use: a story is continued, 500 tokens, streamed; then a line and a paragraph are asked for.

How long until the first word and the first sentence, how fast the rest, how evenly. One warm-up request, then samples
until the interval of the decode rate is narrow, free of trend, and clear of the limits; samples that lie far off are
kept, and others taken beside them. The short answers come last, always in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pytest_llmbench.client.generation import Generation
from pytest_llmbench.core.metrics import format_quantity
from pytest_llmbench.core.percentiles import percentiles
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.settings import InteractiveSettings
from pytest_llmbench.core.statistics import Interval, has_trend, median, variation_percent
from pytest_llmbench.errors import Primitive
from pytest_llmbench.profiles import streams
from pytest_llmbench.profiles.base import Measurement, ProfileContext, PromptTokens, nonce
from pytest_llmbench.profiles.sampling import FarOff, Sampler, Samples, add_doubts, another_model
from pytest_llmbench.profiles.short_forms import LONGEST_ANSWER, ask_short_forms

PROMPT_FILE = "prompts/story.txt"
# The shipped story has 130 or so, a short question with its template some 100; a longer one of the user's is told when
# it is cut.
PROMPT_TOKENS_AT_MOST = 256
WARMUP_TOKENS = 32
ONE_TOKEN_TOLERANCE = 0.02


class InteractiveProfile:
    """See the module's docstring."""

    name = "interactive"
    emits: tuple[str, ...] = (
        "ttft_seconds",
        "decode_tokens_per_second",
        "steady_tokens_per_second",
        "time_per_output_token_ms",
        "variance_percent",
        "variance_within_percent",
        "variance_between_percent",
        "prefill_tokens_per_second",
        "first_sentence_seconds",
        "reasoning_seconds",
        "answering_seconds",
        "one_line_answer_seconds",
        "paragraph_answer_seconds",
    )
    settings_model = InteractiveSettings
    is_repeated_over_loads = True

    def needed_context(self, settings: InteractiveSettings) -> int:
        """Room for the story or a short question in whatever template, and the longer of their answers."""
        return PROMPT_TOKENS_AT_MOST + max(settings.output_tokens, LONGEST_ANSWER if settings.short_answers else 0)

    def run(self, context: ProfileContext) -> Measurement:
        """See :class:`~pytest_llmbench.profiles.base.Profile`."""
        story = context.read_data(PROMPT_FILE)
        tokens = context.settings.output_tokens
        warmup = context.request(_continuation(nonce() + story, min(WARMUP_TOKENS, tokens)), "warmup")
        refusal = another_model(warmup, context.endpoint.signed)
        context.file(warmup, usable=refusal is None)
        if refusal is not None:
            raise refusal

        def ask() -> tuple[Generation, PromptTokens]:
            prompt = nonce() + story
            return _continuation(prompt, tokens), context.prompt_tokens(prompt)

        sampler = Sampler(context, ask, tokens, warmup, _intervals)
        stop_reason = sampler.run()
        strays, samples = sampler.look_again(), sampler.samples
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
            **_percentiles(samples),
        }
        if strays is not None:
            _tell_of_outliers(measurement, samples.headline_name, strays)
        ask_short_forms(context, measurement, warmup, context.settings.short_answers)
        return measurement


def _intervals(samples: Samples) -> Mapping[str, Interval | None]:
    """The interval of every metric so far."""
    return {
        name: Interval(metric.ci_low, metric.ci_high)
        for name, metric in _summarise(samples).metrics.items()
        if metric.ci_low is not None and metric.ci_high is not None
    }


def _continuation(prompt: str, tokens: int) -> Generation:
    return Generation(max_tokens=tokens, prompt=prompt, demand_length=True)


def _summarise(samples: Samples) -> Measurement:
    measurement, records, rates = Measurement(), samples.records, samples.decode_rates
    measurement.add_median("decode_tokens_per_second", rates)
    measurement.add_median("ttft_seconds", samples.ttfts)
    measurement.add_median("steady_tokens_per_second", _each(streams.steady_rate, records))
    measurement.add_median("time_per_output_token_ms", [1000 / rate for rate in rates])
    measurement.add_median("prefill_tokens_per_second", streams.prefill_rates(records))
    measurement.add_median("reasoning_seconds", _each(streams.reasoning_seconds, records))
    measurement.add_median("answering_seconds", _each(streams.answering_seconds, records))
    _add_first_sentence(measurement, records)
    _add_variance(measurement, records, rates)
    _add_doubts(measurement, samples)
    return measurement


def _each(number_of: Callable[[RequestRecord], float | None], records: list[RequestRecord]) -> list[float]:
    return [number for record in records if (number := number_of(record)) is not None]


def _add_first_sentence(measurement: Measurement, records: list[RequestRecord]) -> None:
    """The median of all answers, of which those without a sentence that ends take longest, however long that is."""
    seconds = _each(streams.first_sentence_seconds, records)
    unknown = len(records) - len(seconds)
    if not unknown:
        measurement.add_median("first_sentence_seconds", seconds)
        return
    if unknown < len(seconds):
        middle = median([*seconds, *[max(seconds)] * unknown])  # of more, no longest one is the middle one
        measurement.add("first_sentence_seconds", middle, None, len(records))
    measurement.notes.append(
        f"in {unknown} of {len(records)} answers no sentence is known to end; "
        + ("they count as the longest" if unknown < len(seconds) else "the time to the first sentence is not measured")
    )


def _add_variance(measurement: Measurement, records: list[RequestRecord], rates: list[float]) -> None:
    windows = [streams.windows(record) for record in records]
    count = sum(map(len, windows))
    if count >= 2:
        measurement.add("variance_percent", *variation_percent(windows), count)
    else:
        measurement.notes.append(
            f"answers are too short for windows of {streams.WINDOW_PIECES} pieces; variance not measured"
        )
    within = [variation_percent([of_one])[0] for of_one in windows if len(of_one) >= 2]
    measurement.add_median("variance_within_percent", within)
    if len(rates) >= 2:
        measurement.add("variance_between_percent", *variation_percent([[rate] for rate in rates]), len(rates))


def _add_doubts(measurement: Measurement, samples: Samples) -> None:
    records = samples.records
    add_doubts(measurement, samples.rejected, records)
    per_piece = _each(streams.tokens_per_piece, records)
    if per_piece and abs(median(per_piece) - 1) > ONE_TOKEN_TOLERANCE:
        measurement.flag("chunked_stream")
        measurement.notes.append(
            f"a piece of text carries {median(per_piece):.2f} tokens on average; windows are scaled by that"
        )
    if any(record.reasoning for record in records):
        measurement.notes.append(
            "tokens went to reasoning; the decode rate spans them, the time to first token does not"
        )


def _percentiles(samples: Samples) -> dict[str, Primitive]:
    """Of the gaps between pieces, and of the times to first token beyond their median, as far as numbers allow."""
    gaps = percentiles(streams.gaps_ms(samples.records))
    waits = percentiles(samples.ttfts)
    return {
        **{f"chunk_gap_ms_{name}": value for name, value in gaps.items()},
        **{f"ttft_seconds_{name}": value for name, value in waits.items() if name != "p50"},  # which is the metric
    }


def _tell_of_outliers(measurement: Measurement, name: str, strays: FarOff) -> None:
    """Flag them, and keep both: the values that lie far off, and those that were taken beside them."""
    measurement.flag("outliers")
    parts = (strays.values, strays.again)
    values, again = (", ".join(format_quantity(name, value) for value in part) for part in parts)
    measurement.sampling |= {"outliers": len(strays.values), "outlier_values": values, "values_taken_again": again}
    if not strays.again:
        found = "none could be taken again"
    elif strays.still:
        found = f"of {len(strays.again)} more ({again}) {strays.still} lie far off, too: it happens again and again"
    else:
        found = f"{len(strays.again)} more ({again}) do not"
    measurement.notes.append(f"some samples lie far off the others and were kept ({values}); {found}")
