"""Calibration: the client's times against times that are known."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pytest_llmbench import calibration as module
from pytest_llmbench.calibration import calibrate, clock_resolution_ns, quick_calibration
from pytest_llmbench.core.calibration import Calibration, TimingError
from pytest_llmbench.core.records import RequestRecord, to_line
from pytest_llmbench.errors import ServerError
from pytest_llmbench.runtime.replay import ReplayServer, TrueTimes


def error(**changes: Any) -> TimingError:
    fields: dict[str, Any] = {
        "streams": 1,
        "requests": 200,
        "tokens": 3200,
        "ttft_error_mean_ms": 0.1,
        "ttft_error_p99_ms": 0.234,
        "gap_error_mean_ms": 0.05,
        "gap_error_p99_ms": 0.115,
        "client_lag_p99_ms": 0.5,
        "client_lag_max_ms": 0.7,
        "cpu_us_per_token": 12.0,
    }
    return TimingError(**{**fields, **changes})


def calibration(*errors: TimingError) -> Calibration:
    return Calibration(
        clock="monotonic",
        clock_resolution_ns=50,
        event_loop="uvloop",
        load_average=0.1,
        true_ttft_ms=20.0,
        true_gap_ms=10.0,
        duration_seconds=1.0,
        errors=list(errors),
    )


class TestRecord:
    def test_claims_what_was_measured(self) -> None:
        claim = calibration(error(), error(streams=64, requests=12, ttft_error_p99_ms=3.0)).claim
        assert claim == (
            "With one stream, times to first token are right to ±0.23 ms (99 of 100) and gaps to ±0.12 ms; with 64 "
            "streams, times to first token are right to ±3.00 ms (the worst of 12) and gaps to ±0.12 ms. A single "
            "reading can not show a smaller difference."
        )

    def test_survives_a_file(self) -> None:
        one = calibration(error())
        line = to_line(one)
        assert '"claim":"With one stream' in line
        assert Calibration.model_validate_json(line) == one

    def test_is_never_empty(self) -> None:
        with pytest.raises(ValueError, match="errors"):
            calibration()


class TestArithmetic:
    truth = TrueTimes(
        id="a",
        client_id=None,
        path="/",
        planned=3,
        written=3,
        ends_only=False,
        blocked_writes=0,
        complete=True,
        t_request_read_ns=1_000_000_000,
        t_write_ns=(1_020_000_000, 1_030_000_000, 1_040_000_000),
    )
    record = RequestRecord(
        cell=None,
        index=0,
        phase="sample",
        ok=True,
        protocol="x",
        t_send_ns=999_900_000,
        t_end_ns=0,
        ttft_seconds=0.0203,
        token_offsets_us=[20_300, 30_200, 40_500],
    )

    def test_errors_are_client_minus_truth(self) -> None:
        assert module._ttft_error_ms(self.record, self.truth) == pytest.approx(0.3)
        assert module._gap_errors_ms(self.record, self.truth) == pytest.approx([0.1, 0.3])

    def test_the_clock_has_steps(self) -> None:
        assert 0 < clock_resolution_ns() < 1_000_000


class TestOnThisMachine:
    def test_quick_form(self) -> None:
        started = time.monotonic()
        one = quick_calibration()
        assert time.monotonic() - started < 20  # two seconds where nobody else uses the machine
        assert [each.streams for each in one.errors] == [1]
        assert one.load_average >= 0
        found = one.errors[0]
        assert found.requests >= 5
        assert found.tokens == 16 * found.requests
        assert 0 < found.ttft_error_mean_ms <= found.ttft_error_p99_ms < 1000
        assert found.gap_error_mean_ms <= found.gap_error_p99_ms
        assert found.client_lag_p99_ms <= found.client_lag_max_ms
        assert found.cpu_us_per_token > 0

    def test_several_streams(self) -> None:
        one = calibrate(streams=(2, 3), seconds=0.1)
        assert [(each.streams, each.requests) for each in one.errors] == [(2, 2), (3, 3)]

    def test_an_answer_without_a_truth(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ReplayServer, "truth", lambda _: [])
        with pytest.raises(ServerError, match="does not match") as raised:
            calibrate(streams=(1,), seconds=0.1)
        assert raised.value.code == "calibration_failed"

    def test_two_clocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def clock_name() -> str:
            raise RuntimeError("different clocks here")

        monkeypatch.setattr(module, "clock_name", clock_name)
        with pytest.raises(ServerError, match="different clocks"):
            calibrate()
