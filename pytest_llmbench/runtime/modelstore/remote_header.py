"""Reads the header of a GGUF file where it lies on the web: a few megabytes instead of many gigabytes.

The other side is not trusted: what is read of it, how often and for how long is bounded, and a caller's headers go to
no other host than the one they are meant for.
"""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from pytest_llmbench.core.gguf import GgufHeader, parse_header
from pytest_llmbench.errors import ModelError

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
_FIRST_BYTES = 8 * 1024 * 1024  # holds the header of most models
_MAX_BYTES = 128 * 1024 * 1024
_MAX_REQUESTS = 12
_MAX_REDIRECTS = 10
_CHUNK_BYTES = 64 * 1024
_TIMEOUT_SECONDS = (10.0, 30.0)  # to connect, and without a byte
_DEADLINE_SECONDS = 60.0  # for everything together
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-[0-9]{1,19}/([0-9]{1,19})")
_LENGTH = re.compile(r"[0-9]{1,19}")
_ADVICE = "correct its address or its name in the models file"
_CREDENTIALS = ("Authorization", "Cookie")  # that a session may add of itself


@dataclass(frozen=True, slots=True)
class RemoteHeader:
    """A header, and what the server says of its file.

    Attributes:
        size_bytes: of the file.
        requests: pieces that were asked for, redirects not counted.
        etag: the server's name of the content, without quotes: that of the file behind a redirect, where the first
            server tells it (``X-Linked-Etag``).
        url: where the file lies, behind all redirects. Not for people: it may carry a signature.
    """

    header: GgufHeader
    size_bytes: int
    requests: int
    etag: str | None
    url: str = field(repr=False)


def read_remote_header(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    session: requests.Session | None = None,
    allow_insecure: bool = False,
) -> RemoteHeader:
    """Read the header of the GGUF file at ``url``, usually with one request; over a minute is a failure.

    Args:
        headers: sent to the host of ``url`` only, such as ``Authorization``.
        session: whose connections, proxies and certificates are used; one of its own by default.
        allow_insecure: whether ``http`` is good enough for another machine than this one.

    Raises:
        ModelError: ``model_not_found``; ``model_access_denied``; ``download_failed``: no or no usable answer;
            ``bad_model_file``: no GGUF, or damaged.
    """
    import requests

    used = requests.Session() if session is None else session
    download = _Download(url, headers or {}, used, allow_insecure)
    try:
        return _within_deadline(download.header, download.shown)
    finally:
        if session is None:
            used.close()


