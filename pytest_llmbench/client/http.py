"""HTTP/1.1 without I/O: build a request's bytes, take a response's bytes apart."""

from __future__ import annotations

import zlib

import httptools

from pytest_llmbench.errors import RequestError

MAX_HEADER_BYTES = 64 * 1024
MAX_ERROR_BODY_BYTES = 64 * 1024
MAX_DECOMPRESSED_BYTES = 16 * 1024 * 1024
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


def build_post(host: str, path: str, body: bytes, api_key: str | None) -> bytes:
    """One POST of JSON, header and body in one piece so that it leaves in one write."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        "Accept: text/event-stream, application/x-ndjson, application/json",
        "Accept-Encoding: identity",
        f"Content-Length: {len(body)}",
    ]
    if api_key is not None:
        lines.append(f"Authorization: {bearer(api_key)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def bearer(api_key: str) -> str:
    """The value of the ``Authorization`` header.

    Raises:
        RequestError: no header can carry this key; the message does not tell it.
    """
    if not (api_key.isascii() and api_key.isprintable()):
        raise RequestError(
            "wrong_key", "the API key holds a line break or a character that is not ASCII; check where it comes from"
        )
    return f"Bearer {api_key}"


class ResponseParser:
    """Feed bytes as they arrive, take out body pieces.

    Attributes:
        status: HTTP status code, 0 before the header has arrived.
        complete: the response has ended as HTTP says it should.
        keeps_alive: the server promises to keep the connection; known when ``complete``.
    """

    def __init__(self) -> None:
        self.status = 0
        self.complete = False
        self.keeps_alive = False
        self.headers: dict[str, str] = {}
        self._header_bytes = 0
        self._in_header = True
        self._pieces: list[bytes] = []
        self._decoder: zlib._Decompress | None = None
        self._unknown_encoding: str | None = None
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> list[bytes]:
        """Take in bytes and return the body pieces in them.

        Raises:
            RequestError: what arrived is not an HTTP response.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            raise RequestError("bad_response", "the server wants to switch to another protocol") from exc
        except (httptools.HttpParserError, UnicodeError) as exc:
            raise RequestError(
                "bad_response", f"the server does not speak HTTP: {exc}; is this the address of a model server?"
            ) from exc
        self._header_bytes += len(data) if self._in_header else 0  # a line that never ends is no header yet
        if self._header_bytes > MAX_HEADER_BYTES:
            raise RequestError("bad_response", f"the response's headers exceed {MAX_HEADER_BYTES} bytes")
        if self._unknown_encoding is not None:
            raise RequestError(
                "unsupported_encoding",
                f"the answer is compressed ({self._unknown_encoding}) although no compression was asked for; "
                "take the proxy between us and the server out",
            )
        pieces, self._pieces = self._pieces, []
        return pieces if self._decoder is None else [self._decompress(self._decoder, b"".join(pieces))]

    @property
    def content_type(self) -> str:
        """The media type without parameters, empty where the server tells none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @staticmethod
    def _decompress(decoder: zlib._Decompress, data: bytes) -> bytes:
        try:
            text = decoder.decompress(data, MAX_DECOMPRESSED_BYTES)
        except zlib.error as exc:
            raise RequestError("bad_response", f"the answer's compression is broken: {exc}") from exc
        if decoder.unconsumed_tail:
            raise RequestError("bad_response", f"a piece of the answer expands beyond {MAX_DECOMPRESSED_BYTES} bytes")
        return text

    # Called by httptools.

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = int(self._parser.get_status_code())
        self._in_header = False
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding in {"gzip", "x-gzip", "deflate"}:
            self._decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
        elif encoding not in {"", "identity"}:
            self._unknown_encoding = encoding

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._in_header = self.status < 200  # an interim response; the real one follows
        self.complete = not self._in_header
        self.keeps_alive = bool(self._parser.should_keep_alive())
