"""What crosses processes and runs: one object per cell and one per request. Primitives only, versioned."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pytest_llmbench.errors import Primitive, RecordError

SCHEMA_VERSION = 1

Status = Literal["passed", "failed", "error", "skipped", "blocked", "invalid"]
Rating = Literal["excellent", "good", "acceptable", "poor", "failed"]
Verdict = Literal["pass", "fail", "inconclusive"]
Change = Literal["regressed", "improved", "unchanged", "inconclusive", "not_comparable"]

# Doubts about a measurement. A clean one has none; what needs no doubt goes into notes.
FLAGS: dict[str, str] = {
    "prompt_cache_hit": "the server answered part of a prompt from its cache; those requests are not samples",
    "short_answer": "answers ended before the requested length; those requests are not samples",
    "imprecise": "the interval stayed wider than asked for; was the machine busy? close other programs, run again",
    "drift": "the samples rise or fall with time, so no single number describes them",
    "server_timing_mismatch": "the server's own times differ by more than 5 % from what was measured here",
    "tokens_not_counted": "the server did not always say how many tokens it produced; those requests have no rate",
    "client_late": "this client was late itself, by more than the tolerance, in a fifth of the samples or more",
    "stood_still": "the machine, the server or this client stood still meanwhile; those requests are not samples",
    "swapped": "part of the server's memory was swapped out while it was measured",
    "throttled": "the hardware lowered its frequency because of heat or power while this was measured",
    "power_saving": "the machine saves power: a governor, battery or turbo setting slows it down",
    "busy_machine": "others used this machine's cores while this was measured",
    "outliers": "some samples lie far off the others; they were kept, and measured again where time was left",
    "leaking": "the server's memory grew with every request",
    "degrading": "the server became slower while it worked",
    "loads_differ": "the numbers differ more from one load of the model to the next than within one",
    "answers_cut": "many answers were cut off at settings.quality.output_tokens; what they lacked counts as wrong",
    "aborted": "the run was ended before its time, to keep the machine safe; the numbers are of the time until then",
    "model_reloaded": "the server loaded the model again between requests; those requests are not samples",
    "prompt_truncated": "the server did not read the whole prompt, so every number is of another prompt",
    "another_model_answered": "a model other than the cell's answered",
    "server_restarted": "the server was restarted while it was measured",
    "partial_gpu_offload": "part of the model was to be on the GPU and is not",
    "chunked_stream": "several tokens arrive together; where that would shift a rate by over 2 % it is absent",
}

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Record(BaseModel):
    """Base of everything that is written and read back."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class MetricValue(Record):
    """A metric of one cell: the headline value and its 95 % interval (None where n does not allow one)."""

    value: Finite
    unit: str
    n: int
    ci_low: Finite | None = None
    ci_high: Finite | None = None


class ThresholdResult(Record):
    key: str
    metric: str
    side: Literal["min", "max"]
    limit: Finite
    critical: bool
    observed: Finite | None
    ci_low: Finite | None
    ci_high: Finite | None
    n: int
    verdict: Verdict
    margin_percent: Finite | None


class MetricComparison(Record):
    """A metric of a cell beside the same of an earlier run.

    Attributes:
        old: the earlier run's value; None where it has none that can be compared.
        ratio: new / old; its 95 % interval is ``ci_low`` to ``ci_high``, None where neither run tells how loads differ.
        p_value: adjusted for all that is compared; None where nothing was tested.
        limit_percent: how much worse counts.
        message: the verdict in words, with what would be needed for one that is missing.
    """

    metric: str
    old: Finite | None
    new: Finite | None
    ratio: Finite | None
    ci_low: Finite | None
    ci_high: Finite | None
    p_value: Finite | None
    limit_percent: Finite
    verdict: Change
    message: str


class Reason(Record):
    """Why a cell is not simply passed."""

    code: str
    message: str
    evidence: dict[str, Primitive] = {}


