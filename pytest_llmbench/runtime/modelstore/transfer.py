"""Bytes over HTTP into a file: continued where they were cut, counted, and never more of them than was promised."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from pytest_llmbench.errors import ModelError

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
logger = logging.getLogger(__name__)
_CHUNK_BYTES = 256 * 1024
_DISK_MARGIN_BYTES = 256 * 1024 * 1024
_PIECE_BYTES = 16 * 10**9  # asked for at a time: stores behind a hub may refuse to send more than 50 GB at once
_ATTEMPTS = 5  # in a row that brought nothing new
_PAUSE_SECONDS = 1.0  # before the second attempt; twice as long before each further one
_LONGEST_PAUSE_SECONDS = 30.0
_TIMEOUT_SECONDS = (10.0, 30.0)  # to connect, and between two pieces
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_CONTENT, _ORIGIN = "content", "origin.json"

Refused = Callable[[int, str | None, str], ModelError]
"""What an HTTP status means: takes the status, the header ``X-Error-Code`` and the file's name."""


class Progress(Protocol):
    """Tells a person how far a transfer is."""

    def step(self, what: str, done_bytes: int, total_bytes: int | None) -> None: ...


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded.

    Attributes:
        name: as the models file names it: a path below ``model_dir/<size>``.
        url: None where it can not be had on its own, as from a wheel. Not for people: it may carry a signature.
        size_bytes: None where nobody tells.
        sha256: what its content must be; None where nobody tells.
        version: changes with the content: a commit, or an ETag; None where nobody tells.
    """

    name: str
    url: str | None = field(repr=False)
    size_bytes: int | None
    sha256: str | None
    version: str | None


@dataclass(frozen=True)
class RemoteModel:
    """Every file of a model at one quantization, and where it comes from.

    Attributes:
        origin: for people, without secrets: ``owner/name on Hugging Face``.
        revision: the commit, where there are commits.
    """

    origin: str
    files: tuple[RemoteFile, ...]
    revision: str | None = None

    @property
    def size_bytes(self) -> int | None:
        """Of all files together; None where one is unknown."""
        sizes = [file.size_bytes for file in self.files]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None


class Transient(Exception):
    """Something that may be gone a moment later; the text says what.

    Attributes:
        wait_seconds: how long the server asked to wait.
    """

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def persistently(action: Callable[[], T], what: str, position: Callable[[], int] = lambda: 0) -> T:
    """Repeat what fails for a moment, with growing pauses, for as long as it gets on.

    Args:
        action: raises :class:`Transient`.
        position: how far it got, in bytes; as long as that grows, there is no limit to the attempts.

    Raises:
        ModelError: ``download_failed``, after five attempts in a row that brought nothing new.
    """
    failures = 0
    while True:
        before = position()
        try:
            return action()
        except Transient as exc:
            failures = 1 if position() > before else failures + 1
            if failures >= _ATTEMPTS:
                kept = ", what has arrived is kept" if position() else ""
                raise ModelError(
                    "download_failed",
                    f"{what} could not be downloaded: {exc}, {failures} times in a row; check the network and run "
                    f"again{kept}",
                    {"done_bytes": position()},
                ) from None  # the cause quotes addresses and headers
            pause = max(exc.wait_seconds, _PAUSE_SECONDS * 2 ** (failures - 1))
            logger.info("%s: %s; trying again", what, exc)
            time.sleep(min(pause, _LONGEST_PAUSE_SECONDS))


def transfer(
    file: RemoteFile, folder: Path, progress: Progress, *, refused: Refused, headers: Mapping[str, str] | None = None
) -> Path:
    """Download into ``folder``, or go on with what an earlier try of the same version left there.

    Args:
        folder: belongs to this file alone; is kept when the connection is lost or the process is interrupted.
        headers: go to the host of ``file.url``, not to another one it redirects to.

    Returns:
        The complete file, of the promised size; its content is not verified.

    Raises:
        ModelError: ``download_failed``, ``wrong_size``, ``disk_full``, or what ``refused`` makes of a status.
        OSError: it can not be written.
    """
    import requests

    content = _prepare(file, folder)
    with requests.Session() as session:
        if headers:
            session.auth = _as_it_is  # or a .netrc would put its password in place of the token
        session.headers.update({"Accept-Encoding": "identity", **(headers or {})})
        attempt = _Attempt(session, file, content, progress, refused)
        persistently(attempt.run, file.name, attempt.position)
        while file.size_bytes is not None and attempt.position() < file.size_bytes:
            persistently(attempt.run, file.name, attempt.position)
    size_bytes = content.stat().st_size
    if file.size_bytes is not None and size_bytes != file.size_bytes:
        raise _wrong_size(file, size_bytes)
    return content


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _prepare(file: RemoteFile, folder: Path) -> Path:
    """The file to write to, empty unless what is there belongs to the same version."""
    digest = hashlib.sha256(str(file.url).encode()).hexdigest()  # the address itself may carry a signature
    origin = {"url_sha256": digest, "version": file.version, "size_bytes": file.size_bytes}
    note, content = folder / _ORIGIN, folder / _CONTENT
    try:
        same = file.version is not None and json.loads(note.read_text(encoding="utf-8")) == origin
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        note.write_text(json.dumps(origin), encoding="utf-8")
    content.touch()
    if file.size_bytes is not None and content.stat().st_size > file.size_bytes:
        content.write_bytes(b"")
    return content


@dataclass(frozen=True)
class _Attempt:
    """One request for what is missing, or for the next piece of it."""

    session: requests.Session
    file: RemoteFile
    content: Path
    progress: Progress
    refused: Refused

    def position(self) -> int:
        return self.content.stat().st_size

    def run(self) -> None:
        """Raises Transient, ModelError or OSError."""
        import requests

        begin = self.position()
        if begin and begin == self.file.size_bytes:
            return
        end = self.file.size_bytes if self.file.size_bytes is not None else begin
        if end - begin > _PIECE_BYTES:
            headers = {"Range": f"bytes={begin}-{begin + _PIECE_BYTES - 1}"}
        else:
            headers = {"Range": f"bytes={begin}-"} if begin else {}
        if begin and self.file.version is not None and self.file.version.startswith('"'):  # a strong ETag
            headers["If-Range"] = self.file.version
        url = str(self.file.url)
        try:
            with self.session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
                self._check_status(response)
                begin = self._begin(response, begin)
                self._write(response, begin)
        except requests.RequestException as exc:  # before OSError, which it is a kind of
            raise Transient(reason_of(exc)) from exc
        except OSError as exc:
            if exc.errno not in _NO_SPACE:
                raise
            raise self._no_space() from exc

    def _check_status(self, response: requests.Response) -> None:
        if response.status_code == 416:  # what we have is longer than the file: it is another one
            self.content.write_bytes(b"")
            raise Transient("the file has changed")
        if response.status_code not in {200, 206}:
            raise_for_status(response, self.file.name, self.refused)

    def _begin(self, response: requests.Response, asked: int) -> int:
        """Where the body belongs; refuses one that announces another size than was promised."""
        begin, total = body_of(response)
        if begin not in {0, asked}:
            raise Transient(f"the server sent what lies at byte {begin} instead of {asked}")
        if total is not None and self.file.size_bytes is not None and total != self.file.size_bytes:
            raise _wrong_size(self.file, total)
        return begin

    def _write(self, response: requests.Response, begin: int) -> None:
        total, done, looked_at = self.file.size_bytes, begin, begin
        if total is None:
            total = body_of(response)[1]
        with self.content.open("r+b") as out:
            out.truncate(begin)
            out.seek(begin)
            for chunk in response.iter_content(_CHUNK_BYTES):
                done += len(chunk)
                if total is not None and done > total:
                    raise _wrong_size(self.file, done)
                if total is None and done - looked_at > _DISK_MARGIN_BYTES // 2:  # nobody said how long this goes on
                    looked_at = done
                    require_disk_space(self.content.parent, 0)
                out.write(chunk)
                self.progress.step(f"downloading {self.file.name}", done, total)
        if total is not None and done < min(total, begin + _PIECE_BYTES):
            raise Transient(f"the connection ended at {done} of {total} bytes")

    def _no_space(self) -> ModelError:
        folder, done = self.content.parent.parent, self.position()
        free = shutil.disk_usage(folder).free
        needed = None if self.file.size_bytes is None else self.file.size_bytes - done
        rest = "an unknown number of bytes is" if needed is None else f"{_gigabytes(needed)} are"
        return ModelError(
            "disk_full",
            f"{folder} filled up while {self.file.name} was downloaded: {rest} still to come, {_gigabytes(free)} free; "
            "free some space or set model_dir to another disk",
            {"free_bytes": free, "needed_bytes": needed},
        )


def raise_for_status(response: requests.Response, name: str, refused: Refused) -> None:
    """Make an error of an HTTP status that is no success.

    Raises:
        Transient: it may be gone a moment later.
        ModelError: what ``refused`` makes of it.
    """
    status = response.status_code
    if status in _TRANSIENT_STATUS:
        wait = response.headers.get("Retry-After", "")
        raise Transient(f"HTTP {status}", float(wait) if re.fullmatch(r"\d{1,6}", wait) else 0.0)
    raise refused(status, response.headers.get("X-Error-Code"), name)


def body_of(response: requests.Response) -> tuple[int, int | None]:
    """Where a body begins within its file, and how long the whole file is, if the server tells."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            raise Transient("the server does not say which part of the file it sends")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    coded = response.headers.get("Content-Encoding", "identity") != "identity"  # then it counts something else
    return 0, int(length) if length.isdecimal() and not coded else None


