"""A simulated machine under load: a server, sensors, a probe and a clock that only the load moves."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.core.records import RequestRecord, TelemetryRecord
from pytest_llmbench.core.settings import StressSettings
from pytest_llmbench.core.statistics import StoppingRule
from pytest_llmbench.errors import LlmbenchError
from pytest_llmbench.profiles.base import STOOD_STILL, Measurement, ProfileContext, PromptTokens
from pytest_llmbench.profiles.stress import StressProfile

WAIT_SECONDS = 0.1
PERIOD_SECONDS = 0.5
READING_SECONDS = 0.003
DATA = Path(__file__).parents[3] / "data"


@dataclass
class Machine:
    """All functions are of the seconds since its clock began, warm-up included.

    Attributes:
        rate: tokens per second.
        noise: standard deviation of the rate from answer to answer, relative.
        sensors: values of a reading.
        delays: of the probe, in ms: when it should have been woken, how late it was.
        failures: that are raised, by number of the request; 0 is the warm-up.
        standing_still: requests during which something stood still.
        changes: fields of the record of a request, by its number.
        stalls: seconds for which the stream of a request rests in its middle.
        is_sampled: whether there is a sampler; without, readings are only taken when asked for.
        seed: of the noise.
    """

    rate: Callable[[float], float] = lambda _: 50.0
    noise: float = 0.01
    sensors: Callable[[float], Mapping[str, float]] = lambda _: {}
    delays: Sequence[tuple[float, float]] = ()
    failures: Mapping[int, LlmbenchError] = field(default_factory=dict)
    standing_still: Collection[int] = ()
    changes: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    stalls: Mapping[int, float] = field(default_factory=dict)
    is_sampled: bool = True
    seed: int = 0
    seconds: float = 0.0
    asked_tokens: list[int] = field(default_factory=list)
    filed: list[RequestRecord] = field(default_factory=list)
    probe_ran: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._asked_for: list[TelemetryRecord] = []

    def clock(self) -> int:
        return round(self.seconds * 1e9)

    @property
    def why_not(self) -> Mapping[str, str]:
        return {}

    def now(self) -> TelemetryRecord:
        self.seconds += READING_SECONDS
        self._asked_for.append(self._reading(self.seconds))
        return self._asked_for[-1]

    def between(self, begin_ns: int, end_ns: int) -> Sequence[TelemetryRecord]:
        """What the sampler has read, and what it was asked to read between."""
        first, last = -(-begin_ns // int(PERIOD_SECONDS * 1e9)), end_ns // int(PERIOD_SECONDS * 1e9)
        times = range(first, last + 1) if self.is_sampled else ()
        asked_for = [one for one in self._asked_for if self.is_sampled and begin_ns <= one.t_ns <= end_ns]
        found = [*(self._reading(PERIOD_SECONDS * number) for number in times), *asked_for]
        return sorted(found, key=lambda record: record.t_ns)

    def start(self) -> None:
        self.probe_ran.append(True)

    def since(self, t_ns: int) -> list[float]:
        return [late for at, late in self.delays if t_ns <= (at + late / 1000) * 1e9 <= self.clock()]

    def stop(self) -> list[float]:
        self.probe_ran.append(False)
        return [late for at, late in self.delays if (at + late / 1000) * 1e9 <= self.clock()]

    def answer(self, generation: Generation, phase: Literal["warmup", "sample"]) -> RequestRecord:
        """Stream an answer; the clock is at its end then."""
        number, tokens = len(self.asked_tokens), generation.max_tokens
        self.asked_tokens.append(tokens)
        send = self.seconds
        gap = 1 / (self.rate(send) * max(0.1, self._chance.gauss(1, self.noise)))
        times = [send + WAIT_SECONDS + gap * index for index in range(tokens)]
        rest = self.stalls.get(number, 0.0)
        times = [at + (rest if index >= tokens // 2 else 0.0) for index, at in enumerate(times)]
        self.seconds = times[-1] + 0.001
        fields: dict[str, Any] = {
            "cell": None,
            "index": number,
            "phase": phase,
            "ok": True,
            "protocol": "llama_cpp",
            "t_send_ns": round(send * 1e9),
            "t_end_ns": round(self.seconds * 1e9),
            "decode_tokens_per_second": (tokens - 1) / (times[-1] - times[0]),
            "prompt_tokens": 140,
            "output_tokens": tokens,
            "chunks": tokens,
            "token_offsets_us": [round((at - send) * 1e6) for at in times],
            "finish_reason": "length",
            "flags": [STOOD_STILL] if number in self.standing_still else [],
        }
        return RequestRecord(**{**fields, **self.changes.get(number, {})})

    def file(self, record: RequestRecord) -> None:
        self.filed.append(record)

    def _reading(self, seconds: float) -> TelemetryRecord:
        return TelemetryRecord(cell=None, t_ns=round(seconds * 1e9), values=dict(self.sensors(seconds)))


@dataclass
class StressedContext(ProfileContext):
    """Asks the machine instead of a server."""

    machine: Machine = field(default_factory=Machine)

    def request(
        self, generation: Generation, phase: Literal["warmup", "sample"], *, may_stand_still: bool = False
    ) -> RequestRecord:
        assert phase == "warmup"  # no other request of this profile may raise because it failed
        assert not may_stand_still
        return self.machine.answer(generation, phase)

    def ask(self, generation: Generation, phase: Literal["warmup", "sample"] = "sample") -> RequestRecord:
        assert generation.demand_length
        record = self.machine.answer(generation, phase)
        error = self.machine.failures.get(record.index)
        if error is not None:
            self.file(record, usable=False)
            raise error
        return record

    def prompt_tokens(self, prompt: str) -> PromptTokens:
        return PromptTokens(140, exact=True)


def context_of(machine: Machine, **settings: Any) -> StressedContext:
    """Two simulated minutes, a row every ten seconds, unless ``settings`` say otherwise."""
    return StressedContext(
        endpoint=Endpoint("http://127.0.0.1:9", "llama_cpp"),
        settings=StressSettings(**{"duration": 2, "sample_interval": 10, **settings}),
        rule=StoppingRule(6, 20, 5, 60, {}),
        nodeid=None,
        data_dirs=[DATA],
        sink=machine.file,
        on_failure=lambda error: error,
        telemetry=machine,
        machine=machine,
    )


def stress(machine: Machine, **settings: Any) -> Measurement:
    """What the profile finds out on it."""
    return StressProfile(lambda: machine, machine.clock).run(context_of(machine, **settings))


LOST_CONNECTION: Mapping[str, Any] = {
    "ok": False,
    "error": "connection_lost",
    "error_message": "the server closed the connection",
}
