"""A server that is none: what it answers, and how long that took, is written down beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.settings import InteractiveSettings
from pytest_llmbench.core.statistics import StoppingRule
from pytest_llmbench.errors import LlmbenchError, RequestError
from pytest_llmbench.profiles.base import ProfileContext

ROOT = Path(__file__).parents[3]
SECOND = 1_000_000_000
STORY_TOKENS = 101
TEXT = "It was dark. Nobody came. "
Answer = dict[str, Any]


def answer(
    *,
    rate: float = 50.0,
    ttft: float = 0.2,
    tokens: int = STORY_TOKENS,
    text: str = TEXT,
    thoughts: int = 0,
    seconds: Sequence[float] | None = None,
    **changes: Any,
) -> Answer:
    """Fields of a record: one token per piece, the first after ``ttft`` seconds, the others evenly at ``rate``.

    Args:
        text: the answer; its characters are dealt to the pieces evenly, the rest to the last one.
        thoughts: how many of the pieces come first and are reasoning.
        seconds: of the pieces' arrivals, where they are not even.
    """
    times = list(seconds) if seconds is not None else [ttft + number / rate for number in range(tokens)]
    said = tokens - thoughts
    each, rest = divmod(len(text), said)
    fields: Answer = {
        "ttft_seconds": times[thoughts],
        "decode_tokens_per_second": (tokens - 1) / (times[-1] - times[0]) if tokens > 1 else None,
        "t_first_reasoning_ns": round(times[0] * SECOND) if thoughts else None,
        "t_first_token_ns": round(times[thoughts] * SECOND),
        "t_last_token_ns": round(times[-1] * SECOND),
        "t_end_ns": round(times[-1] * SECOND) + 1,
        "prompt_tokens": 140,
        "cached_tokens": 0,
        "output_tokens": tokens,
        "chunks": tokens,
        "token_offsets_us": [round(time * 1e6) for time in times],
        "piece_characters": [0] * thoughts + [each] * (said - 1) + [each + rest],
        "finish_reason": "length",
        "response_model": "tiny",
        "output": text,
        "reasoning": "hm " * thoughts,
    }
    return {**fields, **changes}


def failure(code: str, message: str) -> Answer:
    return {"ok": False, "error": code, "error_message": message, "t_end_ns": SECOND}


@dataclass
class Script:
    """What is answered: each story and short answer by its number; the last of a list again and again.

    Attributes:
        asked: every request, in order.
        filed: the record of each.
        death: what explains a failed request, where that is the end of the server.
    """

    stories: Sequence[Answer] = field(default_factory=lambda: [answer()])
    lines: Sequence[Answer] = field(default_factory=lambda: [answer(tokens=8, finish_reason="stop")])
    paragraphs: Sequence[Answer] = field(default_factory=lambda: [answer(tokens=80, finish_reason="stop")])
    warmup: Answer = field(default_factory=lambda: answer(tokens=32))
    asked: list[Generation] = field(default_factory=list)
    filed: list[RequestRecord] = field(default_factory=list)
    death: LlmbenchError | None = None

    def send(self, endpoint: Endpoint, generation: Generation, **labels: Any) -> RequestRecord:
        """Stands in for :func:`pytest_llmbench.client.load.send`."""
        if labels["phase"] == "warmup":
            fields = self.warmup
        else:
            kind = self._kind(generation)
            number = sum(self._kind(before) is kind for before in self.asked[1:])
            fields = kind[min(number, len(kind) - 1)]
        self.asked.append(generation)
        protocol = endpoint.protocol if generation.messages is None else endpoint.chat_protocol
        return RequestRecord(**{"ok": True, "protocol": protocol, "t_send_ns": 0, **labels, **fields})

    def file(self, record: RequestRecord) -> None:
        """Where records go."""
        self.filed.append(record)

    def _kind(self, generation: Generation) -> Sequence[Answer]:
        if generation.messages is None:
            return self.stories
        return self.lines if generation.max_tokens == 64 else self.paragraphs

    @property
    def story_count(self) -> int:
        return sum(self._kind(generation) is self.stories for generation in self.asked[1:])


def context(
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    *,
    endpoint: Endpoint | None = None,
    settings: InteractiveSettings | None = None,
    stood_still: Callable[[], bool] = lambda: False,
    **rule: Any,
) -> ProfileContext:
    """What a profile is given, with the script as its server; ``rule`` changes the stopping rule."""
    monkeypatch.setattr("pytest_llmbench.profiles.base.send", script.send)
    limits: dict[str, Any] = {"min_samples": 6, "max_samples": 20, "target_half_width_percent": 5, "max_seconds": 1e6}

    def explain(error: RequestError) -> LlmbenchError:
        return script.death or error

    return ProfileContext(
        endpoint=endpoint or Endpoint("http://127.0.0.1:1", "llama_cpp"),
        settings=settings or InteractiveSettings(output_tokens=STORY_TOKENS, short_answers=0),
        rule=StoppingRule(**{**limits, "limits": {}, **rule}),
        nodeid="the cell",
        data_dirs=[ROOT / "data"],
        sink=script.file,
        on_failure=explain,
        disturbance=lambda _begin, _end: _Stop() if stood_still() else None,
    )


class _Stop:
    sentence = "the machine stood still for 3 s"
