"""What is asked of an Ollama server besides answers, through its official client. Nothing here is ever timed."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_llmbench.core.gguf import shard_names
from pytest_llmbench.errors import Primitive, ServerError
from pytest_llmbench.runtime.modelstore.store import sha256_of

if TYPE_CHECKING:
    import httpx
    import ollama

PartT = TypeVar("PartT")
Progress = Callable[[str, int, int | None], None]

_QUICK_SECONDS = 10.0
# Between two lines of progress: the server hashes a whole model without a word, the registry may be slow.
_PATIENCE_SECONDS = 600.0
_POLL_SECONDS = 0.1
_BLOB = re.compile(r"^FROM (.*\bsha256[-:]([0-9a-f]{64}))\s*$", re.MULTILINE)


@dataclass(frozen=True)
class ModelFacts:
    """What ``/api/show`` says of a model.

    Attributes:
        blob: the file the server runs, on the server's disk, and its SHA-256; None where it does not say.
        layers: of the network, the output layer not counted.
    """

    capabilities: frozenset[str]
    family: str | None = None
    parameter_size: str | None = None
    quantization: str | None = None
    blob: tuple[Path, str] | None = None
    architecture: str | None = None
    layers: int | None = None

    @property
    def thinks(self) -> bool:
        """Whether it reasons unless told not to."""
        return "thinking" in self.capabilities


@dataclass(frozen=True)
class LoadedModel:
    """An entry of ``/api/ps``. Ollama may leave out what is zero."""

    name: str
    size_bytes: int
    size_vram_bytes: int
    context_size: int | None
    digest: str | None


class OllamaControl:
    """One server's control routes. Every failure is a ServerError; nothing of the client's own escapes."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self.base_url = base_url
        self._api_key = api_key
        self._tls = ssl.create_default_context()  # what the timing client trusts, not what httpx ships
        self._quick = self._client(_QUICK_SECONDS)

    def close(self) -> None:
        """Let go of the connections."""
        self._quick.close()  # type: ignore[no-untyped-call]

    def installed(self) -> dict[str, float | None]:
        """The models the server has, and when each was made, in seconds since 1970."""
        with self._translated("/api/tags"):
            return {
                str(model.model): model.modified_at.timestamp() if model.modified_at else None
                for model in self._quick.list().models
                if model.model
            }

    def loaded(self) -> list[LoadedModel]:
        """The models in memory."""
        with self._translated("/api/ps"):
            return [
                LoadedModel(
                    name=str(model.model or model.name or ""),
                    size_bytes=int(model.size or 0),
                    size_vram_bytes=int(model.size_vram or 0),
                    context_size=model.context_length or None,
                    digest=model.digest,
                )
                for model in self._quick.ps().models
            ]

    def show(self, name: str) -> ModelFacts:
        """What the server knows of a model."""
        with self._translated("/api/show"):
            shown = self._quick.show(name)
            details, info, blob = shown.details, shown.modelinfo or {}, _BLOB.search(shown.modelfile or "")
            return ModelFacts(
                capabilities=frozenset(shown.capabilities or ()),
                family=details.family if details else None,
                parameter_size=details.parameter_size if details else None,
                quantization=details.quantization_level if details else None,
                blob=(Path(blob[1]), blob[2]) if blob else None,
                architecture=_text(info.get("general.architecture")),
                layers=_whole(info.get(f"{info.get('general.architecture')}.block_count")),
            )

    def pull(self, name: str, progress: Progress | None) -> None:
        """Let the server download a model.

        Raises:
            ServerError: ``model_missing``: its registry has none of that name; ``download_failed``.
        """
        what = f"downloading {name}"
        try:
            with closing(self._client(_PATIENCE_SECONDS)) as client:
                status = self._follow(what, client.pull(name, stream=True), progress)
        except ServerError as exc:
            said = exc.evidence.get("server_message")
            if not isinstance(said, str) or exc.code == "wrong_key":
                raise  # of the connection, not of the model
            gone = any(sign in said for sign in ("file does not exist", "not found", "invalid model name"))
            code, hint = (
                ("model_missing", "correct the name in `served`; see https://ollama.com/library")
                if gone
                else ("download_failed", "does the server reach its registry, and has its disk room?")
            )
            raise ServerError(
                code, f"{self.base_url} could not download {name!r}: {said}; {hint}", exc.evidence
            ) from exc
        if status != "success":
            raise ServerError(
                "download_failed",
                f"{self.base_url} broke off downloading {name!r} (last: {status!r}); run again, it goes on from there",
            )

    def import_file(self, name: str, path: Path, progress: Progress | None) -> None:
        """Give the server a GGUF file under a name; the parts of a split one together.

        Raises:
            ServerError: ``import_failed``.
        """
        what = f"importing {path.name}"
        try:
            with closing(self._client(_PATIENCE_SECONDS)) as client:
                files = {part.name: self._give(client, part, progress) for part in _parts(path)}
                status = self._follow(what, client.create(name, files=files, stream=True), progress)
        except OSError as exc:
            raise ServerError("import_failed", f"{path} can not be read: {exc.strerror}") from exc
        except ServerError as exc:
            said = exc.evidence.get("server_message")
            if not isinstance(said, str) or exc.code == "wrong_key":
                raise
            message = f"{self.base_url} could not import {path.name}: {said}; is it a whole GGUF file?"
            raise ServerError("import_failed", message, exc.evidence) from exc
        if status != "success":
            raise ServerError("import_failed", f"{self.base_url} broke off importing {path.name} (last: {status!r})")

    def _give(self, client: ollama.Client, path: Path, progress: Progress | None) -> str:
        """Upload a file unless the server has it; returns its digest."""
        import httpx

        size = path.stat().st_size
        if progress is not None:
            progress(f"uploading {path.name}", 0, size)
        digest = f"sha256:{sha256_of(path)}"
        with self._translated("/api/blobs"):
            # The official client does not ask first, and a server that has the file hangs up in the middle of it.
            known = httpx.head(
                f"{self.base_url}/api/blobs/{digest}",
                auth=self._authorize,
                timeout=_QUICK_SECONDS,
                trust_env=False,
                verify=self._tls,
            )
            if known.status_code != 200:
                client.create_blob(path)
        if progress is not None:
            progress(f"uploading {path.name}", size, size)
        return digest

    def load(self, name: str, extra: Mapping[str, Any], timeout_seconds: float) -> float:
        """Load a model with the options that every later request carries; returns the seconds that took.

        Raises:
            ServerError: ``model_load_failed``, ``server_start_timeout``, ``model_missing``, ``server_busy``.
        """
        began = time.perf_counter()
        try:
            with closing(self._client(timeout_seconds)) as client, self._translated("/api/generate"):
                client.generate(name, prompt="", options=extra["options"], keep_alive=extra["keep_alive"])
        except ServerError as exc:
            if exc.code == "timeout":
                raise ServerError(
                    "server_start_timeout",
                    f"{self.base_url} did not load {name!r} in {timeout_seconds:g} s (limits.max_load_time)",
                    {"timeout_seconds": timeout_seconds},
                ) from exc
            if exc.code == "http_error":
                raise ServerError(
                    "model_load_failed",
                    f"{self.base_url} could not load {name!r}: {exc.evidence['server_message']}; its log may say more",
                    exc.evidence,
                ) from exc
            raise
        return time.perf_counter() - began

    def unload(self, name: str, timeout_seconds: float) -> bool:
        """Have a model leave memory; whether it did in time."""
        with self._translated("/api/generate"):
            self._quick.generate(name, prompt="", keep_alive=0)
        deadline = time.monotonic() + timeout_seconds
        while any(same_name(model.name, name) for model in self.loaded()):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _client(self, timeout_seconds: float) -> ollama.Client:
        import ollama

        return ollama.Client(
            self.base_url,
            timeout=timeout_seconds,
            trust_env=False,  # a proxy variable must not route loopback traffic
            follow_redirects=False,  # the timing client follows none either
            verify=self._tls,
            auth=self._authorize,
        )

    def _authorize(self, request: httpx.Request) -> httpx.Request:
        # The official client sends OLLAMA_API_KEY, the key of ollama.com, to whatever server it talks to.
        request.headers.pop("Authorization", None)
        if self._api_key is not None:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request

    def _follow(self, what: str, parts: Iterable[ollama.ProgressResponse], progress: Progress | None) -> str | None:
        """Read a stream of progress to its end; returns its last status."""
        status: str | None = None
        done: dict[str, int] = {}
        totals: dict[str, int] = {}
        for part in self._each(what, iter(parts)):
            status = part.status
            if part.digest and part.total:
                done[part.digest], totals[part.digest] = part.completed or 0, part.total
            if progress is not None:
                progress(what, sum(done.values()), sum(totals.values()) or None)
        return status

    def _each(self, what: str, parts: Iterator[PartT]) -> Iterator[PartT]:
        while True:
            with self._translated(what):  # only what the client does, not what the caller does with it
                part = next(parts, None)
            if part is None:
                return
            yield part

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turn every way in which the client fails into a ServerError."""
        import httpx
        import ollama

        where = f"{self.base_url}: {what}"
        try:
            yield
        except ollama.ResponseError as exc:
            raise _refusal(where, exc.status_code, str(exc.error)) from exc
        except httpx.TimeoutException as exc:
            raise ServerError("timeout", f"{where}: no answer in time") from exc
        except (ConnectionError, httpx.TransportError) as exc:
            raise ServerError("unreachable", f"{where}: the connection failed or broke ({exc})") from exc
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as exc:
            raise ServerError("bad_response", f"{where}: {exc}") from exc
        except (ValueError, TypeError, AttributeError) as exc:  # no JSON, or JSON of another shape
            raise ServerError(
                "bad_response", f"{where}: the answer is not what Ollama answers; is this an Ollama server?"
            ) from exc


def _refusal(where: str, status: int, said: str) -> ServerError:
    said = said.strip()[:500] or "no reason given"
    evidence: dict[str, Primitive] = {"http_status": status, "server_message": said}
    if status in {401, 403}:
        return ServerError("wrong_key", f"{where}: the server refuses the key (HTTP {status}): {said}", evidence)
    if status == 404 and "model" in said and "not found" in said:
        return ServerError("model_missing", f"{where}: {said}", evidence)
    if status == 503:
        return ServerError("server_busy", f"{where}: {said}; is somebody else using this server?", evidence)
    return ServerError("http_error", f"{where}: {said}", evidence)  # -1: an error line within a stream


def canonical(name: str) -> str:
    """A model's name as the server writes it: the default registry, namespace and tag are understood."""
    name = name.strip().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def same_name(one: str, other: str) -> bool:
    """Whether two names mean one model; Ollama does not tell capitals from small letters."""
    return canonical(one).casefold() == canonical(other).casefold()


def is_newer(path: Path, timestamp: float | None) -> bool:
    """Whether a file, or a part of it, may have changed since."""
    if timestamp is None:
        return False
    try:
        states = [part.stat() for part in _parts(path)]
    except OSError:
        return False  # reading it tells what is wrong
    return any(max(state.st_mtime, state.st_ctime) > timestamp for state in states)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _parts(path: Path) -> list[Path]:
    """All shards of a split GGUF file, or the one file."""
    return [path.with_name(name) for name in shard_names(path.name)]
