"""The engines behind the Ollama-speaking test server: llama.cpp's own, in a child process, or counted words.

Part of :mod:`tests.servers.ollama_server`, which is a test server and not Ollama. Run as a script, this file is the
child that holds the real engine; it takes instructions as ``pytest_llmbench.backends.embedded_child`` does, but turns
on what a benchmark turns off and Ollama leaves on: the prompt cache and the shifting context.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import psutil

from pytest_llmbench.errors import ServerError
from pytest_llmbench.runtime.host import usable_cores
from pytest_llmbench.runtime.lifeline import die_with_parent
from pytest_llmbench.runtime.process import ReportingProcess

_ENGINE_GONE = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)


class OllamaError(Exception):
    """What is answered as ``{"error": message}``, with this status unless an answer has begun."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class RunnerOptions:
    """What a loaded model is tied to: a change of any of it means loading again."""

    num_ctx: int
    num_batch: int = 512
    num_gpu: int = -1
    num_thread: int = 0
    use_mmap: bool | None = None
    main_gpu: int | None = None
    draft_num_predict: int = 0
    shift: bool = True


@dataclass(frozen=True)
class Final:
    """The end of an answer. ``seconds`` runs from the first token to the last; cached tokens cost no prompt time."""

    prompt_tokens: int
    cached_tokens: int
    prompt_seconds: float
    tokens: int
    seconds: float
    reason: Literal["stop", "length"]


