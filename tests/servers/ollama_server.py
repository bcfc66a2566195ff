"""A test server that speaks Ollama's HTTP API. It is not Ollama and must never be presented as Ollama.

It exists because no package carries Ollama: tests of our client and backend need something that answers as Ollama
does, with its traps. Real answers come from llama.cpp in a child process, quick ones from an engine that counts words.
A number measured on it says nothing about Ollama, and a run on it is never to be reported as a run on Ollama.

Beside its use in a test's process it can be a process of its own::

    OLLAMA_HOST=127.0.0.1:11434 python -m tests.servers.ollama_server serve --words fake

Obeyed from the environment: OLLAMA_HOST (only the loopback is listened on), OLLAMA_CONTEXT_LENGTH, OLLAMA_KEEP_ALIVE.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tests.servers.ollama_engine import EmbeddedEngine, Engine, Final, OllamaError, WordEngine
from tests.servers.ollama_http import HttpServer, Route
from tests.servers.ollama_models import Json, Library, OllamaModel, full_name, manifest_digest, utc, without_zeros
from tests.servers.ollama_scheduler import BUSY, Loaded, Scheduler, check_options, parse_keep_alive, runner_options

__all__ = ["EmbeddedEngine", "Fault", "OllamaModel", "OllamaServer", "SeenRequest", "WordEngine"]

Fault = Literal["stutter", "busy", "load_failure", "error_line"]
Kind = Literal["generate", "chat"]
_PIECES_BEFORE_FAULT = 3
_REPEATS_ALLOWED = 30
_THINK_LEVELS = ("low", "medium", "high", "max")
_DEFAULTS: dict[str, Any] = {
    "num_keep": 4,
    "num_predict": -1,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": -1,
    "stop": [],
}


@dataclass
class SeenRequest:
    """A request as it came. Times are monotonic; ``t_end`` is None until it is answered."""

    method: str
    path: str
    body: Json
    t_begin: float
    t_end: float | None = None


@dataclass
class OllamaServer:
    """Use as a context manager.

    Attributes:
        models: what is installed at first, by name; ``latest`` is the tag of names without one.
        engine: what answers; closed together with the server.
        library: what can be pulled, by name.
        fault: how to misbehave, by model name as requested; the key ``*`` means every model. ``stutter`` ends an
            answer with no final object, ``busy`` is a 503, ``load_failure`` a 500, ``error_line`` comes under HTTP 200.
        context_length: tokens when num_ctx is not given.
        keep_alive_seconds: how long a model stays when the request does not say.
        unload_seconds: how long a model that goes is still listed in ``/api/ps``.
        max_loaded: models in memory at a time.
        max_queue: requests that may wait for a load.
        vram_share: of a loaded model, the part that ``/api/ps`` says is on a GPU: 0 on a CPU, below 1 when spilled.
        cuts_to: what is left of an overlong prompt: ``half`` of the context (Ollama 0.33 with llama-server) or the
            ``whole`` context (Ollama's own older engine).
        pull_step_seconds: pause before each progress object of a pull.
        requests: all that came, in order.
    """

    models: dict[str, OllamaModel]
    engine: Engine = field(default_factory=WordEngine)
    library: dict[str, OllamaModel] = field(default_factory=dict)
    fault: dict[str, Fault] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 0
    version: str = "0.33.0-llmbench-test-server"
    context_length: int = 4096
    keep_alive_seconds: float = 300.0
    unload_seconds: float = 0.05
    max_loaded: int = 3
    max_queue: int = 512
    vram_share: float = 0.0
    cuts_to: Literal["half", "whole"] = "half"
    pull_step_seconds: float = 0.005
    requests: list[SeenRequest] = field(default_factory=list)

    def __enter__(self) -> OllamaServer:
        self._library = Library(self.models, self.library, self.pull_step_seconds)
        routes = _routes(self, self._library)
        try:
            self._http = HttpServer((self.host, self.port), routes, self._library, self._seen)
        except OSError:  # the port is taken
            self._library.close()
            raise
        self._scheduler = Scheduler(
            self.engine,
            keep_alive_seconds=self.keep_alive_seconds,
            unload_seconds=self.unload_seconds,
            max_loaded=self.max_loaded,
            max_queue=self.max_queue,
        )
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="ollama test server")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.hang_up()
        self._scheduler.close()  # breaks answers that are still on their way
        self._http.server_close()
        self.engine.close()
        self._library.close()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self._http.server_address[1]}"

    @property
    def loads(self) -> int:
        """How often a model was loaded into memory, reloads included."""
        return self._scheduler.loads

    def requests_to(self, path: str) -> list[SeenRequest]:
        """Those that came for one path."""
        return [request for request in self.requests if request.path == path]

    @contextmanager
    def _seen(self, method: str, path: str, body: Json) -> Iterator[None]:
        request = SeenRequest(method, path, body, time.monotonic())
        self.requests.append(request)
        try:
            yield
        finally:
            request.t_end = time.monotonic()

    # -- what is loaded

    def say_version(self, _: Json) -> Json:
        return {"version": self.version}

    def delete(self, body: Json) -> None:
        """``/api/delete``: a model that is loaded goes from memory, too."""
        self._library.delete(body)
        self._scheduler.expire(full_name(str(body.get("model") or body.get("name"))))

    def ps(self, _: Json) -> Json:
        return {"models": [self._running(loaded) for loaded in self._scheduler.loaded()]}

    def _running(self, loaded: Loaded) -> Json:
        remaining = min(loaded.expires - time.monotonic(), 9e9)  # Go's longest duration: "for ever" is a date, too
        return {
            "name": loaded.name,
            "model": loaded.name,
            "size": loaded.runner.size_bytes,
            "digest": manifest_digest(loaded.name, loaded.model),
            "details": loaded.model.details(),
            "expires_at": utc(time.time() + remaining),
            "size_vram": int(loaded.runner.size_bytes * self.vram_share),
            "context_length": loaded.options.num_ctx,
        }

    # -- answers

    def embed(self, _: Json) -> Json:
        raise OllamaError(501, "this test server does not make embeddings")

    def generate(self, body: Json) -> Json | Iterator[Json]:
        """``/api/generate``: nothing to answer means load or unload."""
        prompt = str(body.get("prompt") or "")
        if body.get("raw") and (body.get("template") or body.get("system") or body.get("context")):
            raise OllamaError(400, "raw mode does not support template, system, or context")
        messages = [{"role": "user", "content": prompt}] if prompt else []
        return self._reply("generate", body, messages)

    def chat(self, body: Json) -> Json | Iterator[Json]:
        """``/api/chat``."""
        return self._reply("chat", body, body.get("messages") or [])

    def _reply(self, kind: Kind, body: Json, messages: list[Json]) -> Json | Iterator[Json]:
        name = str(body.get("model") or "")
        if not name and kind == "chat":
            raise OllamaError(400, "model is required")
        model = self._library.existing(name)
        keep = parse_keep_alive(body.get("keep_alive"))
        if not messages and keep == 0:
            self._scheduler.expire(full_name(name))
            return _frame(kind, name, done=True, done_reason="unload")
        thinks = _thinks(body.get("think"), name, model)
        if messages:
            return self._answer(kind, body, model, messages, thinks)
        with self._use(body, model):
            return _frame(kind, name, done=True, done_reason="load")

    @contextmanager
    def _use(self, body: Json, model: OllamaModel) -> Iterator[Loaded]:
        name = str(body["model"])
        fault = self.fault.get(name) or self.fault.get("*")
        if fault == "busy":
            raise OllamaError(503, BUSY)
        if fault == "load_failure":
            raise OllamaError(
                500, "llama-server process has terminated: error loading model: unable to allocate buffer"
            )
        given = {**check_options(model.parameters), **check_options(body.get("options") or {})}
        shift = body.get("shift") is not False
        options = runner_options(given, self.context_length, model.largest_context, shift)
        with self._scheduler.use(
            full_name(name), model, options, given, parse_keep_alive(body.get("keep_alive"))
        ) as loaded:
            yield loaded

    def _answer(self, kind: Kind, body: Json, model: OllamaModel, messages: list[Json], thinks: bool) -> Iterator[Json]:
        began = time.perf_counter_ns()
        name = str(body["model"])
        fault = self.fault.get(name) or self.fault.get("*")
        by_engine = kind == "chat" and not model.rendered_chat
        silent = kind == "generate" and name.casefold().startswith("gpt-oss")  # its words do not arrive there
        with self._use(body, model) as loaded:
            loaded_ns = time.perf_counter_ns() - began
            given = {**check_options(model.parameters), **check_options(body.get("options") or {})}
            sampling = {**_DEFAULTS, **{key: value for key, value in given.items() if key in _DEFAULTS}}
            longest = 10 * loaded.options.num_ctx
            asked = sampling["num_predict"]
            sampling["num_predict"] = longest if asked < 0 else min(asked, longest)
            system = str(body.get("system") or model.system)
            if system and messages[0].get("role") != "system":
                messages = [{"role": "system", "content": system}, *messages]
            truncates = body.get("truncate") is not False
            text = str(body["prompt"]) if body.get("raw") else _fitting(loaded, messages, truncates)
            prompt = self._cut(loaded, text, sampling["num_keep"]) if truncates and not by_engine else text
            said, last, repeats = "", "", 0
            with loaded.turn, closing(_generator(loaded.runner.complete(prompt, sampling))) as pieces:
                for count, piece in enumerate(pieces):
                    if isinstance(piece, Final):
                        final = piece
                        break
                    last, repeats = piece.strip(), repeats + 1 if piece.strip() == last else 0
                    if (repeats > _REPEATS_ALLOWED and not by_engine) or (
                        fault == "stutter" and count == _PIECES_BEFORE_FAULT
                    ):
                        return
                    if fault == "error_line" and count == _PIECES_BEFORE_FAULT:
                        raise OllamaError(500, "an error was encountered while running the model")
                    said += piece
                    if not silent:
                        yield _frame(kind, name, piece, thinking=thinks and count < model.thinking_pieces)
            metrics = {
                "total_duration": time.perf_counter_ns() - began,
                "load_duration": loaded_ns,
                "prompt_eval_count": final.prompt_tokens,
                "prompt_eval_duration": int(final.prompt_seconds * 1e9),
                "eval_count": final.tokens,
                "eval_duration": int(final.seconds * 1e9),
            }
            if kind == "generate" and not body.get("raw"):
                metrics["context"] = loaded.runner.tokenize(text + said)  # type: ignore[assignment]
            yield {**_frame(kind, name, done=True, done_reason=final.reason), **without_zeros(metrics, *metrics)}

    def _cut(self, loaded: Loaded, text: str, keep: int) -> str | list[int]:
        """The prompt, without its middle if it is too long; nothing but its count tells."""
        context = loaded.options.num_ctx
        tokens = loaded.runner.tokenize(text)
        if len(tokens) < context:
            return text
        if not loaded.options.shift:
            raise OllamaError(400, "the prompt is longer than the context length currently available to the model")
        keep = max(0, min(len(tokens) if keep < 0 else keep, context - 1))
        left = context - max((context - keep) // 2, 1) if self.cuts_to == "half" else context - 1
        return tokens[:keep] + tokens[len(tokens) - (left - keep) :]


def _generator(pieces: Iterator[str | Final]) -> Any:
    """The same, known to have ``close``: both engines write generators."""
    return pieces


def _thinks(think: object, name: str, model: OllamaModel) -> bool:
    """Whether the answer begins with thinking: models that can do so unless they are told not to."""
    if isinstance(think, str) and think not in _THINK_LEVELS:
        allowed = '"high", "medium", "low", "max", true, or false'
        raise OllamaError(400, f'invalid think value: "{think}" (must be {allowed})')
    if think is not None and not isinstance(think, (bool, str)):
        raise OllamaError(400, 'think must be a boolean or string ("high", "medium", "low", "max", true, or false)')
    if not model.thinking_pieces:
        if think:
            raise OllamaError(400, f'"{name}" does not support thinking')
        return False
    return think is not False


def _fitting(loaded: Loaded, messages: list[Json], truncates: bool) -> str:
    """A chat as a prompt, without the oldest messages that do not fit; never without the last."""
    for skipped in range(len(messages)):
        systems = [message for message in messages[:skipped] if message.get("role") == "system"]
        text = loaded.runner.render(systems + messages[skipped:])
        if not truncates or len(loaded.runner.tokenize(text)) <= loaded.options.num_ctx:
            break
    return text


def _frame(
    kind: Kind, name: str, text: str = "", *, thinking: bool = False, done: bool = False, done_reason: str = ""
) -> Json:
    """One object of an answer."""
    frame: Json = {"model": name, "created_at": utc(time.time())}
    said = {"thinking": text} if thinking else {}
    content = "" if thinking else text
    frame |= (
        {"response": content, **said}
        if kind == "generate"
        else {"message": {"role": "assistant", "content": content, **said}}
    )
    return {**frame, "done": done, **({"done_reason": done_reason} if done_reason else {})}


def _routes(server: OllamaServer, library: Library) -> dict[tuple[str, str], Route]:
    return {
        ("GET", "/"): lambda _: None,
        ("GET", "/api/version"): server.say_version,
        ("GET", "/api/tags"): library.tags,
        ("GET", "/api/ps"): server.ps,
        ("GET", "/v1/models"): library.openai_models,
        ("POST", "/api/show"): library.show,
        ("POST", "/api/generate"): server.generate,
        ("POST", "/api/chat"): server.chat,
        ("POST", "/api/pull"): library.pull,
        ("POST", "/api/create"): library.create,
        ("POST", "/api/embed"): server.embed,
        ("DELETE", "/api/delete"): server.delete,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="A test server that speaks Ollama's API. It is not Ollama.")
    parser.add_argument("command", choices=["serve"])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", action="append", metavar="NAME=PATH", help="a GGUF file, on the real engine")
    what.add_argument("--words", action="append", metavar="NAME", help="a model that counts words")
    options = parser.parse_args(arguments)
    ends = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ends.set())
    pairs = [text.partition("=") for text in options.model or []]
    models = {name: OllamaModel(Path(path)) for name, _, path in pairs}
    models |= {name: OllamaModel() for name in options.words or []}
    address = urlsplit("//" + os.environ.get("OLLAMA_HOST", "").rpartition("//")[2])
    port = 11434 if address.port is None else address.port
    length = int(os.environ.get("OLLAMA_CONTEXT_LENGTH") or 0) or 4096
    keep = parse_keep_alive(os.environ.get("OLLAMA_KEEP_ALIVE") or "5m")
    engine: Engine = EmbeddedEngine() if options.model else WordEngine()
    server = OllamaServer(models, engine, port=port, context_length=length, keep_alive_seconds=keep or 0.0)
    try:
        with server:
            _log(f"Listening on {urlsplit(server.url).netloc} (test server {server.version})")
            ends.wait()
    except OSError as exc:
        engine.close()
        _log(f"Error: listen tcp 127.0.0.1:{port}: bind: {(exc.strerror or '').lower()}")
        return 1
    return 0


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 -- standard error is this server's log


if __name__ == "__main__":
    sys.exit(main())
