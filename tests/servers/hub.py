"""A small model hub: repositories of files, spoken to as huggingface_hub and our downloads speak to Hugging Face.

It is a test server that knows the routes a download needs, and can go wrong on request. Files are described, not
necessarily held: what lies behind ``HubFile.content`` is zeros, so that one of 40 GB costs nothing::

    file = HubFile(header, size_bytes=40_000_000_000, sha256="0" * 64)
    with Hub({"somebody/tiny-GGUF": HubRepo({"tiny.gguf": file})}) as hub:
        ...  # HF_ENDPOINT=hub.url

As on the real one, the hub answers a request for a file with a redirect to another host, here another port, whose
address carries a signature.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
SIGNATURE = "signed-for-you"
_PIECE_BYTES = 64 * 1024
_REPO = r"(?P<repo>[^/]+/[^/]+)"
_INFO = re.compile(rf"/api/models/{_REPO}(?:/revision/(?P<revision>.+))?")
_RESOLVE = re.compile(rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_PLAIN = re.compile(rf"/plain/{_REPO}/(?P<name>.+)")


@dataclass
class HubFile:
    """A file, and how serving it goes wrong.

    Attributes:
        content: its first bytes.
        size_bytes: how long it is; zeros follow ``content``. None: no longer than that.
        sha256: what the hub says of it; None: the truth, which for a large file takes a while.
        claimed_size_bytes: what the hub says its size is; None: the truth.
        status: answer requests for its bytes with this HTTP status; None: with the bytes.
        cut_after_bytes: hang up after that many bytes of a body.
        cuts: how often to do so.
        seconds_per_piece: pause after each 64 KiB.
        ignores_ranges: answer with the whole file whatever is asked for.
        etag: as the plain route gives it; None: none.
        hides_size: the store tells no length, and hangs up at the end.
        in_lfs: whether the hub knows its SHA-256 at all.
    """

    content: bytes = b""
    size_bytes: int | None = None
    sha256: str | None = None
    claimed_size_bytes: int | None = None
    status: int | None = None
    cut_after_bytes: int | None = None
    cuts: int = 1_000_000
    seconds_per_piece: float = 0.0
    ignores_ranges: bool = False
    etag: str | None = '"first"'
    hides_size: bool = False
    in_lfs: bool = True

    @property
    def length(self) -> int:
        return len(self.content) if self.size_bytes is None else self.size_bytes

    def read(self, begin: int, count: int) -> bytes:
        held = self.content[begin : begin + count]
        return held + bytes(min(count, self.length - begin) - len(held))

    def digest(self) -> str:
        return self.sha256 or hashlib.sha256(self.read(0, self.length)).hexdigest()


@dataclass
class HubRepo:
    """A repository.

    Attributes:
        revisions: branch or tag → commit; each commit knows itself.
        gated: its files are for those with ``token`` only.
        private: for those nothing tells that it exists.
        token: what opens it.
    """

    files: dict[str, HubFile]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    gated: bool = False
    private: bool = False
    token: str | None = None

    def commit_of(self, revision: str) -> str | None:
        return self.revisions.get(revision) or (revision if revision in self.revisions.values() else None)


def small_gguf(file_type: int = 3, data_bytes: int = 8192, *, split: tuple[int, int] | None = None) -> bytes:
    """A sound GGUF file of one tensor of numbers.

    Args:
        file_type: ``general.file_type``; 3 is Q4_1, 15 is Q4_K_M.
        data_bytes: of the tensor, a multiple of four; no two of its blocks are the same.
        split: which one it is, from 0, and of how many; only the first says more than that.
    """

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    number, count = split or (0, 1)
    pairs = []
    if number == 0:
        pairs.append(text("general.architecture") + struct.pack("<I", 8) + text("llama"))
        pairs.append(text("general.file_type") + struct.pack("<II", 4, file_type))
    if split is not None:
        pairs.append(text("split.no") + struct.pack("<IH", 2, number))
        pairs.append(text("split.count") + struct.pack("<IH", 2, count))
        pairs.append(text("split.tensors.count") + struct.pack("<Ii", 5, count))
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs)
    head += text(f"blk.{number}.weight") + struct.pack("<IQIQ", 1, data_bytes // 4, 0, 0)
    head += bytes(-len(head) % 32)
    return head + struct.pack(f"<{data_bytes // 4}I", *range(number, number + data_bytes // 4))


class Hub:
    """Use as a context manager.

    Attributes:
        requests: how many came, by kind: ``info``, ``resolve`` (HEAD), ``redirect`` (GET), ``bytes``, ``plain``,
            ``unknown``.
        ranges: the Range header of every request for bytes, in order; None where there was none.
        tokens: the Authorization header of every request to the hub itself.
        leaked: the same of every request to the other host; must stay empty of anything but None.
        bytes_sent: of bodies of files.
    """

    def __init__(self, repos: dict[str, HubRepo]) -> None:
        self.repos = repos
        self.requests: Counter[str] = Counter()
        self.ranges: list[str | None] = []
        self.tokens: list[str | None] = []
        self.leaked: list[str | None] = []
        self.bytes_sent = 0
        self.lock = threading.Lock()

    def __enter__(self) -> Hub:
        self._servers = [_Server(self, _HubHandler), _Server(self, _StoreHandler)]
        for server in self._servers:
            server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.stop()

    @property
    def url(self) -> str:
        return self._servers[0].url

    @property
    def store_url(self) -> str:
        return self._servers[1].url

    def plain_url(self, repo: str, name: str) -> str:
        """Where a file is to be had from an ordinary web server: no hub, no redirect."""
        return f"{self.store_url}/plain/{repo}/{quote(name)}"


class _Server(ThreadingHTTPServer):
    """One thread a connection; hangs up on all of them at the end, so that every thread ends."""

    daemon_threads = False

    def __init__(self, hub: Hub, handler: type[BaseHTTPRequestHandler]) -> None:
        self.hub = hub
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        with self._open_lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
        pass

    @property
    def hub(self) -> Hub:
        return cast("_Server", self.server).hub

    def count(self, kind: str) -> None:
        with self.hub.lock:
            self.hub.requests[kind] += 1

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str | None = None) -> None:
        """As Hugging Face does: the header tells what the status can not. The body repeats what it was sent."""
        said = f"no: {self.headers.get('Authorization')}".encode()
        self.answer(status, {"X-Error-Code": code} if code else {}, said)


class _HubHandler(_Handler):
    """The hub itself."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with self.hub.lock:
            self.hub.tokens.append(self.headers.get("Authorization"))
        path = unquote(urlsplit(self.path).path)
        if match := _INFO.fullmatch(path):
            self._info(match["repo"], match["revision"] or "main")
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(match["repo"], match["revision"], match["name"])
        else:
            self.count("unknown")
            self.refuse(404)

    def _may_read(self, repo: HubRepo) -> bool:
        return repo.token is not None and self.headers.get("Authorization") == f"Bearer {repo.token}"

    def _repo(self, name: str) -> HubRepo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._may_read(repo)):
            self.refuse(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
            return None
        return repo

    def _info(self, name: str, revision: str) -> None:
        self.count("info")
        repo = self._repo(name)
        if repo is None:
            return
        commit = repo.commit_of(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound")
            return
        siblings = [_sibling(path, file) for path, file in repo.files.items()]
        facts = {"id": name, "sha": commit, "gated": "manual" if repo.gated else False, "siblings": siblings}
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(facts).encode())

    def _resolve(self, name: str, revision: str, path: str) -> None:
        self.count("resolve" if self.command == "HEAD" else "redirect")
        repo = self._repo(name)
        if repo is None:
            return
        if repo.gated and not self._may_read(repo):
            self.refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
            return
        commit, file = repo.commit_of(revision), repo.files.get(path)
        if commit is None:
            self.refuse(404, "RevisionNotFound")
            return
        if file is None:
            self.refuse(404, "EntryNotFound")
            return
        if file.status is not None:
            self.refuse(file.status)
            return
        location = f"{self.hub.store_url}/store/{name}/{quote(path)}?Signature={SIGNATURE}"
        size = file.length if file.claimed_size_bytes is None else file.claimed_size_bytes
        headers = {"Location": location, "X-Repo-Commit": commit, "X-Linked-Size": str(size), "ETag": f'"{commit}"'}
        if file.in_lfs:
            headers["X-Linked-Etag"] = f'"{file.digest()}"'
        self.answer(302, headers)


class _StoreHandler(_Handler):
    """The host that files come from: with a signature, or at ``/plain/``, where it is an ordinary web server."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with self.hub.lock:
            self.hub.leaked.append(self.headers.get("Authorization"))
        parts = urlsplit(self.path)
        signed = parts.path.startswith("/store/") and parts.query == f"Signature={SIGNATURE}"
        match = _PLAIN.fullmatch(unquote(parts.path.replace("/store/", "/plain/", 1)))
        repo = self.hub.repos.get(match["repo"]) if match else None
        file = repo.files.get(match["name"]) if repo and match else None
        if file is None or (parts.path.startswith("/store/") and not signed):
            self.count("unknown")
            self.refuse(404)
            return
        self.count("bytes" if signed else "plain")
        with self.hub.lock:
            self.hub.ranges.append(self.headers.get("Range"))
        if file.status is not None:
            self.refuse(file.status)
            return
        self._serve(file)

    def _serve(self, file: HubFile) -> None:
        begin, end, headers = 0, file.length, {"Accept-Ranges": "bytes"}
        if file.etag is not None:
            headers["ETag"] = file.etag
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        asked_of = self.headers.get("If-Range")
        ignored = file.ignores_ranges or file.hides_size
        partly = wanted is not None and not ignored and asked_of in {None, file.etag}
        if wanted is not None and partly:
            begin, end = int(wanted[1]), min(int(wanted[2]) + 1 if wanted[2] else end, end)
            if begin >= file.length:
                self.answer(416, {"Content-Range": f"bytes */{file.length}"})
                return
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{file.length}"
        self.send_response(206 if partly else 200)
        if file.hides_size:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(end - begin))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send(file, begin, end)

    def _send(self, file: HubFile, begin: int, end: int) -> None:
        position = begin
        with self.hub.lock:
            cut = file.cut_after_bytes is not None and file.cuts > 0 and begin + file.cut_after_bytes < end
            file.cuts -= cut
        stop = begin + (file.cut_after_bytes or 0) if cut else end
        while position < stop:
            piece = file.read(position, min(_PIECE_BYTES, stop - position))
            with self.hub.lock:
                self.hub.bytes_sent += len(piece)  # before, so that who has them finds them counted
            self.wfile.write(piece)
            position += len(piece)
            time.sleep(file.seconds_per_piece)
        if stop < end:
            self.close_connection = True


def _sibling(path: str, file: HubFile) -> dict[str, Any]:
    size = file.length if file.claimed_size_bytes is None else file.claimed_size_bytes
    facts: dict[str, Any] = {"rfilename": path, "size": size, "blobId": "0" * 40}
    if file.in_lfs:
        facts["lfs"] = {"size": size, "sha256": file.digest(), "pointerSize": 134}
    return facts
