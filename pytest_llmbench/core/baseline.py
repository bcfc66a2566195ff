"""What is kept of a run to compare later ones with: one small file, made to be committed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from pytest_llmbench.core.environment import Environment, environment_of, gpus_of
from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import CellRecord, Finite, Record, Status
from pytest_llmbench.core.redaction import redacted
from pytest_llmbench.core.regression import NOT_COMPARED
from pytest_llmbench.core.resuming import last_of_each
from pytest_llmbench.core.statistics import LARGEST
from pytest_llmbench.errors import Primitive, RecordError

BASELINE_VERSION = 1
KIND: Literal["llmbench-baseline"] = "llmbench-baseline"
MEMORY = "peak_memory_gb"
SCORE = "quality_score_percent"

# What of each profile is compared; of a profile that a user registered, all that it has samples of. Few, because with
# every number more that is tested a change has to be larger to be told from chance.
COMPARED: dict[str, tuple[str, ...]] = {
    "interactive": ("decode_tokens_per_second", "ttft_seconds", MEMORY),
    "long_context": ("context_load_seconds", "depth_tokens_per_second", MEMORY),
    "batch": ("document_seconds", MEMORY),
    "quality": (SCORE, MEMORY),
    "stress": ("sustained_tokens_per_second", MEMORY),
}
# The profiles of ours that measurement.loads repeats; of a user's, nobody knows.
OVER_LOADS = ("interactive",)
# What two cells have to have done alike, by profile, and what it is called.
SAME_WORK: dict[str, dict[str, str]] = {
    "long_context": {"filled_tokens": "largest context that was filled", "output_tokens": "length of an answer"},
    "batch": {"documents": "number of documents", "output_tokens": "length of a summary"},
    "quality": {
        "bank_version": "version of the questions",
        "bank_fingerprint": "content of the questions",
        "output_tokens": "greatest length of an answer",
    },
    "stress": {"planned_seconds": "duration in seconds", "output_tokens": "length of an answer"},
}
SAME_WORK_OF_OTHERS = {"output_tokens": "length of an answer"}
TEST_SIZES = "test_sizes"
FILLED = "filled_tokens"

_DIGITS = 6  # significant ones: a millionth is far below what any clock here can tell
_MOST_SAMPLES = 50  # of one load; more are kept as so many evenly spaced quantiles of them
_REASON_CHARACTERS = 200
_Sample = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
_LOAD_PREFIX = re.compile(r"load_\d+\.")


class BaselineMetric(Record):
    """A metric's value; ``samples`` by load of the model, none of what is one number only."""

    value: Finite
    n: int
    samples: list[list[_Sample]] = Field(default_factory=list)


class BaselineSpread(Record):
    """How much loads differed in stored runs, when the baseline was saved: see ``regression.Spread``."""

    profile: str
    metric: str
    host: str
    log_sd: Annotated[float, Field(ge=0, le=LARGEST)]
    degrees: Annotated[int, Field(ge=1)]
    source: str


class BaselineCell(Record):
    """A cell of a run.

    Attributes:
        gpus: names of the machine's GPUs, None where it was measured on CPUs or nobody tells.
        settings: of the server: what was asked for, and what it ran with.
        reason: why it is not simply passed, in one line.
        work: what was asked of it: two cells that did other work can not be compared.
        answers: of a quality cell, 1 for each question that was answered correctly, else 0.
    """

    nodeid: str
    model: str
    quantization: str
    variant: str | None = None
    profile: str
    backend: str
    host: str
    device: str | None = None
    gpus: str | None = None
    settings: dict[str, Primitive] = Field(default_factory=dict)
    server_version: str | None = None
    file_sha256: str | None = None
    file_bytes: int | None = None
    status: Status
    reason: str | None = None
    flags: list[str] = Field(default_factory=list)
    work: dict[str, Primitive] = Field(default_factory=dict)
    metrics: dict[str, BaselineMetric] = Field(default_factory=dict)
    answers: dict[str, Literal[0, 1]] = Field(default_factory=dict)

    @property
    def is_measured(self) -> bool:
        """Whether its numbers may be believed."""
        return self.status in {"passed", "failed"}

    @property
    def key(self) -> tuple[str | None, ...]:
        """What makes it the same cell in another run, wherever its file lies there."""
        return self.model, self.quantization, self.variant, self.profile, self.nodeid.partition("::")[2]

    @property
    def name(self) -> str:
        """For people: ``<model> <quantization> [<variant>] <profile>``."""
        return " ".join(filter(None, (self.model, self.quantization, self.variant, self.profile)))


class Baseline(Record):
    """A run, as far as later ones are compared with it.

    Attributes:
        environment: see :func:`~pytest_llmbench.core.environment.environment_of`.
        spreads: from runs that were stored beside it when it was saved.
    """

    schema_version: int = BASELINE_VERSION
    kind: Literal["llmbench-baseline"] = KIND
    run_id: str
    environment: dict[str, Primitive] = Field(default_factory=dict)
    spreads: list[BaselineSpread] = Field(default_factory=list)
    cells: list[BaselineCell] = Field(default_factory=list)

    def counterpart(self, cell: BaselineCell, others: Collection[str] = ()) -> BaselineCell | None:
        """The same cell here, wherever its test file lies; None where there is none.

        Args:
            others: node ids of the other run: a cell that is still where it was has not moved.
        """
        same = [one for one in self.cells if one.key == cell.key]
        named = (one for one in same if one.nodeid == cell.nodeid)
        return next(named, None) or next((one for one in same if one.nodeid not in others), None)


