"""The one registry of metrics, and the threshold keys that judge them.

Thresholds, ratings, reports and documentation all read these tables; a metric or a key that is not here does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: the key in records and reports; units are part of it.
        unit: the unit as people read it.
        better: which direction is better.
        meaning: one sentence for people.
        maximum: the largest possible value, None where there is none (a coefficient of variation may exceed 100 %).
        decimals: how many digits after the point are worth printing.
        exact: a count or an extreme of what happened, which no interval belongs to: its bounds are the value itself.
        formula: how it is computed, where the meaning does not say it.
        no_better_when_larger: a larger model of the same quantization, on the same machine and server, is no better in
            it: more is read from memory and computed for every token. The blocking rules rest on it.
        no_better_with_more_bits: nor is the same model in a quantization of more bits: it is bound by reading weights.
    """

    name: str
    unit: str
    better: Better
    meaning: str
    maximum: float | None = None
    decimals: int = 1
    no_better_when_larger: bool = False
    no_better_with_more_bits: bool = False
    exact: bool = False
    formula: str | None = None


@dataclass(frozen=True, slots=True)
class ThresholdKey:
    """A named limit of a profile: which metric it judges, and from which side.

    Attributes:
        default: the founding default, in the metric's unit.
        critical: below this limit the model fails its use; a limit that is not critical only makes it poor.
    """

    key: str
    metric: str
    side: Literal["min", "max"]
    default: float
    critical: bool = True
    maximum: float | None = None


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        # interactive
        Metric(
            "ttft_seconds",
            "s",
            "lower",
            "Time to first token: from sending the prompt until the first text arrives.",
            decimals=3,
            no_better_when_larger=True,
        ),
        Metric(
            "decode_tokens_per_second",
            "tokens/s",
            "higher",
            "How fast text streams once it has started.",
            formula="(tokens − 1) / (last token − first token)",
            no_better_when_larger=True,
            no_better_with_more_bits=True,
        ),
        Metric(
            "steady_tokens_per_second",
            "tokens/s",
            "higher",
            "The same without the beginning of the stream: from its first full window of 25 pieces on.",
            formula="tokens after the first window / (last token − end of the first window)",
            no_better_when_larger=True,
            no_better_with_more_bits=True,
        ),
        Metric(
            "time_per_output_token_ms",
            "ms",
            "lower",
            "Time per output token while streaming: the inverse of the decode rate.",
            decimals=2,
            formula="1000 / decode_tokens_per_second",
            no_better_when_larger=True,
            no_better_with_more_bits=True,
        ),
        Metric(
            "variance_percent",
            "%",
            "lower",
            "How uneven it is: in interactive use of the token rate over windows of the stream, within and between "
            "requests; in batch use of the time per document, without what its length explains.",
            formula="100 · standard deviation / mean",
        ),
        Metric(
            "variance_within_percent",
            "%",
            "lower",
            "How uneven a stream is in itself: coefficient of variation of the token rate over its windows, "
            "in the median of the requests.",
        ),
        Metric(
            "variance_between_percent",
            "%",
            "lower",
            "How much requests differ: coefficient of variation of their decode rates.",
        ),
        Metric(
            "prefill_tokens_per_second",
            "tokens/s",
            "higher",
            "How fast the prompt is read, by the server's own clock and only when nothing came from its cache.",
            no_better_when_larger=True,
        ),
        Metric(
            "first_sentence_seconds",
            "s",
            "lower",
            "From sending the prompt until the first sentence can be read.",
            decimals=3,
        ),
        Metric(
            "reasoning_seconds",
            "s",
            "lower",
            "From the first piece of reasoning to the first of the answer; only where a model reasons aloud.",
            decimals=2,
        ),
        Metric(
            "answering_seconds",
            "s",
            "lower",
            "From the first to the last token of the answer, without reasoning.",
            decimals=2,
        ),
        Metric(
            "one_line_answer_seconds",
            "s",
            "lower",
            "From asking to the end of an answer in one line, of the model's own length.",
            decimals=2,
        ),
        Metric(
            "paragraph_answer_seconds",
            "s",
            "lower",
            "From asking to the end of an answer in one paragraph, of the model's own length.",
            decimals=2,
        ),
        Metric(
            "efficiency_score",
            "tokens²/s/GB",
            "higher",
            "Speed and context for the memory they take.",
            formula="decode_tokens_per_second · context size / peak_memory_gb",
        ),
        # long context
        Metric(
            "context_load_seconds",
            "s",
            "lower",
            "From sending a prompt that fills the context to the first token, of the largest context that was loaded.",
            decimals=2,
            no_better_when_larger=True,
        ),
        Metric(
            "largest_usable_context_tokens",
            "tokens",
            "higher",
            "The largest context that was filled, answered from, loaded within the limit and not swapped.",
            decimals=0,
            exact=True,
        ),
        Metric(
            "depth_tokens_per_second",
            "tokens/s",
            "higher",
            "The decode rate with the largest context filled.",
            no_better_when_larger=True,
            no_better_with_more_bits=True,
        ),
        Metric(
            "slowdown_percent_per_1k_tokens",
            "%",
            "lower",
            "How much of the decode rate at the smallest context is lost with every 1000 tokens more: Theil-Sen slope.",
            decimals=3,
        ),
        Metric(
            "warm_continuation_seconds",
            "s",
            "lower",
            "From sending one more turn of a conversation that fills the largest context, and that the server "
            "still has, to the first token.",
            decimals=3,
        ),
        Metric(
            "recall_percent",
            "%",
            "higher",
            "How many of the planted facts were answered, over all contexts that were filled.",
            maximum=100.0,
            decimals=0,
        ),
        # batch
        Metric(
            "document_seconds",
            "s",
            "lower",
            "Time per document: from sending it to the end of its summary.",
            decimals=2,
            no_better_when_larger=True,
            no_better_with_more_bits=True,
        ),
        Metric(
            "document_sd_seconds",
            "s",
            "lower",
            "Standard deviation of the time per document.",
            decimals=3,
        ),
        Metric(
            "documents_per_hour",
            "documents/h",
            "higher",
            "Documents that would be summarised in an hour, one after the other.",
            decimals=0,
            formula="3600 / mean time per document",
            no_better_when_larger=True,
            no_better_with_more_bits=True,
        ),
        Metric(
            "degradation_percent",
            "%",
            "lower",
            "By how much the last ten documents (of fewer than twenty: the last third) took longer than the first ten, "
            "without what their lengths explain: Hodges-Lehmann ratio; below 0: they were faster.",
        ),
        Metric(
            "memory_slope_mb_per_document",
            "MB",
            "lower",
            "By how much the server's memory grew with every document: Theil-Sen slope.",
            decimals=3,
        ),
        Metric(
            "failed_documents_percent",
            "%",
            "lower",
            "Documents that got no summary.",
            maximum=100.0,
        ),
        # quality
        Metric(
            "math_score_percent",
            "%",
            "higher",
            "Word problems solved.",
            maximum=100.0,
            formula="100 · correct / asked",
        ),
        Metric(
            "comprehension_score_percent",
            "%",
            "higher",
            "Questions about a text answered correctly.",
            maximum=100.0,
            formula="100 · correct / asked",
        ),
        Metric(
            "reasoning_score_percent",
            "%",
            "higher",
            "Logical problems solved.",
            maximum=100.0,
            formula="100 · correct / asked",
        ),
        Metric(
            "format_compliance_percent",
            "%",
            "higher",
            "Answers in exactly the form that was asked for.",
            maximum=100.0,
            formula="100 · correct / asked",
        ),
        Metric(
            "quality_score_percent",
            "%",
            "higher",
            "Questions of all categories answered correctly.",
            maximum=100.0,
            formula="100 · correct / asked",
        ),
        Metric(
            "answer_seconds",
            "s",
            "lower",
            "From asking a question to the end of its answer.",
            decimals=2,
        ),
        # stress
        Metric(
            "sustained_tokens_per_second",
            "tokens/s",
            "higher",
            "The decode rate over the whole time of continuous generation.",
            no_better_when_larger=True,
            no_better_with_more_bits=True,
        ),
        Metric(
            "decay_percent_per_hour",
            "%",
            "lower",
            "How much of the decode rate is lost in an hour of continuous generation: Theil-Sen slope.",
            decimals=2,
        ),
        Metric(
            "scheduling_delay_ms",
            "ms",
            "lower",
            "How late a sleeping probe on the same machine is woken: the 95th percentile.",
            decimals=2,
        ),
        # every profile
        Metric(
            "load_seconds",
            "s",
            "lower",
            "From the start of the server's process to its first successful health check.",
            decimals=2,
            exact=True,
        ),
        Metric(
            "load_read_mb_per_second",
            "MB/s",
            "higher",
            "How fast the server read from the disk while it loaded.",
            exact=True,
        ),
        Metric(
            "peak_memory_gb",
            "GB",
            "lower",
            "The most memory that the server's processes had: main memory (PSS), and the GPUs' where the driver tells.",
            decimals=3,
            exact=True,
            no_better_when_larger=True,
            no_better_with_more_bits=True,
        ),
        Metric(
            "swap_gb",
            "GB",
            "lower",
            "The most of the server's memory that was swapped out.",
            decimals=3,
            exact=True,
        ),
        Metric(
            "cpu_temperature_celsius",
            "°C",
            "lower",
            "The highest temperature of the CPU.",
            exact=True,
        ),
        Metric(
            "gpu_temperature_celsius",
            "°C",
            "lower",
            "The highest temperature of the GPU.",
            exact=True,
        ),
        Metric(
            "frequency_drop_percent",
            "%",
            "lower",
            "By how much the CPU frequency fell below the one at the beginning, for the slowest stretch of work.",
            maximum=100.0,
            exact=True,
        ),
        Metric(
            "throttle_events",
            "events",
            "lower",
            "How often the hardware lowered the frequency because of heat.",
            decimals=0,
            exact=True,
        ),
        Metric(
            "package_joules_per_token",
            "J",
            "lower",
            "Energy of the CPU packages per token that was generated, prompts included, idle not subtracted.",
            decimals=3,
            exact=True,
        ),
        Metric(
            "gpu_joules_per_token",
            "J",
            "lower",
            "Energy of the GPU per token that was generated, prompts included, idle not subtracted.",
            decimals=3,
            exact=True,
        ),
        # of a configuration, from several of its cells
        Metric(
            "cost_benefit_score",
            "of 100",
            "higher",
            "Quality and speed for the memory they take, beside the best configuration of the run, which has 100.",
            formula="quality_score_percent · decode_tokens_per_second / peak_memory_gb, scaled to the run's best",
            maximum=100.0,
        ),
    )
}

