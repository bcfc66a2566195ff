"""Any server with an OpenAI-compatible API: one that runs already, or one that a command of the user's starts."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from pytest_llmbench.backends.base import RunningServer, StartRequest, check_context
from pytest_llmbench.backends.checks import answers, first_look, knows, listed_models, names_of, prove, wrong_name
from pytest_llmbench.client.control import get_json, get_text
from pytest_llmbench.client.endpoint import LLAMA_CPP, Capabilities, Endpoint, ProtocolName
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.gguf import known_quantization
from pytest_llmbench.core.records import ServerInfo
from pytest_llmbench.errors import ModelError, RequestError, ServerError
from pytest_llmbench.runtime.process import LOOPBACK, ServerProcess, free_port

_START_TIME = re.compile(r"^process_start_time_seconds(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_FTYPE_SIZES = {"Small": "S", "Medium": "M", "Large": "L"}


class OpenAIServer:
    """A server of the user's. One that was not started here is taken for alive, and never stopped."""

    def __init__(
        self,
        endpoint: Endpoint,
        info: ServerInfo,
        notes: tuple[str, ...],
        process: ServerProcess | None = None,
        start_mark: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.endpoint = endpoint
        self.info = info
        self.notes = notes
        self.flags: tuple[str, ...] = ()
        self._process = process
        self._start_mark = start_mark

    @property
    def alive(self) -> bool:
        """Whether our process runs; of others' servers nothing is known until a request fails."""
        return self._process is None or self._process.alive

    def identity(self) -> str | None:
        """Our process, and what the server says that is another thing after each of its starts, if it says any.

        Both, because a command may be a supervisor that lives on when the server behind it is another.
        """
        process = self._process.identity() if self._process is not None else None
        return " ".join(filter(None, (process, self._start_mark()))) or None

    def death(self) -> ServerError:
        """How our process died; somebody else's server is never known to be dead."""
        if self._process is None:
            return ServerError("server_died", f"{self.endpoint.base_url} is gone")
        return self._process.died("server_died", "the server ended while it was being used")

    def stop(self) -> None:
        """End it if it is ours, else let go of it."""
        if self._process is not None:
            self._process.stop()


@dataclass(frozen=True)
class _Traits:
    """What was found out about a server."""

    protocol: ProtocolName
    capabilities: Capabilities
    version: str | None
    context_size: int | None
    file_type: str | None = None


class OpenAIBackend:
    """Connects to a server, started first where there is a command, and finds out what it can do."""

    brings_model = True

    def first_look(self, spec: ServerSpec) -> ServerError | None:
        """What speaks against a server that should be running, found in a moment; None where we start it ourselves."""
        if spec.base_url is None or spec.command is not None:
            return None
        try:
            return first_look(_plain_endpoint(spec, _api_key(spec)), spec.model_name)
        except ServerError as exc:
            return exc

    def start(self, request: StartRequest) -> RunningServer:
        """See :class:`~pytest_llmbench.backends.base.Backend`."""
        if request.spec.command is None:
            return _connect(request, _plain_endpoint(request.spec, _api_key(request.spec)), None, None)
        process, endpoint = _run(request)
        load_seconds = time.monotonic() - process.started_monotonic
        try:
            return _connect(request, endpoint, process, load_seconds)
        except ServerError as exc:
            if process.ends_within(0.5):
                raise process.died("server_died", "the server ended while it was being checked") from exc
            process.stop()
            raise
        except BaseException:
            process.stop()
            raise


def _plain_endpoint(spec: ServerSpec, api_key: str | None) -> Endpoint:
    assert spec.base_url is not None  # noqa: S101 -- checked at start
    return Endpoint(spec.base_url.removesuffix("/v1"), "openai_chat", spec.model_name, api_key)


def _connect(
    request: StartRequest, plain: Endpoint, process: ServerProcess | None, load_seconds: float | None
) -> OpenAIServer:
    spec, base_url = request.spec, plain.base_url
    assert spec.model_name is not None  # noqa: S101 -- every spec of a served model has one
    entries = listed_models(plain)
    entry = next((entry for entry in entries if knows(spec.model_name, names_of(entry))), None)
    if entry is None:
        raise wrong_name(plain, spec.model_name, [name for entry in entries for name in names_of(entry)])
    traits = _traits(plain, entry)
    _check_file_type(traits.file_type, request.quantization, base_url)
    check_context(spec.context_size, traits.context_size, base_url, may_be_larger=True)
    capabilities = dataclasses.replace(traits.capabilities, memory=process is not None)
    endpoint = plain.replace(protocol=traits.protocol, capabilities=capabilities)
    notes = list(capabilities.missing_notes())
    if traits.context_size is None and spec.context_size is not None:
        notes.append("this server does not tell its context size; what was asked for could not be checked")
    # Names with the same root are the same model; any of them may sign the answer.
    root = entry.get("root")
    same = [other for other in entries if other is entry or (root is not None and other.get("root") == root)]
    proof = prove(endpoint, spec.model_name, aliases=[name for other in same for name in names_of(other)])
    endpoint = endpoint.replace(signed=proof.response_model)
    info = ServerInfo(
        kind=spec.kind,
        version=traits.version,
        args=spec.as_args(),
        context_size=traits.context_size,
        pid=process.pid if process else None,
        load_seconds=load_seconds,
    )
    return OpenAIServer(endpoint, info, tuple(notes), process, _start_mark_of(plain))


def _traits(endpoint: Endpoint, entry: dict[str, Any]) -> _Traits:
    """What a server is and can do."""
    context_size = entry.get("max_model_len")
    context_size = context_size if isinstance(context_size, int) else None
    props = _llama_cpp_props(endpoint)
    if props is not None:
        settings = props["default_generation_settings"]
        n_ctx = settings.get("n_ctx") if isinstance(settings, dict) else None
        context_size = n_ctx if isinstance(n_ctx, int) and n_ctx > 0 else context_size
        version = f"llama.cpp {props['build_info']}" if props.get("build_info") else None
        if props.get("role") == "router":  # several models behind one port; its own routes do not say for whom
            capabilities = dataclasses.replace(LLAMA_CPP, exact_prompts=False, tokenizer=False)
            return _Traits("openai_chat", capabilities, version, context_size)
        return _Traits("llama_cpp", LLAMA_CPP, version, context_size, _file_type(props.get("model_ftype")))
    owner = entry.get("owned_by")
    said = _optional_json(endpoint, "/version")
    number = said.get("version") if isinstance(said, dict) else None
    if owner == "vllm":
        capabilities = Capabilities(ignores_end_of_sequence=True, tokenizer=True)
        return _Traits("openai_chat", capabilities, f"vllm {number}" if number else "vllm", context_size)
    if owner == "sglang":
        return _Traits("openai_chat", Capabilities(ignores_end_of_sequence=True), "sglang", context_size)
    return _Traits("openai_chat", Capabilities(), None, context_size)


def _llama_cpp_props(endpoint: Endpoint) -> dict[str, Any] | None:
    """``/props`` where the server is llama.cpp's, which then also understands its extra parameters."""
    props = _optional_json(endpoint, "/props")
    if not isinstance(props, dict) or "default_generation_settings" not in props:
        return None
    if props.get("role") == "router" and endpoint.model is not None:
        of_model = _optional_json(endpoint, f"/props?model={quote(endpoint.model, safe='')}")
        if isinstance(of_model, dict) and "default_generation_settings" in of_model:
            return {**of_model, "role": "router"}
    return props


def _optional_json(endpoint: Endpoint, path: str) -> Any:
    """What a route says that not every server has."""
    try:
        return get_json(endpoint, path, timeout_seconds=5.0)
    except RequestError:
        return None


def _file_type(said: Any) -> str | None:
    """llama.cpp's words for a file type (``Q4_K - Medium``) as the name everybody uses, None for others."""
    if not isinstance(said, str):
        return None
    name, _, size = said.partition(" - ")
    return known_quantization(f"{name}_{_FTYPE_SIZES.get(size, size)}" if size else name)


def _check_file_type(actual: str | None, quantization: str | None, base_url: str) -> None:
    """Refuse a model of another quantization than the one it is measured as, where the server tells."""
    expected = known_quantization(quantization) if quantization is not None else None
    if expected is not None and actual is not None and expected != actual:
        raise ModelError(
            "wrong_quantization",
            f"{base_url} serves a model of {actual}, it is listed as {quantization}; list it under `served` as "
            f"{actual} in the models file, or load the other file",
            {"file_type": actual, "quantization": quantization},
        )


def _start_mark_of(endpoint: Endpoint) -> Callable[[], str | None]:
    """Finds what a server says that changes with each of its starts: a start time, or llama.cpp's random marker."""

    def start_time() -> str | None:
        try:
            found = _START_TIME.search(get_text(endpoint, "/metrics", timeout_seconds=5.0))
        except RequestError:
            return None
        return f"started {found[1]}" if found else None

    def media_marker() -> str | None:
        props = _optional_json(endpoint, "/props")
        marker = props.get("media_marker") if isinstance(props, dict) else None
        # Older builds have one fixed marker; that says nothing.
        return marker if isinstance(marker, str) and len(marker) > len("<__media__>") else None

    for mark in (media_marker, start_time):
        if mark() is not None:
            return mark
    return lambda: None


def _api_key(spec: ServerSpec) -> str | None:
    if spec.api_key_env is None:
        return None
    key = os.environ.get(spec.api_key_env)
    if not key:
        raise ServerError(
            "wrong_key", f"openai.api_key_env names {spec.api_key_env}, but that variable is not set; export it"
        )
    return key


def _run(request: StartRequest) -> tuple[ServerProcess, Endpoint]:
    """Start the user's command and wait until the server lists its models."""
    spec = request.spec
    assert spec.command is not None  # noqa: S101 -- the caller looked
    base_url = spec.base_url or f"http://{LOOPBACK}:{free_port()}"
    address = urlsplit(base_url)
    host, port = address.hostname or LOOPBACK, address.port or (443 if address.scheme == "https" else 80)
    if spec.base_url is not None and _somebody_listens(host, port):
        raise ServerError(
            "port_taken",
            f"{base_url} is in use already, so openai.command can not start its server there; stop that server, or "
            "leave out openai.command to measure it, or openai.base_url to have a free port chosen",
        )
    environment: dict[str, str | None] = {}
    api_key = None
    if spec.api_key_env is not None:
        api_key = os.environ.get(spec.api_key_env) or secrets.token_urlsafe(24)
        environment[spec.api_key_env] = api_key
    values = {"{host}": host, "{port}": str(port), "{model}": spec.model_name or ""}
    command = [_filled_in(word, values) for word in spec.command]
    endpoint = _plain_endpoint(dataclasses.replace(spec, base_url=base_url), api_key)
    process = ServerProcess(command, request.log_stem, environment=environment, cwd=request.rootdir)
    try:
        process.wait_until(answers(endpoint, "/v1/models"), spec.max_load_seconds)
    except BaseException:
        process.stop()
        raise
    return process, endpoint


def _filled_in(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)  # and no other braces: commands may hold JSON
    return word


def _somebody_listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False