class Runner(Protocol):
    """A loaded model."""

    @property
    def alive(self) -> bool: ...

    @property
    def size_bytes(self) -> int: ...

    def tokenize(self, text: str) -> list[int]: ...

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that a chat makes."""
        ...

    def complete(self, prompt: str | list[int], options: Mapping[str, Any]) -> Iterator[str | Final]:
        """The answer's pieces as they come, then its end. ``options`` are Ollama's, complete.

        Raises:
            OllamaError: refused, or broken in the middle.
        """
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """What loads models."""

    def load(self, path: Path | None, options: RunnerOptions) -> Runner:
        """Load a model.

        Raises:
            OllamaError: it can not be loaded.
        """
        ...

    def close(self) -> None:
        """Let go of what the engine itself holds; every runner is closed by now."""
        ...


@dataclass
class WordEngine:
    """Counts words instead of thinking of them, at a steady pace: one word is one token.

    Attributes:
        word_seconds: pause before each word but the first.
        prompt_word_seconds: pause for each word of the prompt that the last prompt did not begin with as well.
        load_seconds: how long a load takes.
        answer_words: where the answer ends by itself.
        word: what it says; without a number in it, it says the same again and again.
    """

    word_seconds: float = 0.0002
    prompt_word_seconds: float = 0.00001
    load_seconds: float = 0.05
    answer_words: int = 200
    word: str = "word{number} "

    def load(self, path: Path | None, options: RunnerOptions) -> Runner:
        """See :class:`Engine`."""
        time.sleep(self.load_seconds)
        return _WordRunner(self, options)

    def close(self) -> None:
        """Nothing is held."""


class _WordRunner:
    alive = True

    def __init__(self, engine: WordEngine, options: RunnerOptions) -> None:
        self._engine = engine
        self._options = options
        self._seen: list[int] = []
        self._closed = threading.Event()
        self.size_bytes = 1_000_000 + 100 * options.num_ctx

    def tokenize(self, text: str) -> list[int]:
        return [zlib.crc32(word.encode()) for word in text.split()]

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return "".join(f"{message['role']}: {message.get('content', '')} " for message in messages)

    def complete(self, prompt: str | list[int], options: Mapping[str, Any]) -> Iterator[str | Final]:
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else prompt
        context = self._options.num_ctx
        if len(tokens) >= context:
            error = {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": len(tokens), "n_ctx": context}
            raise OllamaError(400, json.dumps({"error": error}))
        same = next((i for i, (new, old) in enumerate(zip(tokens, self._seen, strict=False)) if new != old), None)
        known = min(len(tokens), len(self._seen)) if same is None else same
        cached = max(0, min(known, len(tokens) - 1))  # the last token is always evaluated: it gives the first word
        self._seen = tokens
        began = time.perf_counter()
        self._pause((len(tokens) - cached) * self._engine.prompt_word_seconds)
        first = time.perf_counter()
        limit = int(options["num_predict"])
        if not self._options.shift:
            limit = min(limit, context - len(tokens))
        count = min(limit, self._engine.answer_words)
        for number in range(count):
            if number:
                self._pause(self._engine.word_seconds)
            yield self._engine.word.format(number=number)
        reason: Literal["stop", "length"] = "length" if count == limit else "stop"
        yield Final(len(tokens), cached, first - began, count, time.perf_counter() - first, reason)

    def close(self) -> None:
        """Break what is being said."""
        self._closed.set()

    def _pause(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise OllamaError(500, _ENGINE_GONE)


class EmbeddedEngine:
    """llama.cpp's server from the ``xllamacpp`` wheel, one child process for each loaded model.

    Children are started by one thread that lives as long as the engine: they ask the kernel to die with the thread
    that forked them, and a thread that answers one HTTP request is gone too soon.
    """

    def __init__(self, load_timeout_seconds: float = 60.0) -> None:
        self._load_timeout_seconds = load_timeout_seconds
        self._starter = ThreadPoolExecutor(1, "ollama test server: starts engines")
        self._logs = tempfile.TemporaryDirectory(prefix="ollama-test-server-")
        self._count = 0

    def load(self, path: Path | None, options: RunnerOptions) -> Runner:
        """See :class:`Engine`."""
        if path is None:
            raise OllamaError(500, "the embedded engine needs a model file")
        return self._starter.submit(self._start, path, options).result()

    def _start(self, path: Path, options: RunnerOptions) -> Runner:
        self._count += 1
        api_key = secrets.token_urlsafe(24)
        instructions = {"parent_pid": os.getpid(), "model_path": str(path), "api_key": api_key, **asdict(options)}
        safe_path = ["-P"] if sys.version_info >= (3, 11) else []
        command = [sys.executable, *safe_path, str(Path(__file__).resolve())]
        process = ReportingProcess(command, instructions, Path(self._logs.name) / f"engine_{self._count}")
        try:
            report = process.wait_ready(self._load_timeout_seconds)
        except ServerError as exc:
            process.stop()
            raise OllamaError(500, f"llama-server process has terminated: {exc.message}") from exc
        except BaseException:
            process.stop()
            raise
        return _EmbeddedRunner(process, urlsplit(report["url"]).netloc, api_key)

    def close(self) -> None:
        """End the starting thread and remove the logs."""
        self._starter.shutdown()
        self._logs.cleanup()


class _EmbeddedRunner:
    def __init__(self, process: ReportingProcess, address: str, api_key: str) -> None:
        self._process = process
        self._address = address
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self.size_bytes = int(psutil.Process(process.pid).memory_info().rss)

    @property
    def alive(self) -> bool:
        return self._process.alive

    def tokenize(self, text: str) -> list[int]:
        found: list[int] = self._ask("/tokenize", {"content": text, "add_special": True})["tokens"]
        return found

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return str(self._ask("/apply-template", {"messages": list(messages)})["prompt"])

    def complete(self, prompt: str | list[int], options: Mapping[str, Any]) -> Iterator[str | Final]:
        body = {**options, "n_predict": options["num_predict"], "n_keep": options["num_keep"]}
        body |= {"prompt": prompt, "stream": True, "cache_prompt": True}
        with closing(http.client.HTTPConnection(self._address, timeout=300)) as connection:
            response = self._send(connection, "/completion", body)
            with closing(response):
                while True:
                    event = self._event(response)
                    if event.get("stop"):
                        yield _final(event)
                        return
                    if event.get("content"):
                        yield str(event["content"])

    def close(self) -> None:
        self._process.stop()

    def _event(self, response: http.client.HTTPResponse) -> dict[str, Any]:
        """The next event of a stream; its end comes too early whenever it comes here."""
        while True:
            try:
                line = response.readline()
            except (OSError, http.client.HTTPException) as exc:
                raise OllamaError(500, _ENGINE_GONE) from exc
            if not line:
                raise OllamaError(500, _ENGINE_GONE)
            if line.startswith((b"data: ", b"error: ")):
                event: dict[str, Any] = json.loads(line.partition(b": ")[2])
                if line.startswith(b"error") or "error" in event:
                    raise OllamaError(500, json.dumps(event))
                return event

    def _ask(self, route: str, body: Mapping[str, Any]) -> Any:
        with closing(http.client.HTTPConnection(self._address, timeout=60)) as connection:
            return json.loads(self._send(connection, route, body).read())

    def _send(
        self, connection: http.client.HTTPConnection, route: str, body: Mapping[str, Any]
    ) -> http.client.HTTPResponse:
        try:
            connection.request("POST", route, json.dumps(body), self._headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            raise OllamaError(500, _ENGINE_GONE) from exc
        if response.status >= 400:
            raise OllamaError(response.status, response.read().decode().strip())
        return response


def _final(event: Mapping[str, Any]) -> Final:
    timings = event["timings"]
    return Final(
        prompt_tokens=timings["cache_n"] + timings["prompt_n"],
        cached_tokens=timings["cache_n"],
        prompt_seconds=timings["prompt_ms"] / 1000,
        tokens=timings["predicted_n"],
        seconds=timings["predicted_ms"] / 1000,
        reason="length" if event.get("stop_type") == "limit" else "stop",
    )


def _child() -> int:
    """Serve until standard input ends, which it also does when the parent dies."""
    ready_fd = int(sys.argv[1])
    instructions: dict[str, Any] = json.loads(sys.stdin.readline())
    die_with_parent(int(instructions["parent_pid"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = instructions["model_path"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [instructions["api_key"]]
    params.n_ctx = instructions["num_ctx"]
    params.n_batch = instructions["num_batch"]
    params.n_parallel = 1
    if instructions["num_gpu"] >= 0:
        params.n_gpu_layers = instructions["num_gpu"]
    if instructions["main_gpu"] is not None:
        params.main_gpu = instructions["main_gpu"]
    params.cpuparams.n_threads = instructions["num_thread"] or usable_cores()
    params.ctx_shift = instructions["shift"]
    params.fit_params = False
    params.cache_ram_mib = 0  # the cache of one slot is enough for the trap it is here for
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 0
    params.offline = True
    params.ui = False
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as exc:
        print(f"error loading model: {exc}", file=sys.stderr)  # noqa: T201 -- standard error is the log
        return 1
    os.write(ready_fd, json.dumps({"url": server.listening_address}).encode() + b"\n")
    os.close(ready_fd)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.stdin.read()
    del server
    return 0


if __name__ == "__main__":
    sys.exit(_child())
