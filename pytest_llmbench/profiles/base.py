"""What a profile is: a way of using a model, with a procedure and the metrics it yields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import send
from pytest_llmbench.client.prompts import count_tokens, nonce, words
from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import MetricValue, RequestRecord
from pytest_llmbench.core.statistics import Interval, StoppingRule, median, median_interval
from pytest_llmbench.errors import LlmbenchError, MeasurementInvalid, Primitive, RequestError
from pytest_llmbench.telemetry.base import NoTelemetry, Telemetry

STOOD_STILL = "stood_still"
ABORTED = "aborted after"  # a note that begins so says why a measurement was ended before its time

__all__ = [
    "ABORTED",
    "STOOD_STILL",
    "FailedRequest",
    "Measurement",
    "Profile",
    "ProfileContext",
    "PromptTokens",
    "RequestSink",
    "nonce",
]


@dataclass
class Measurement:
    """What a profile found out.

    Attributes:
        samples: of the metrics that are medians, in the order they were taken.
        by_load: the same, apart for each load of the model, where there were several.
        flags: doubts, codes of ``records.FLAGS``.
        notes: remarks without doubt.
        sampling: the stopping rule at work: how many samples, why it stopped.
        details: rows of which the metrics are the summary, by table.
    """

    metrics: dict[str, MetricValue] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    by_load: dict[str, list[list[float]]] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sampling: dict[str, Primitive] = field(default_factory=dict)
    details: dict[str, list[dict[str, Primitive]]] = field(default_factory=dict)

    def add_median(self, name: str, samples: Sequence[float]) -> None:
        """Add a metric as the median of its samples with an order-statistic interval; nothing for no samples."""
        if samples:
            self.samples[name] = list(samples)
            self.add(name, median(samples), median_interval(samples), len(samples))

    @property
    def samples_by_load(self) -> dict[str, list[list[float]]]:
        """Of each metric that is a median, its samples by load."""
        return {name: self.by_load.get(name, [samples]) for name, samples in self.samples.items()}

    def add_exact(self, name: str, value: float, n: int = 1) -> None:
        """Add a count or an extreme of what happened: it has no interval but itself. Raises KeyError as ``add``."""
        self.add(name, value, Interval(value, value), n)

    def add(self, name: str, value: float, interval: Interval | None, n: int) -> None:
        """Add a metric of the registry. Raises KeyError for a name that is not in it."""
        self.metrics[name] = MetricValue(
            value=value,
            unit=METRICS[name].unit,
            n=n,
            ci_low=interval.low if interval else None,
            ci_high=interval.high if interval else None,
        )

    def flag(self, code: str) -> None:
        """Add a doubt once."""
        if code not in self.flags:
            self.flags.append(code)


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """What a prompt's length should be by the server's count: exactly so many, or so many at least."""

    expected: int
    exact: bool

    def contradicts(self, record: RequestRecord) -> bool:
        """Whether the server read another number of tokens: it cut the prompt (P09)."""
        read = record.prompt_tokens
        if record.prompt_truncated:
            return True
        return read is not None and (read != self.expected if self.exact else read < self.expected)


class RequestSink(Protocol):
    """Takes each request's record as soon as it is complete."""

    def __call__(self, record: RequestRecord) -> None: ...


class FailedRequest(Protocol):
    """Turns a failed request into the error of the cell: the server may have died, which explains more."""

    def __call__(self, error: RequestError) -> LlmbenchError: ...


class Disturbance(Protocol):
    """Something stood still: ``sentence`` says what, and for how long."""

    @property
    def sentence(self) -> str: ...


def _nothing(_begin_ns: int, _end_ns: int) -> Disturbance | None:
    return None


# What fails of one request because of who is asked or how, not because of what.
_OF_EVERY_REQUEST = {
    "connection_refused",
    "connect_timeout",
    "unreachable",
    "tls_failed",
    "wrong_key",
    "not_found",
    "model_missing",
    "not_an_llm_server",
    "not_streamed",
    "prompt_not_supported",
}


def _failure_of(record: RequestRecord) -> RequestError:
    return RequestError(record.error or "failed", record.error_message or "the request failed")


