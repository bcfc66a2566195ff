"""Measure the client's own timing error on this machine, against the replay server, which knows when it wrote what."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import pairwise

from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import ClosedLoop, run_load
from pytest_llmbench.client.transport import new_event_loop
from pytest_llmbench.core.calibration import Calibration, TimingError
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.errors import ServerError
from pytest_llmbench.runtime.replay import ReplayServer, TrueTimes
from pytest_llmbench.runtime.replay_server import clock_name

# A busy server's times: short answers, because each gives only one time to first token.
_TTFT_MS = 20.0
_GAP_MS = 10.0
_TOKENS = 16
_ANSWER_SECONDS = (_TTFT_MS + _GAP_MS * _TOKENS) / 1e3
_CLOCK_READINGS = 20_000


def calibrate(streams: Sequence[int] = (1, 16, 64), seconds: float = 4.0) -> Calibration:
    """Measure the timing error with so many streams at once. Nothing else should use the machine meanwhile.

    Args:
        seconds: for each number of streams.

    Raises:
        ServerError: the replay server could not be started, or the client lost an answer: nothing measured here would
            be worth much.
    """
    started, load = time.monotonic(), os.getloadavg()[0]
    try:
        clock = clock_name()
    except RuntimeError as exc:
        raise ServerError("calibration_failed", f"timing can not be calibrated: {exc}") from exc
    with ReplayServer(ttft_ms=_TTFT_MS, gap_ms=_GAP_MS, jitter=1.0) as server:
        _run(server, 1, 1)  # the first request pays for imports and caches
        errors = [_timing_error(server, count, max(1, round(seconds / _ANSWER_SECONDS))) for count in streams]
    return Calibration(
        clock=clock,
        clock_resolution_ns=clock_resolution_ns(),
        event_loop=_event_loop_name(),
        load_average=load,
        true_ttft_ms=_TTFT_MS,
        true_gap_ms=_GAP_MS,
        duration_seconds=time.monotonic() - started,
        errors=errors,
    )


def quick_calibration() -> Calibration:
    """One stream for about a second, for the record of each run. Raises ServerError; see :func:`calibrate`."""
    return calibrate(streams=(1,), seconds=1.0)


def clock_resolution_ns() -> int:
    """The smallest step that the clock was seen to make between two readings."""
    readings = [time.perf_counter_ns() for _ in range(_CLOCK_READINGS)]
    return min(b - a for a, b in pairwise(readings) if b > a)


def _event_loop_name() -> str:
    loop = new_event_loop()
    try:
        return type(loop).__module__.partition(".")[0]
    finally:
        loop.close()


def _run(server: ReplayServer, streams: int, answers_each: int) -> tuple[list[RequestRecord], float]:
    """Load the server; the records, and the processor time that took."""
    server.reset()
    endpoint = Endpoint(server.url, "openai_chat", "replay")
    generation = Generation(max_tokens=_TOKENS, prompt="count")
    records: list[RequestRecord] = []
    cpu_seconds = time.process_time()
    run_load(
        endpoint,
        (generation for _ in range(streams * answers_each)),
        # All at once would time how the server works off its queue, not how the client reads its clock.
        ClosedLoop(streams, ramp_seconds=_ANSWER_SECONDS),
        records.append,
    )
    return records, time.process_time() - cpu_seconds


def _timing_error(server: ReplayServer, streams: int, answers_each: int) -> TimingError:
    records, cpu_seconds = _run(server, streams, answers_each)
    truths = {truth.id: truth for truth in server.truth()}
    ttft_errors_ms: list[float] = []
    gap_errors_ms: list[float] = []
    tokens = 0
    for record in records:
        truth = truths.get(record.response_id or "")
        if truth is None or not record.ok or len(record.token_offsets_us) != truth.written:
            why = record.error_message or "an answer does not match what was sent"
            raise ServerError(
                "calibration_failed", f"timing could not be calibrated: {why}; is the machine overloaded?"
            )
        tokens += truth.written
        ttft_errors_ms.append(_ttft_error_ms(record, truth))
        gap_errors_ms += _gap_errors_ms(record, truth)
    lags_ms = [record.client_lag_ms for record in records]
    return TimingError(
        streams=streams,
        requests=len(records),
        tokens=tokens,
        ttft_error_mean_ms=sum(ttft_errors_ms) / len(ttft_errors_ms),
        ttft_error_p99_ms=_p99([abs(error) for error in ttft_errors_ms]),
        gap_error_mean_ms=sum(gap_errors_ms) / len(gap_errors_ms),
        gap_error_p99_ms=_p99(gap_errors_ms),
        client_lag_p99_ms=_p99(lags_ms),
        client_lag_max_ms=max(lags_ms),
        cpu_us_per_token=1e6 * cpu_seconds / tokens,
    )


def _ttft_error_ms(record: RequestRecord, truth: TrueTimes) -> float:
    assert record.ttft_seconds is not None and truth.ttft_seconds is not None  # noqa: S101, PT018 -- it has tokens
    return 1e3 * (record.ttft_seconds - truth.ttft_seconds)


def _gap_errors_ms(record: RequestRecord, truth: TrueTimes) -> list[float]:
    offsets = record.token_offsets_us
    seen = (b - a for a, b in pairwise(offsets))
    return [abs(gap_us / 1e3 - true_ns / 1e6) for gap_us, true_ns in zip(seen, truth.gaps_ns, strict=True)]


def _p99(values: Sequence[float]) -> float:
    import numpy as np

    return float(np.quantile(values, 0.99, method="inverted_cdf"))
