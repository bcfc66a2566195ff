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
            "How fast text streams once it has started: (tokens − 1) / (last token − first token).",
            no_better_when_larger=True,
            no_better_with_more_bits=True,
        ),
        Metric(
            "time_per_output_token_ms",
            "ms",
            "lower",
            "Time per output token while streaming: the inverse of the decode rate.",
            decimals=2,
            no_better_when_larger=True,
            no_better_with_more_bits=True,
        ),
        Metric(
            "variance_percent",
            "%",
            "lower",
            "How uneven the stream is: coefficient of variation of the token rate over windows of the stream, "
            "within and between requests.",
        ),
        Metric(
            "prefill_tokens_per_second",
            "tokens/s",
            "higher",
            "How fast the prompt is read, by the server's own clock and only when nothing came from its cache.",
            no_better_when_larger=True,
        ),
    )
}

# The thresholds of the founding design. Keys of profiles that do not exist yet are listed so that a founding file is
# read as it stands; their metrics enter METRICS together with the profile that emits them.
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
