"""What a server or a model says stays text, also in our messages."""

from __future__ import annotations

from pytest_llmbench.errors import CellError, MeasurementInvalid, ModelNotDownloaded, RequestError


def test_messages_hold_nothing_a_terminal_obeys_or_utf8_refuses() -> None:
    error = RequestError("x", "line\nwith \x1b[31mred\x07 and \ud800")
    assert error.message == str(error) == "line\nwith \\x1b[31mred\\x07 and \\ud800"
    error.message.encode("utf-8")


def test_each_error_knows_its_status() -> None:
    assert [kind("c", "m").status for kind in (CellError, ModelNotDownloaded, MeasurementInvalid)] == [
        "error",
        "skipped",
        "invalid",
    ]
