"""A server's own times in one form, and whether its model was loaded again."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pytest_llmbench.client.timings import ServerTimes, was_reloaded

# As Ollama 0.33 sends them for a prompt of 100 tokens, 90 of them cached: only 10 were read in that time.
OLLAMA = {
    "total_duration": 3_100_000_000,
    "load_duration": 40_000_000,
    "prompt_eval_count": 100,
    "prompt_eval_duration": 50_000_000,
    "eval_count": 61,
    "eval_duration": 3_000_000_000,
}
LLAMA_CPP = {"cache_n": 0, "prompt_n": 100, "prompt_ms": 500.0, "predicted_n": 61, "predicted_ms": 3000.0}


def test_ollama_counts_cached_tokens_without_saying_so() -> None:
    times = ServerTimes.of(OLLAMA)
    assert times == ServerTimes(
        prompt_seconds=0.05,
        prompt_tokens=100,
        cached_tokens=None,
        decode_tokens_per_second=20.0,
        load_seconds=0.04,
    )
    assert times.prefill_tokens_per_second is None  # 2000 tokens/s would be ten times too many


def test_llama_cpp() -> None:
    times = ServerTimes.of(LLAMA_CPP)
    assert times == ServerTimes(
        prompt_seconds=0.5, prompt_tokens=100, cached_tokens=0, decode_tokens_per_second=20.0, load_seconds=None
    )
    assert times.prefill_tokens_per_second == 200.0


def test_no_prefill_rate_from_a_warm_prompt() -> None:
    times = ServerTimes.of({**LLAMA_CPP, "cache_n": 90, "prompt_n": 10})
    assert (times.prompt_tokens, times.cached_tokens) == (100, 90)
    assert times.prefill_tokens_per_second is None


@pytest.mark.parametrize(
    "timings",
    [
        None,
        {},
        {"anything": 1},
        {"eval_count": None, "eval_duration": "fast"},
        {"eval_count": 1, "eval_duration": 0},
        {"eval_count": True, "eval_duration": True},
        {"eval_count": -5, "eval_duration": -5},
        {"eval_count": 10.5, "eval_duration": 1e9},
        {"predicted_n": 61, "predicted_ms": math.nan},
        {"predicted_n": 61, "predicted_ms": math.inf},
        {"predicted_n": 61, "predicted_ms": 1e-320},
        {"predicted_n": 10**400, "predicted_ms": 1.0},
        {"predicted_n": 61, "predicted_ms": 10**400},
    ],
    ids=str,
)
def test_nonsense_is_unknown(timings: dict[str, Any] | None) -> None:
    times = ServerTimes.of(timings)
    assert times.decode_tokens_per_second is None
    assert times.prefill_tokens_per_second is None
    assert not was_reloaded(timings)


@pytest.mark.parametrize(
    ("load_ms", "warm_ms", "reloaded"),
    [
        (150, None, False),  # shorter than any load
        (2000, None, True),
        (2000, 40, True),
        (440, 50, True),  # a model of 100 MB
        (300, 80, False),  # not four times what finding the model takes on this machine
        (150, 1, False),  # a hundred times as long, but a hiccup, not a load
    ],
)
def test_reloads_show_in_the_load_time(load_ms: int, warm_ms: int | None, reloaded: bool) -> None:
    timings = {**OLLAMA, "load_duration": load_ms * 1_000_000}
    assert was_reloaded(timings, None if warm_ms is None else warm_ms / 1000) is reloaded


def test_a_server_without_load_times_is_not_taken_to_reload() -> None:
    assert not was_reloaded(LLAMA_CPP)