class ServerInfo(Record):
    """The server as it ran: what was asked for in ``args``, what it reported beside it."""

    kind: str
    version: str | None = None
    args: dict[str, Primitive] = {}
    context_size: int | None = None
    pid: int | None = None
    load_seconds: Finite | None = None
    page_cache_percent: Finite | None = None


class ModelFile(Record):
    path: str
    size_bytes: int
    sha256: str | None


class MemoryRecord(Record):
    """What a cell's server was predicted to need, what there was, and what was then observed; bytes.

    Attributes:
        method: None where nothing was predicted.
        predicted_bytes: from the header, not corrected; with ``low`` and ``high`` where it is no point but bounds.
        required_bytes: what was compared with ``available_bytes``: corrected by earlier runs, and without what the
            kernel can drop; without the device's part, which is ``device_bytes``.
        parts: of the prediction, host and device together.
        correction_factor: what earlier runs of this host made of the prediction; None where there were none like it.
        bound_by: what ``available_bytes`` is bound by: ``machine``, ``cgroup`` or ``max_memory_gb``.
        observed_peak_bytes: the most memory that the server's processes had while the cell was measured.
        observed_source: ``pss``, or ``rss`` where only that could be read.
        observed_max_rss_bytes: the kernel's own maximum since the server began, which misses no moment and counts
            pages that are shared with others in full.
        machine_swapped_bytes: what the machine swapped out meanwhile, of whatever process.
        pressure_percent: the share of time in which all work stood still for want of memory (PSI, full, 10 s), at most.
        least_left_bytes: of main memory, meanwhile.
    """

    method: Literal["header", "file_size"] | None = None
    predicted_bytes: int | None = None
    predicted_low_bytes: int | None = None
    predicted_high_bytes: int | None = None
    required_bytes: int | None = None
    device_bytes: int | None = None
    parts: dict[str, int] = {}
    correction_factor: Finite | None = None
    correction_samples: int = 0
    available_bytes: int | None = None
    bound_by: str | None = None
    device_free_bytes: int | None = None
    observed_peak_bytes: int | None = None
    observed_source: str | None = None
    observed_max_rss_bytes: int | None = None
    observed_swap_bytes: int | None = None
    observed_device_bytes: int | None = None
    machine_swapped_bytes: int | None = None
    pressure_percent: Finite | None = None
    least_left_bytes: int | None = None


class CellRecord(Record):
    """One line of ``cells.jsonl``.

    Attributes:
        settings: what the configuration asks of the server, so that cells of other models can be compared with this
            one; ``server`` says what ran.
        expected_failure: why the suite expects this cell to fail (``pytest.mark.xfail``), if it did.
        samples: of the metrics that are medians, every sample, by load of the model.
        comparisons: with the baseline of ``--llmbench-baseline``.
        details: rows of which the metrics are the summary, by table: sizes of a context, documents, questions, …
        phases_seconds: where the time of the cell went, by phase; their sum is at most ``duration_seconds``.
        device: what it was measured on: ``cpu``, or a GPU as it is named in ``CUDA_VISIBLE_DEVICES``; None where it was
            not.
    """

    schema_version: int = SCHEMA_VERSION
    run_id: str
    nodeid: str
    backend: str
    model: str
    quantization: str
    model_size: str
    profile: str
    variant: str | None
    settings: dict[str, Primitive] = {}
    device: str | None = None
    status: Status
    reason: Reason | None = None
    expected_failure: str | None = None
    metrics: dict[str, MetricValue] = {}
    samples: dict[str, list[list[Finite]]] = {}
    thresholds: list[ThresholdResult] = []
    comparisons: list[MetricComparison] = []
    rating: Rating | None = None
    interpretation: str | None = None
    flags: list[str] = []
    notes: list[str] = []
    sampling: dict[str, Primitive] = {}
    details: dict[str, list[dict[str, Primitive]]] = {}
    phases_seconds: dict[str, Finite] = {}
    answered_requests: int = 0
    server: ServerInfo
    model_file: ModelFile | None = None
    memory: MemoryRecord | None = None
    host: str
    started_at: str
    duration_seconds: Finite


