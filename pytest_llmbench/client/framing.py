"""Splitting a body's bytes into events, whatever way they were cut. No I/O, no clock."""

from __future__ import annotations

from typing import Protocol

from pytest_llmbench.errors import RequestError

MAX_EVENT_BYTES = 16 * 1024 * 1024


class Framer(Protocol):
    """Takes bytes in, gives the events out that they complete."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event that ``chunk`` completes. Raises RequestError for an absurdly large one."""
        ...


class SseParser:
    """Server-sent events (WHATWG HTML, "Server-sent events"), of which only ``data`` means anything here."""

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._size_bytes = 0  # of the lines since the last event ended

    def feed(self, chunk: bytes) -> list[bytes]:
        """See :class:`Framer`."""
        events = []
        lines = (self._buffer + chunk).split(b"\n")
        self._buffer = lines.pop()
        data = self._data
        for raw in lines:
            line = raw[:-1] if raw[-1:] == b"\r" else raw
            if not line:
                self._size_bytes = 0
                if data:
                    events.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
                continue
            self._size_bytes += len(raw)
            if self._size_bytes > MAX_EVENT_BYTES:
                raise _too_large()
            if line[:5] == b"data:":
                data.append(line[6:] if line[5:6] == b" " else line[5:])
            # Anything else is a comment or a field (event, id, retry) that no model server gives meaning to.
        if self._size_bytes + len(self._buffer) > MAX_EVENT_BYTES:
            raise _too_large()
        return events


class NdjsonParser:
    """One JSON object a line."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """See :class:`Framer`."""
        lines = (self._buffer + chunk).split(b"\n")
        self._buffer = lines.pop()
        if len(self._buffer) > MAX_EVENT_BYTES or any(len(line) > MAX_EVENT_BYTES for line in lines):
            raise _too_large()
        return [line for line in lines if line.strip()]


def _too_large() -> RequestError:
    return RequestError("bad_response", f"one event exceeds {MAX_EVENT_BYTES} bytes; this is no answer stream")
