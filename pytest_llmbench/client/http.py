"""HTTP/1.1 without I/O: build a request's bytes, take a response's bytes apart."""

from __future__ import annotations

import httptools

from pytest_llmbench.errors import RequestError

MAX_HEADER_BYTES = 64 * 1024
MAX_ERROR_BODY_BYTES = 64 * 1024


def build_post(host: str, path: str, body: bytes, api_key: str | None) -> bytes:
    """One POST of JSON, header and body in one piece so that it leaves in one write."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        "Accept: text/event-stream",
        "Accept-Encoding: identity",
        f"Content-Length: {len(body)}",
    ]
    if api_key is not None:
        lines.append(f"Authorization: Bearer {api_key}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class ResponseParser:
    """Feed bytes as they arrive, take out body pieces.

    Attributes:
        complete: the response has ended as HTTP says it should.
    """

    def __init__(self) -> None:
        self.complete = False
        self.headers: dict[str, str] = {}
        self._header_bytes = 0
        self._pieces: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    @property
    def status(self) -> int:
        """HTTP status code, 0 before the status line has arrived."""
        return int(self._parser.get_status_code()) if self.headers or self._header_bytes else 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take in bytes and return the body pieces in them.

        Raises:
            RequestError: what arrived is not an HTTP response.
        """
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, UnicodeError) as exc:
            raise RequestError(
                "bad_response", f"the server does not speak HTTP: {exc}; is this the address of a model server?"
            ) from exc
        pieces, self._pieces = self._pieces, []
        return pieces

    # Called by httptools.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            msg = f"response headers exceed {MAX_HEADER_BYTES} bytes"
            raise httptools.HttpParserError(msg)
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self.complete = True