class RequestRecord(Record):
    """One line of ``requests.jsonl``. Times ending in ``_ns`` are readings of the monotonic clock of one process.

    Attributes:
        piece_characters: how many characters of ``output`` came with each piece in ``token_offsets_us``; 0 for one of
            reasoning. Empty where that is not known.
    """

    schema_version: int = SCHEMA_VERSION
    cell: str | None
    index: int
    phase: Literal["warmup", "sample"]
    ok: bool
    error: str | None = None
    error_message: str | None = None
    usable: bool = True
    flags: list[str] = []
    protocol: str
    retries: int = 0
    connection_reused: bool = False
    t_scheduled_ns: int | None = None
    t_send_ns: int
    t_first_byte_ns: int | None = None
    t_first_event_ns: int | None = None
    t_first_reasoning_ns: int | None = None
    t_first_token_ns: int | None = None
    t_last_token_ns: int | None = None
    t_end_ns: int
    connect_seconds: Finite | None = None
    ttft_seconds: Finite | None = None
    time_to_first_reasoning_seconds: Finite | None = None
    decode_tokens_per_second: Finite | None = None
    client_lag_ms: Finite = 0.0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_source: str | None = None
    chunks: int = 0
    token_offsets_us: list[int] = []
    piece_characters: list[int] = []
    finish_reason: str | None = None
    prompt_truncated: bool = False
    response_id: str | None = None
    response_model: str | None = None
    server_timings: dict[str, Any] | None = None
    params: dict[str, Any] = {}
    output: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, str]] = []


class TelemetryRecord(Record):
    """One line of ``telemetry.jsonl``: what the sensors of a machine said at one moment.

    Attributes:
        cell: the node id of the cell that was being measured.
        t_ns: of the same monotonic clock as the requests' times.
        values: by name, units in the name; those that are counted since the machine or server began end in ``_total``.
            What a machine has no sensor for is absent.
    """

    schema_version: int = SCHEMA_VERSION
    cell: str | None
    t_ns: int
    values: dict[str, Finite]


def to_line(record: Record) -> str:
    """One JSON object on one line, ASCII only: model output may hold what UTF-8 can not (lone surrogates).

    A number that JSON can not hold becomes text: a server may well say ``1e999``, which Python reads as infinity.
    """
    data = record.model_dump(mode="python")
    try:
        return _dump(data)
    except ValueError:
        return _dump(_without_infinities(data))


def _dump(data: Any) -> str:
    return json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _without_infinities(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_infinities(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_without_infinities(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def cell_from_line(line: str, where: str) -> CellRecord:
    """Check and read back a line of ``cells.jsonl``; a long run has thousands.

    Raises:
        RecordError: not such a record, or written by a later version of this package.
    """
    try:
        record = CellRecord.model_validate_json(line)
    except ValidationError:
        record = None
    if record is not None and record.schema_version <= SCHEMA_VERSION:
        return record
    try:  # once more, for the words
        data = json.loads(line)
    except ValueError as exc:
        raise RecordError(f"{where}: not JSON; was the file edited?") from exc
    return cell_from(data, where)


def cell_from(data: Any, where: str) -> CellRecord:
    """Check and read back a cell record.

    Raises:
        RecordError: not such a record, or written by a later version of this package.
    """
    if (
        isinstance(data, dict)
        and isinstance(data.get("schema_version"), int)
        and data["schema_version"] > SCHEMA_VERSION
    ):
        msg = (
            f"{where}: written with schema {data['schema_version']}, this version reads up to {SCHEMA_VERSION}; upgrade"
        )
        raise RecordError(msg)
    try:
        return CellRecord.model_validate(data)
    except ValidationError as exc:
        first = exc.errors()[0]
        msg = f"{where}: not a cell record: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise RecordError(msg) from exc
