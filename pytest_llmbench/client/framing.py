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

    def finish(self) -> list[bytes]:
        """What the end of the body completes."""
        ...


class SseParser:
    """Server-sent events (WHATWG HTML, "Server-sent events"), of which only ``data`` means anything here."""

    def __init__(self) -> None:
        self._lines = _Lines()
        self._data: list[bytes] = []
        self._size_bytes = 0  # of the lines since the last event ended

    def feed(self, chunk: bytes) -> list[bytes]:
        """See :class:`Framer`."""
        events = []
        data = self._data
        for raw in self._lines.feed(chunk):
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
        return events

    def finish(self) -> list[bytes]:
        """See :class:`Framer`. An event that no empty line ended is none, says the standard."""
        return []


class NdjsonParser:
    """One JSON object a line."""

    def __init__(self) -> None:
        self._lines = _Lines()

    def feed(self, chunk: bytes) -> list[bytes]:
        """See :class:`Framer`."""
        return [line for line in self._lines.feed(chunk) if line.strip()]

    def finish(self) -> list[bytes]:
        """See :class:`Framer`. The last line need not end."""
        rest = self._lines.rest()
        return [rest] if rest.strip() else []


class _Lines:
    """Cuts at line breaks; what has none yet is kept in pieces, because joining them again and again is quadratic."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        lines = chunk.split(b"\n")
        if len(chunk) > MAX_EVENT_BYTES and any(len(line) > MAX_EVENT_BYTES for line in lines):
            raise _too_large()
        if len(lines) == 1 or self._pieces:
            self._size_bytes += len(lines[0])
            if self._size_bytes > MAX_EVENT_BYTES:
                raise _too_large()
            self._pieces.append(lines[0])
            if len(lines) == 1:
                return []
            lines[0] = b"".join(self._pieces)
        last = lines.pop()
        self._pieces = [last] if last else []
        self._size_bytes = len(last)
        return lines

    def rest(self) -> bytes:
        return b"".join(self._pieces)


def _too_large() -> RequestError:
    return RequestError("bad_response", f"one event exceeds {MAX_EVENT_BYTES} bytes; this is no answer stream")
