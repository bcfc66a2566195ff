"""What a server says of its own times, in one form whoever said it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_OLLAMA_DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
_LLAMA_CPP_TIMES = ("prompt_ms", "predicted_ms")

_LARGEST = 1e18  # nanoseconds of thirty years; also keeps a server's nonsense from overflowing a division
_SHORTEST_SECONDS = 1e-9

# Finding a loaded model takes Ollama some 10-80 ms, because it reads its files each time. Loading even the smallest
# takes longer than this; 100 MB took 0.44 s where finding it took 0.05 s, so a larger factor would miss that.
_SHORTEST_RELOAD_SECONDS = 0.2
_RELOAD_FACTOR = 4.0


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """llama.cpp's ``timings`` or Ollama's durations. What a server does not tell, or tells as nonsense, is None.

    Attributes:
        prompt_seconds: reading the prompt, only the part that was in no cache.
        prompt_tokens: the whole prompt, cached tokens included.
        cached_tokens: how many of them came from a cache. Ollama never tells: it counts them in ``prompt_eval_count``,
            but not in ``prompt_eval_duration`` (P02).
        decode_tokens_per_second: over the intervals between tokens; both servers leave the first token out of the time.
        load_seconds: loading the model (or finding it loaded) before this request; Ollama's includes queueing.
    """

    prompt_seconds: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    decode_tokens_per_second: float | None = None
    load_seconds: float | None = None

    @classmethod
    def of(cls, server_timings: Mapping[str, Any] | None) -> ServerTimes:
        """Read a record's ``server_timings``, whichever server they are from."""
        timings = server_timings or {}
        if any(key in timings for key in _OLLAMA_DURATIONS):
            return cls._of_ollama(timings)
        if any(key in timings for key in _LLAMA_CPP_TIMES):
            return cls._of_llama_cpp(timings)
        return cls()

    @classmethod
    def _of_ollama(cls, timings: Mapping[str, Any]) -> ServerTimes:
        return cls(
            prompt_seconds=_seconds(timings, "prompt_eval_duration", 1e9),
            prompt_tokens=_count(timings, "prompt_eval_count"),
            decode_tokens_per_second=_rate(timings, "eval_count", _seconds(timings, "eval_duration", 1e9)),
            load_seconds=_seconds(timings, "load_duration", 1e9),
        )

    @classmethod
    def _of_llama_cpp(cls, timings: Mapping[str, Any]) -> ServerTimes:
        read, cached = _count(timings, "prompt_n"), _count(timings, "cache_n")
        return cls(
            prompt_seconds=_seconds(timings, "prompt_ms", 1e3),
            prompt_tokens=None if read is None or cached is None else read + cached,
            cached_tokens=cached,
            decode_tokens_per_second=_rate(timings, "predicted_n", _seconds(timings, "predicted_ms", 1e3)),
        )

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Prompt tokens by the time they took, only where the server says that none came from a cache."""
        if self.cached_tokens != 0 or not self.prompt_tokens or self.prompt_seconds is None:
            return None
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds >= _SHORTEST_SECONDS else None


def was_reloaded(server_timings: Mapping[str, Any] | None, warm_load_seconds: float | None = None) -> bool:
    """Whether the model was loaded again for this request, so that the request is no sample (P11).

    Args:
        warm_load_seconds: the load time a request tells while the model stays loaded, from warm-up; a server that
            always takes long to find its model, or queues, is then not taken for one that reloads.
    """
    load_seconds = ServerTimes.of(server_timings).load_seconds
    if load_seconds is None:
        return False
    return load_seconds > max(_SHORTEST_RELOAD_SECONDS, _RELOAD_FACTOR * (warm_load_seconds or 0.0))


def _count(timings: Mapping[str, Any], key: str) -> int | None:
    value = timings.get(key)
    return value if isinstance(value, int) and _is_sane(value) else None


def _seconds(timings: Mapping[str, Any], key: str, per_second: float) -> float | None:
    value = timings.get(key)
    return value / per_second if isinstance(value, (int, float)) and _is_sane(value) else None


def _is_sane(value: float) -> bool:
    return not isinstance(value, bool) and 0 <= value <= _LARGEST  # which NaN is not


def _rate(timings: Mapping[str, Any], count: str, seconds: float | None) -> float | None:
    tokens = _count(timings, count)
    if tokens is None or tokens < 2 or seconds is None or seconds < _SHORTEST_SECONDS:
        return None
    return (tokens - 1) / seconds
