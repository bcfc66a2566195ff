"""How precise timing is on a machine: the client's times against a server whose times are known."""

from __future__ import annotations

from pydantic import Field, computed_field

from pytest_llmbench.core.records import Finite, Record

CALIBRATION_VERSION = 1


class TimingError(Record):
    """What the client said minus what was, at one number of streams.

    Attributes:
        requests: answers that were compared.
        tokens: of these answers together.
        ttft_error_mean_ms: with its sign: how late the client is on average. The way through the kernel is in it.
        ttft_error_p99_ms: 99 of 100 times to first token are off by no more, either way; all, with fewer than 100.
        gap_error_mean_ms: mean size of the error of the time between two tokens.
        gap_error_p99_ms: 99 of 100 gaps are off by no more.
        client_lag_p99_ms: by how much the client's event loop was late itself, beyond its timers' millisecond.
        cpu_us_per_token: processor time of the client process.
    """

    streams: int
    requests: int
    tokens: int
    ttft_error_mean_ms: Finite
    ttft_error_p99_ms: Finite
    gap_error_mean_ms: Finite
    gap_error_p99_ms: Finite
    client_lag_p99_ms: Finite
    client_lag_max_ms: Finite
    cpu_us_per_token: Finite


class Calibration(Record):
    """The timing error of this machine, this client and this moment.

    Attributes:
        clock_resolution_ns: the smallest step of the clock that was seen.
        event_loop: what the client ran on.
        load_average: of the machine just before, over a minute: the work of others is in the errors.
        true_ttft_ms: what the server did, and the client had to find out.
    """

    version: int = CALIBRATION_VERSION
    clock: str
    clock_resolution_ns: int
    event_loop: str
    load_average: Finite
    true_ttft_ms: Finite
    true_gap_ms: Finite
    duration_seconds: Finite
    errors: list[TimingError] = Field(min_length=1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def claim(self) -> str:
        """What a time measured here can claim, in a sentence or two."""
        text = "; ".join(
            f"with {_streams(error.streams)}, times to first token are right to ±{error.ttft_error_p99_ms:.2f} ms "
            f"({_of_how_many(error)}) and gaps to ±{error.gap_error_p99_ms:.2f} ms"
            for error in self.errors
        )
        return f"{text[0].upper()}{text[1:]}. A single reading can not show a smaller difference."


def _streams(count: int) -> str:
    return "one stream" if count == 1 else f"{count} streams"


def _of_how_many(error: TimingError) -> str:
    return "99 of 100" if error.requests >= 100 else f"the worst of {error.requests}"