def _within_deadline(work: Callable[[], T], shown: str) -> T:
    """Do ``work`` in a thread that is given up at the deadline: one byte every now and then keeps each timeout away."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as exc:  # noqa: BLE001 -- raised again below
            # Alone: the frames and errors behind it keep connections open, and quote headers and signed addresses.
            exc.__cause__ = exc.__context__ = None
            future.set_exception(exc.with_traceback(None))

    threading.Thread(target=run, name="llmbench-remote-header", daemon=True).start()
    try:
        return future.result(_DEADLINE_SECONDS)
    except FutureTimeoutError:
        raise _too_slow(shown) from None


class _Download:
    """The begin of a remote file, fetched as it is needed."""

    def __init__(self, url: str, headers: Mapping[str, str], session: requests.Session, allow_insecure: bool) -> None:
        self.shown = _shown(url)
        self._url = url
        self._headers = headers
        self._session = session
        self._allow_insecure = allow_insecure
        self._deadline = time.monotonic() + _DEADLINE_SECONDS
        self._begin = bytearray()  # of the file
        self._size_bytes: int | None = None
        self._requests = 0
        self._etag: str | None = None
        self._final_url = url
        self._response: requests.Response | None = None
        self._whole: Iterator[bytes] | None = None  # the file from a server that knows no ranges

    def header(self) -> RemoteHeader:
        try:
            self._fetch(_FIRST_BYTES)
            assert self._size_bytes is not None  # noqa: S101 -- known since the first answer
            header = parse_header(self._read, self._size_bytes, self.shown, advice=_ADVICE)
            return RemoteHeader(header, self._size_bytes, self._requests, self._etag, self._final_url)
        finally:
            if self._response is not None:
                self._response.close()
            self._response = self._whole = None

    def _read(self, offset: int, count: int) -> bytes:
        """For the parser, which asks for more than it needs: what is there is enough."""
        while offset >= len(self._begin):
            self._fetch(max(offset + count, 2 * len(self._begin)))
        return bytes(self._begin[offset : offset + count])

    def _fetch(self, end: int) -> None:
        """Have at least one byte more of the file, at best all up to ``end``."""
        had = len(self._begin)
        end = min(end, _MAX_BYTES, end if self._size_bytes is None else self._size_bytes)
        if had >= end:
            message = f"{self.shown} is no usable GGUF file: no header ends within {had} bytes; {_ADVICE}"
            raise ModelError("bad_model_file", message)
        try:
            for chunk in self._whole or self._request(had, end):
                self._begin += chunk
                if time.monotonic() > self._deadline:
                    raise _too_slow(self.shown)
                if len(self._begin) >= end:
                    break
        except (OSError, ValueError) as exc:
            raise self._failed(_network_problem(exc)) from None
        if self._whole is None:
            del self._begin[end:]
        if len(self._begin) == had:
            raise self._failed("the server ended its answer early")

    def _request(self, begin: int, end: int) -> Iterator[bytes]:
        """Ask for a piece; returns its chunks."""
        self._requests += 1
        if self._requests > _MAX_REQUESTS:
            raise self._failed("the server gives it in pieces that are too small")
        if self._response is not None:
            self._response.close()
        response = self._response = self._get(begin, end)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise self._failed("the server sends it compressed, though that was declined")
        size_bytes = self._size_of(response, begin)
        if self._size_bytes not in {None, size_bytes}:
            raise self._failed("it was replaced while it was read")
        self._size_bytes = size_bytes
        chunks: Iterator[bytes] = response.iter_content(_CHUNK_BYTES)
        if response.status_code == 200:
            self._whole = chunks
        return chunks

    def _size_of(self, response: requests.Response, begin: int) -> int:
        """Bytes of the file, as an answer tells them."""
        status = response.status_code
        if status == 416 and begin == 0:
            raise ModelError("bad_model_file", f"{self.shown} is no usable GGUF file: it is empty; {_ADVICE}")
        if status == 200 and begin == 0:
            length = _LENGTH.fullmatch(response.headers.get("Content-Length", ""))
            if length is None:
                raise self._failed("the server knows neither ranges nor the file's size")
            return int(length[0])
        told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if status != 206:
            raise _refusal(status, self.shown)
        if told is None or int(told[1]) != begin:
            raise self._failed("the server gives another piece than the one that was asked for, or not the file's size")
        return int(told[2])

    def _get(self, begin: int, end: int) -> requests.Response:
        """Ask for a piece, and follow redirects: by hand, for who is asked next must not see the caller's headers."""
        url, before = self._url, None
        for hop in range(_MAX_REDIRECTS + 1):
            parts = self._checked(url, before)
            mine = (parts.scheme, parts.netloc) == urlsplit(self._url)[:2]
            added = self._headers if mine else dict.fromkeys([*self._headers, *_CREDENTIALS])
            asked = {**added, "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
            response = self._send(url, asked)
            if hop == 0 or self._etag is None:
                told = response.headers.get("X-Linked-Etag" if response.is_redirect else "ETag")
                self._etag = told.removeprefix("W/").strip('"') if told else None
            if not response.is_redirect:
                self._final_url = url
                return response
            response.close()
            url, before = urljoin(url, self._session.get_redirect_target(response) or ""), parts.scheme
        raise self._failed(f"the server redirects more than {_MAX_REDIRECTS} times")

    def _checked(self, url: str, before: str | None) -> SplitResult:
        """The parts of an address that may be asked. ``before``: the scheme of the one that led to it."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise self._failed("it is, or leads to, no address of the web")
        trusted = self._allow_insecure or (before != "https" and _is_loopback(parts.hostname))
        if parts.scheme == "http" and not trusted:
            raise self._failed("it is, or leads to, an address without encryption; use https")
        return parts

    def _send(self, url: str, headers: Mapping[str, str | None]) -> requests.Response:
        """One request, not by the session, which would first read the body of a redirect, however long it is."""
        import requests

        request = self._session.prepare_request(requests.Request("GET", url, headers=headers, auth=_as_it_is))
        settings: Any = self._session.merge_environment_settings(url, {}, True, None, None)
        return self._session.get_adapter(url).send(request, timeout=_TIMEOUT_SECONDS, **settings)

    def _failed(self, problem: str) -> ModelError:
        return ModelError("download_failed", f"{self.shown} can not be read: {problem}")


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """In place of a password from ``.netrc``, which would replace the caller's token."""
    return request


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(url: str) -> str:
    """An address for people, without what may be secret: user, password and query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the model's address"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _too_slow(shown: str) -> ModelError:
    message = (
        f"{shown} can not be read: it took more than {_DEADLINE_SECONDS:g} s; try again when the network is faster"
    )
    return ModelError("download_failed", message)


def _network_problem(error: Exception) -> str:
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate can not be trusted; check the date of this machine, and REQUESTS_CA_BUNDLE"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy gives no way to it; check HTTPS_PROXY and NO_PROXY"
    if isinstance(error, requests.Timeout):
        return f"no answer within {_TIMEOUT_SECONDS[1]:g} s; try again"
    if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return "there is no connection to the server, or it broke off; is the machine online?"
    return f"no usable answer ({type(error).__name__}); check its address"


def _refusal(status: int, shown: str) -> ModelError:
    """What an HTTP status other than success means."""
    evidence = {"http_status": status}
    if status in {404, 410}:
        message = f"{shown} does not exist (HTTP {status}); {_ADVICE}"
        return ModelError("model_not_found", message, evidence)
    if status in {401, 403}:
        message = (
            f"{shown} is not for everybody (HTTP {status}): the repository is gated or private, or does not exist; "
            "accept its terms on its page and set a token that may read it (HF_TOKEN)"
        )
        return ModelError("model_access_denied", message, evidence)
    why = "asks to come back later" if status in {408, 425, 429, 503} else "does not give it"
    message = f"{shown} can not be read: the server {why} (HTTP {status}); try again later"
    return ModelError("download_failed", message, evidence)