@dataclass
class ProfileContext:
    """What a profile may use: a server to ask, a rule for when it is enough, its settings and data.

    Attributes:
        rule: also holds the limits in force, by metric.
        nodeid: labels the request records.
        next_index: the number of the next request of this cell.
        context_size: tokens that the server's context holds, None where it does not tell.
        data_dirs: where data files are looked for, the first that has one wins.
        rootdir: what paths in the settings are relative to.
        telemetry: what the sensors say, now and at the times of requests.
        refused_sizes: contexts that were asked for and that this server can not have: size in tokens → why.
        disturbance: what stood still (the machine, this process, the server) between two times of
            ``time.perf_counter_ns``.
        disturbances: collects what did, in sentences.
    """

    endpoint: Endpoint
    settings: Any
    rule: StoppingRule
    nodeid: str | None
    data_dirs: Sequence[Path]
    sink: RequestSink
    on_failure: FailedRequest
    next_index: int = 0
    context_size: int | None = None
    rootdir: Path = Path()
    telemetry: Telemetry = field(default_factory=NoTelemetry)
    refused_sizes: Mapping[int, str] = field(default_factory=dict)
    disturbance: Callable[[int, int], Disturbance | None] = _nothing
    disturbances: list[str] = field(default_factory=list)

    def read_data(self, name: str) -> str:
        """The text of a data file. Raises FileNotFoundError when no folder has it."""
        for folder in self.data_dirs:
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8")
        raise FileNotFoundError(name)

    def request(
        self, generation: Generation, phase: Literal["warmup", "sample"], *, may_stand_still: bool = False
    ) -> RequestRecord:
        """Send one request; its record is returned, not yet filed: the profile decides whether it is a sample.

        Args:
            may_stand_still: whether the profile can do with a request during which the machine, the server or this
                process stood still: it has the flag ``stood_still``, is no sample, and may have failed, which says
                nothing about the server.

        Raises:
            LlmbenchError: the request failed, or something stood still. Its record is filed before.
        """
        record, stood_still = self._send(generation, phase)
        if stood_still is not None:
            if may_stand_still:
                return record
            if phase == "sample":
                self.file(record, usable=False)
                raise MeasurementInvalid(STOOD_STILL, f"{stood_still.sentence}; run the cell again")
        only_reasoned = record.error == "empty_answer" and bool(record.reasoning)
        if not record.ok and not (phase == "warmup" and only_reasoned):  # a warm-up is too short to think to an end
            self.file(record, usable=False)
            raise self.on_failure(_failure_of(record))
        return record

    def ask(self, generation: Generation, phase: Literal["warmup", "sample"] = "sample") -> RequestRecord:
        """Send one request that may fail: its record says so, and the profile counts it. It is not yet filed.

        During it, something may have stood still, as with ``may_stand_still``.

        Raises:
            LlmbenchError: the server died of it, or no other request would fare better. The record is filed before.
        """
        record, stood_still = self._send(generation, phase)
        if record.ok or stood_still is not None:
            return record
        failure = self.on_failure(_failure_of(record))
        if isinstance(failure, RequestError) and failure.code not in _OF_EVERY_REQUEST:
            return record
        self.file(record, usable=False)
        raise failure

    def _send(
        self, generation: Generation, phase: Literal["warmup", "sample"]
    ) -> tuple[RequestRecord, Disturbance | None]:
        """Send one request; its record is flagged where something stood still meanwhile."""
        record = send(self.endpoint, generation, cell=self.nodeid, index=self.next_index, phase=phase)
        self.next_index += 1
        stood_still = self.disturbance(record.t_send_ns, record.t_end_ns)
        if stood_still is not None:
            self.disturbances.append(stood_still.sentence)
            record = record.model_copy(update={"flags": [*record.flags, STOOD_STILL]})
        return record, stood_still

    def prompt_tokens(self, prompt: str) -> PromptTokens:
        """How many tokens the server should say it has read, known before anything is timed.

        Exactly what its own tokenizer counts, where it has one and nothing is added to the text; at least that where a
        chat template is; else at least half the words: few tokenizers ever make one token of two words, none of most.
        """
        counted = count_tokens(self.endpoint, prompt) if self.endpoint.capabilities.tokenizer else None
        if counted is None:
            return PromptTokens(words(prompt) // 2, exact=False)
        return PromptTokens(counted, exact=self.endpoint.protocol == "llama_cpp")

    def file(self, record: RequestRecord, *, usable: bool = True) -> None:
        """Write a request's record."""
        self.sink(record if usable else record.model_copy(update={"usable": False}))


class Profile(Protocol):
    """A profile as users register it (see ``hookspecs.py``).

    Attributes:
        name: its marker, its key in the configuration.
        emits: names of the metrics it yields; thresholds may judge exactly these.
        settings_model: a pydantic model of what ``settings.<name>`` may hold.

    A profile may also have ``needed_context(settings) -> int | None``: the tokens a server's context must hold for it,
    prompt and answer together; or ``context_sizes(settings) -> Sequence[int]``, ascending: those it would like to have,
    of which the server is given the largest that the model and the memory allow. And
    ``check_settings(settings, rootdir)``, called at start: it raises ConfigError for files that settings name and that
    can not be used.
    """

    name: str
    emits: tuple[str, ...]
    settings_model: type[Any]

    def run(self, context: ProfileContext) -> Measurement:
        """Measure. Raises LlmbenchError when that is not possible."""
        ...