def baseline_of(description: Mapping[str, Any], records: Iterable[CellRecord], run_id: str) -> Baseline:
    """What is compared of a run; of two records of a cell, the later one counts.

    Args:
        description: ``run.json``; empty where there is none.
    """
    environment = environment_of(description)
    cells = [baseline_cell(record, environment) for record in last_of_each(records).values()]
    return Baseline(run_id=run_id, environment=environment, cells=sorted(cells, key=lambda cell: cell.nodeid))


def baseline_cell(record: CellRecord, environment: Environment) -> BaselineCell:
    """What is compared of a cell.

    Args:
        environment: of its run, for what the record does not tell.
    """
    file, server = record.model_file, record.server
    context = {"context_size": server.context_size} if server.context_size is not None else {}
    reason = record.reason
    return BaselineCell(
        nodeid=record.nodeid,
        model=record.model,
        quantization=record.quantization,
        variant=record.variant,
        profile=record.profile,
        backend=record.backend,
        host=record.host,
        device=record.device,
        gpus=gpus_of(environment, record.host) if record.device not in (None, "cpu") else None,
        settings=redacted({**record.settings, **server.args, **context}),
        server_version=server.version,
        file_sha256=file.sha256 if file is not None else None,
        file_bytes=file.size_bytes if file is not None else None,
        status=record.status,
        reason=f"{reason.code}: {reason.message}".splitlines()[0][:_REASON_CHARACTERS] if reason is not None else None,
        flags=record.flags,
        work=_work(record),
        metrics={
            name: _metric(record, name)
            for name in compared_metrics(record.profile, record.samples)
            if name in record.metrics
        },
        answers={
            str(row["id"]): int(bool(row.get("correct")))
            for row in record.details.get("questions", ())
            if record.profile == "quality" and "id" in row
        },
    )


def compared_metrics(profile: str, sampled: Iterable[str]) -> tuple[str, ...]:
    """The metrics that are compared of a profile.

    Args:
        sampled: of a profile that a user registered, the names of what has samples.
    """
    if profile in COMPARED:
        return COMPARED[profile]
    fit = [
        name for name in sampled if name in METRICS and METRICS[name].better != "neither" and name not in NOT_COMPARED
    ]
    return (*fit, MEMORY)


def baseline_text(baseline: Baseline) -> str:
    """The file: JSON, ASCII, keys in order, one line for each cell, so that what changed can be read in a diff."""
    data = baseline.model_dump(mode="json", exclude_defaults=True)
    environment = [f"{_json(key)}: {_json(value)}" for key, value in sorted(data.get("environment", {}).items())]
    parts = [
        f'"kind": {_json(KIND)}',
        f'"schema_version": {baseline.schema_version}',
        f'"run_id": {_json(baseline.run_id)}',
        f'"environment": {_block("{", environment, "}")}',
        f'"spreads": {_block("[", map(_json, data.get("spreads", [])), "]")}',
        f'"cells": {_block("[", map(_json, data.get("cells", [])), "]")}',
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def baseline_from(text: str, where: str) -> Baseline:
    """Read a baseline's file back.

    Raises:
        RecordError: no baseline, or written by a later version of this package.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise RecordError(f"{where}: not JSON, so no baseline; write one with llmbench baseline save RUN FILE") from exc
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise RecordError(f"{where}: no baseline; write one with llmbench baseline save RUN FILE")
    version = data.get("schema_version")
    if isinstance(version, int) and version > BASELINE_VERSION:
        raise RecordError(
            f"{where}: written with schema {version} of baselines, this version reads up to {BASELINE_VERSION}; upgrade"
        )
    try:
        return Baseline.model_validate(data)
    except ValidationError as exc:
        first = exc.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecordError(f"{where}: {place}: {first['msg']}; was the file edited? save the baseline again") from exc


def _work(record: CellRecord) -> dict[str, Primitive]:
    """What was asked, from what the profile says of its sampling; of several loads, all did the same."""
    told = {_LOAD_PREFIX.sub("", key): value for key, value in record.sampling.items()}
    keys = SAME_WORK.get(record.profile, SAME_WORK_OF_OTHERS)
    work = {key: told[key] for key in keys if key in told}
    sizes = record.details.get("sizes", ()) if record.profile == "long_context" else ()
    filled = [row.get("context_tokens") for row in sizes if row.get("load_seconds") is not None]
    tokens = [size for size in filled if isinstance(size, int)]
    if tokens:
        work[FILLED] = max(tokens)
        work[TEST_SIZES] = ", ".join(str(row.get("context_tokens")) for row in sizes)
    return work


def _metric(record: CellRecord, name: str) -> BaselineMetric:
    metric = record.metrics[name]
    loads = record.samples.get(name, [])
    is_fit = all(abs(sample) <= LARGEST for load in loads for sample in load)
    samples = [_thinned(load) for load in loads if load] if is_fit else []
    return BaselineMetric(value=_rounded(metric.value), n=metric.n, samples=samples)


def _thinned(load: list[float]) -> list[float]:
    """At most 50 samples; of more, order statistics at even distances, which have about the same median and spread."""
    if len(load) <= _MOST_SAMPLES:
        return [_rounded(sample) for sample in load]
    ordered, step = sorted(load), len(load) / _MOST_SAMPLES
    return [_rounded(ordered[math.floor((index + 0.5) * step)]) for index in range(_MOST_SAMPLES)]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"))


def _block(begin: str, lines: Iterable[str], end: str) -> str:
    """A list or an object with a line for each item."""
    items = list(lines)
    return f"{begin}\n" + ",\n".join(items) + f"\n{end}" if items else f"{begin}{end}"