def reason_of(error: requests.RequestException) -> str:
    """What went wrong on the network, in words of ours: the library's may quote addresses with signatures in them."""
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "TLS failed (is the certificate known here?)"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy did not answer"
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {_TIMEOUT_SECONDS[0]:.0f} s"
    if isinstance(error, requests.Timeout):
        return f"nothing arrived for {_TIMEOUT_SECONDS[1]:.0f} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    if isinstance(error, requests.ConnectionError):
        return "the server could not be reached, or hung up"
    return f"the request failed ({type(error).__name__})"


def _wrong_size(file: RemoteFile, size_bytes: int) -> ModelError:
    return ModelError(
        "wrong_size",
        f"{file.name} has {size_bytes} bytes where it comes from, {file.size_bytes} were promised; it may have been "
        "replaced: compare both, correct the models file, or try again later",
        {"size_bytes": size_bytes, "expected_size_bytes": file.size_bytes},
    )


def sha256_of(path: Path, progress: Progress | None = None, name: str | None = None) -> str:
    """SHA-256 of a file, in hexadecimal.

    Args:
        name: what ``progress`` calls it; None: its own.
    """
    digest, done = hashlib.sha256(), 0
    total = path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(4 * _CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress.step(f"checking {name or path.name}", done, total)
    return digest.hexdigest()


def require_checksum(name: str, promised_by: str, expected: str, actual: str) -> None:
    """Refuse a downloaded file of another content than was promised. Raises ModelError ``checksum_mismatch``."""
    if actual != expected:
        raise ModelError(
            "checksum_mismatch",
            f"{name} arrived with SHA-256 {actual}, {promised_by} promises {expected}; it was not kept: try again, and "
            "if it happens twice, do not use it",
            {"sha256": actual, "expected_sha256": expected},
        )


def require_disk_space(folder: Path, needed_bytes: int) -> None:
    """Refuse a download that can not fit. Raises ModelError ``disk_full``.

    Args:
        folder: exists, on the disk to be written to.
        needed_bytes: what is still to be written; a margin is added.
    """
    free, needed = shutil.disk_usage(folder).free, needed_bytes + _DISK_MARGIN_BYTES
    if free < needed:
        raise ModelError(
            "disk_full",
            f"{folder} has {_gigabytes(free)} free, fetching the model needs {_gigabytes(needed)}; free some space "
            "or set model_dir to another disk",
            {"free_bytes": free, "needed_bytes": needed},
        )


def is_no_space(error: OSError) -> bool:
    """Whether a disk is full, or a quota used up."""
    return error.errno in _NO_SPACE


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
