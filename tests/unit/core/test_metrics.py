"""The registry of metrics, and how a value is written for people."""

from __future__ import annotations

import pytest

from pytest_llmbench.core.metrics import (
    FOUNDING_THRESHOLDS,
    METRICS,
    PROFILE_NAMES,
    SETTINGS_AMONG_THRESHOLDS,
    format_quantity,
)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("ttft_seconds", 0.12345, "0.123 s"),
        ("decode_tokens_per_second", 71.26, "71.3 tokens/s"),
        ("time_per_output_token_ms", 13.987, "13.99 ms"),
        ("variance_percent", 4, "4.0 %"),
        ("not_a_metric", 1234.5678, "1235"),
    ],
)
def test_quantities_carry_their_unit_and_sensible_digits(name: str, value: float, text: str) -> None:
    assert format_quantity(name, value) == text


def test_every_metric_is_registered_under_its_own_name_with_a_unit_and_a_sentence() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.unit
        assert metric.meaning.endswith(".")


def test_speed_gets_no_better_with_size_and_evenness_tells_nothing_of_it() -> None:
    assert {name for name, metric in METRICS.items() if metric.no_better_when_larger} == {
        "ttft_seconds",
        "decode_tokens_per_second",
        "steady_tokens_per_second",
        "time_per_output_token_ms",
        "prefill_tokens_per_second",
        "context_load_seconds",
        "depth_tokens_per_second",
        "document_seconds",
        "documents_per_hour",
        "sustained_tokens_per_second",
        "peak_memory_gb",
    }
    assert all(metric.better != "neither" for metric in METRICS.values() if metric.no_better_when_larger)


def test_the_founding_thresholds_are_those_of_the_design() -> None:
    written = {
        (profile, key.key): (key.metric, key.side, key.default)
        for profile, keys in FOUNDING_THRESHOLDS.items()
        for key in keys
    }
    assert written == {
        ("interactive", "min_tokens_per_sec"): ("decode_tokens_per_second", "min", 2),
        ("interactive", "max_time_to_first_token"): ("ttft_seconds", "max", 30),
        ("interactive", "max_variance"): ("variance_percent", "max", 20),
        ("long_context", "max_initial_load_time"): ("context_load_seconds", "max", 60),
        ("batch", "max_variance"): ("variance_percent", "max", 20),
        ("quality", "min_math_score"): ("math_score_percent", "min", 80),
        ("quality", "min_comprehension_score"): ("comprehension_score_percent", "min", 75),
        ("quality", "min_reasoning_score"): ("reasoning_score_percent", "min", 75),
        ("quality", "min_format_compliance"): ("format_compliance_percent", "min", 90),
        ("stress", "max_temperature"): ("cpu_temperature_celsius", "max", 85),
    }


def test_a_founding_key_never_is_both_a_limit_and_a_setting() -> None:
    for profile, settings in SETTINGS_AMONG_THRESHOLDS.items():
        assert profile in PROFILE_NAMES
        assert not {key.key for key in FOUNDING_THRESHOLDS[profile]} & set(settings)
    assert set(FOUNDING_THRESHOLDS) <= set(PROFILE_NAMES)