# What is known of every cell, whatever its profile.
COMMON_METRICS: tuple[str, ...] = (
    "load_seconds",
    "load_read_mb_per_second",
    "peak_memory_gb",
    "swap_gb",
    "frequency_drop_percent",
    "cpu_temperature_celsius",
    "gpu_temperature_celsius",
    "throttle_events",
    "package_joules_per_token",
    "gpu_joules_per_token",
)

# The thresholds of the founding design.
FOUNDING_THRESHOLDS: dict[str, tuple[ThresholdKey, ...]] = {
    "interactive": (
        ThresholdKey("min_tokens_per_sec", "decode_tokens_per_second", "min", 2),
        ThresholdKey("max_time_to_first_token", "ttft_seconds", "max", 30),
        ThresholdKey("max_variance", "variance_percent", "max", 20, critical=False),
    ),
    "long_context": (ThresholdKey("max_initial_load_time", "context_load_seconds", "max", 60),),
    "batch": (ThresholdKey("max_variance", "variance_percent", "max", 20, critical=False),),
    "quality": (
        ThresholdKey("min_math_score", "math_score_percent", "min", 80, maximum=100),
        ThresholdKey("min_comprehension_score", "comprehension_score_percent", "min", 75, maximum=100),
        ThresholdKey("min_reasoning_score", "reasoning_score_percent", "min", 75, maximum=100),
        ThresholdKey("min_format_compliance", "format_compliance_percent", "min", 90, maximum=100),
    ),
    "stress": (ThresholdKey("max_temperature", "cpu_temperature_celsius", "max", 85),),
}

# Where the founding file keeps settings among the thresholds.
SETTINGS_AMONG_THRESHOLDS: dict[str, tuple[str, ...]] = {
    "long_context": ("test_sizes",),
    "batch": ("num_documents",),
    "stress": ("duration", "sample_interval"),
}

# Every profile the finished product knows; each is a marker too.
PROFILE_NAMES: tuple[str, ...] = (
    "interactive",
    "long_context",
    "batch",
    "quality",
    "stress",
    "serving",
    "context_scaling",
    "agentic",
    "multi_agent",
    "ladder",
    "scenario",
    "canary",
    "tuning",
)


def format_quantity(name: str, value: float) -> str:
    """Format a metric's value with its unit, e.g. ``71.3 tokens/s``; unknown names are printed plainly."""
    metric = METRICS.get(name)
    if metric is None:
        return f"{value:.4g}"
    return f"{value:.{metric.decimals}f} {metric.unit}"
