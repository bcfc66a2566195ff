"""Ollama: a server that runs already, or ``ollama serve`` started for the measurement."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from typing import Any

from pytest_llmbench.backends.base import RunningServer, StartRequest, check_context
from pytest_llmbench.backends.checks import explained, first_look, prove
from pytest_llmbench.backends.ollama_control import (
    LoadedModel,
    ModelFacts,
    OllamaControl,
    canonical,
    is_newer,
    same_name,
)
from pytest_llmbench.backends.ollama_serve import check_cache_types, inherited_settings, spawn, wait_until_up
from pytest_llmbench.client.control import get_json
from pytest_llmbench.client.endpoint import Capabilities, Endpoint, ProtocolName
from pytest_llmbench.client.timings import was_reloaded
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.gguf import known_quantization, read_header
from pytest_llmbench.core.records import ServerInfo
from pytest_llmbench.core.yaml_source import nearest
from pytest_llmbench.errors import ModelNotDownloaded, Primitive, RequestError, ServerError
from pytest_llmbench.runtime.host import page_cache_percent
from pytest_llmbench.runtime.process import ServerProcess

logger = logging.getLogger(__name__)

CAPABILITIES = Capabilities(server_timings=True, memory=True)
_KEEP_ALIVE = "30m"
_UNLOAD_SECONDS = 20.0
_ANSWER_SECONDS = 10.0
_DYING_SECONDS = 1.0


@dataclass
class OllamaServer:
    """An Ollama server with our model in memory.

    Attributes:
        flags: doubts about everything measured on it, codes of ``core.records.FLAGS``.
    """

    endpoint: Endpoint
    info: ServerInfo
    notes: tuple[str, ...]
    flags: tuple[str, ...]
    _session: _Session = field(repr=False)

    @property
    def alive(self) -> bool:
        """Whether it runs, as far as that can be known: one that is not ours is taken for alive."""
        return self._session.process is None or self._session.process.alive

    def identity(self) -> str | None:
        """What another process would not have; None for a server that is not ours: it tells nothing of a restart."""
        return self._session.process.identity() if self._session.process is not None else None

    def death(self) -> ServerError:
        """How it died, with the tail of its log."""
        if self._session.process is None:
            return ServerError("server_died", f"{self.endpoint.base_url} is gone")
        return self._session.process.died("server_died", "the server ended while it was being used")

    def stop(self) -> None:
        """Have the model leave memory, then end the server if it is ours."""
        self._session.end()


class OllamaBackend:
    """Loads one model of an Ollama server with the options that every request then carries."""

    brings_model = True

    def first_look(self, spec: ServerSpec) -> ServerError | None:
        """What speaks against a server that should be running, found in a moment; None where we start it ourselves."""
        if spec.base_url is None or spec.start_server:
            return None
        can_be_imported = spec.model_file is not None
        try:
            endpoint = Endpoint(
                spec.base_url.rstrip("/"), "ollama_generate", spec.model_name, _api_key(spec.api_key_env)
            )
            return first_look(endpoint, None if can_be_imported else spec.model_name)
        except ServerError as exc:
            return exc

    def start(self, request: StartRequest) -> RunningServer:
        """See :class:`~pytest_llmbench.backends.base.Backend`."""
        spec = request.spec
        assert spec.model_name is not None  # noqa: S101 -- checked at start
        check_cache_types(spec)
        session = _Session(spec.model_name)
        try:
            if spec.start_server:
                base_url = session.serve(request)
            else:
                assert spec.base_url is not None  # noqa: S101 -- checked at start
                base_url = spec.base_url.rstrip("/")
            try:
                return _prepare(session, request, spec.model_name, base_url)
            except ServerError as exc:
                if session.process is None or not _has_ended(session.process, exc):
                    raise
                died = session.process.died("server_start_failed", f"the server ended ({exc.code}) before it was ready")
                raise died from exc
        except BaseException:
            session.end()
            raise


class _Session:
    """What has to be undone: a process of ours, and a model in memory."""

    def __init__(self, model: str) -> None:
        self.process: ServerProcess | None = None
        self.control: OllamaControl | None = None
        self.model_loaded = False
        self._model = model

    def serve(self, request: StartRequest) -> str:
        """Start a server of our own; returns its address."""
        self.process, base_url = spawn(request.spec, request.log_stem)
        wait_until_up(self.process, base_url, request.spec.max_load_seconds)
        return base_url

    def end(self) -> None:
        """Undo everything. What a server that is going anyway answers to that is logged, not raised."""
        control, self.control = self.control, None
        if control is not None:
            try:
                if self.model_loaded and (self.process is None or self.process.alive):
                    self.model_loaded = False
                    if not control.unload(self._model, _UNLOAD_SECONDS):
                        logger.warning("%s is still in the memory of %s", self._model, control.base_url)
            except ServerError as exc:
                logger.warning("%s may be left in memory: %s", self._model, exc.message)
            finally:
                control.close()
        if self.process is not None:
            self.process.stop()


def _has_ended(process: ServerProcess, error: ServerError) -> bool:
    """Whether a failure is that of a process which is gone: its connections break some moments before it is."""
    deadline = time.monotonic() + (_DYING_SECONDS if error.code in {"unreachable", "connection_refused"} else 0.0)
    while process.alive and time.monotonic() < deadline:
        time.sleep(0.02)
    return not process.alive


def _prepare(session: _Session, request: StartRequest, name: str, base_url: str) -> OllamaServer:
    """Find or fetch the model, load it, and compare what runs with what was asked for."""
    spec, notes = request.spec, list(CAPABILITIES.missing_notes())
    api_key = _api_key(spec.api_key_env)
    version = _version(Endpoint(base_url, "ollama_generate", name, api_key))
    control = session.control = OllamaControl(base_url, api_key)
    notes += _require_model(control, request, name)
    facts = control.show(name)
    _compare(request, facts, f"{base_url}: {name}")
    extra, thinking_notes = _extra(spec, facts, name)
    notes += thinking_notes

    notes += _make_room(control, name, ours=session.process is not None)
    cached_percent = None
    if session.process is not None and facts.blob is not None:  # only then is the server's disk surely ours
        cached_percent = page_cache_percent(facts.blob[0])
    session.model_loaded = True  # also when loading fails: it may be half done
    load_seconds = control.load(name, extra, spec.max_load_seconds)

    endpoint = Endpoint(base_url, _protocol(spec, facts, name), name, api_key, CAPABILITIES, extra)
    proof = prove(endpoint, name)
    endpoint = endpoint.replace(signed=proof.response_model)
    if was_reloaded(proof.server_timings):
        notes.append("the first request waited for the model as for a load; somebody else may be using this server")

    loaded = control.loaded()
    model = next((entry for entry in loaded if same_name(entry.name, name)), None)
    if model is None:
        raise ServerError(
            "model_not_loaded",
            f"{base_url} says that it loaded {name!r}, but does not list it in /api/ps; is it a cloud model? "
            "those run elsewhere and can not be measured here",
        )
    if model.context_size is None:
        notes.append("this server does not tell its context size; what was asked for could not be checked")
    elif spec.context_size is None:
        notes.append(f"no context size was asked for; this server chose {model.context_size} tokens")
    check_context(spec.context_size, model.context_size, base_url, may_be_larger=session.process is None)
    others = [entry for entry in loaded if entry is not model]
    if others:
        notes.append(f"other models are in memory beside this one: {_shown(others)}")
    flags, offload_notes = _offload(spec, facts, model)
    notes += offload_notes

    args: dict[str, Primitive] = {
        **spec.as_args(),
        "base_url": base_url,
        "environment": inherited_settings() if session.process is not None else None,
        "think": extra.get("think"),
        "quantization": facts.quantization,
        "parameter_size": facts.parameter_size,
        "family": facts.family,
        "model_digest": model.digest,
        "model_sha256": facts.blob[1] if facts.blob is not None else None,
        "size_bytes": model.size_bytes,
        "size_vram_bytes": model.size_vram_bytes,
    }
    info = ServerInfo(
        kind=spec.kind,
        version=version,
        args={key: value for key, value in args.items() if value is not None},
        context_size=model.context_size,
        pid=session.process.pid if session.process is not None else None,
        load_seconds=load_seconds,
        page_cache_percent=cached_percent,
    )
    return OllamaServer(endpoint, info, tuple(notes), flags, session)


def _version(endpoint: Endpoint) -> str:
    """The server's version, which at the same time tells whether it is one.

    Raises:
        ServerError: it is not reached, or something else listens there.
    """
    try:
        answer = get_json(endpoint, "/api/version", _ANSWER_SECONDS)
    except RequestError as exc:
        if exc.code in {"http_error", "bad_response", "not_found"}:
            raise _not_ollama(endpoint.base_url) from exc
        raise explained(endpoint, exc) from exc
    version = answer.get("version") if isinstance(answer, dict) else None
    if not isinstance(version, str):
        raise _not_ollama(endpoint.base_url)
    return version


def _not_ollama(base_url: str) -> ServerError:
    return ServerError(
        "not_an_llm_server",
        f"{base_url}/api/version tells no version: something listens there, but not Ollama; correct ollama.base_url "
        "(for example http://127.0.0.1:11434)",
    )


def _require_model(control: OllamaControl, request: StartRequest, name: str) -> list[str]:
    """Have the server own the model: it has it, or it imports our file, or it downloads it."""
    installed, file = control.installed(), request.model_path
    names = sorted(installed)
    known = next((other for other in names if same_name(name, other)), None)
    if file is not None and (known is None or is_newer(file, installed[known])):
        control.import_file(name, file, request.progress)
        return [f"{file.name} was imported as {name} and stays there; `ollama rm {name}` removes it"]
    if file is not None:
        # Ollama rewrites what it imports (0.33: with llama-quantize), so digests can not tell one model from another.
        return [f"{name} was there already; of {file.name}, only the header and the date were compared with it"]
    if known is not None:
        return []
    have = f"{nearest(canonical(name), names)}; it has: {', '.join(names) or 'none'}"
    if not request.may_download:
        raise ModelNotDownloaded(
            "model_missing",
            f"{control.base_url} has no {name!r}{have}; downloads are switched off; `ollama pull {name}` fetches it",
            {"model": name},
        )
    try:
        control.pull(name, request.progress)
    except ServerError as exc:
        if exc.code != "model_missing":
            raise
        raise ServerError(exc.code, f"{exc.message}{have}", {**exc.evidence, "model": name}) from exc
    return []


def _compare(request: StartRequest, facts: ModelFacts, where: str) -> None:
    """Refuse a model of the right name that is not what the record will say it is (P13).

    Raises:
        ServerError: ``wrong_quantization``, ``server_mismatch``.
        ModelError: the file is no GGUF.
    """
    served = known_quantization(facts.quantization or "")
    listed = known_quantization(request.quantization or "")
    if served is not None and listed is not None and served != listed:
        raise ServerError(
            "wrong_quantization",
            f"{where} is listed as {request.quantization}, but the server says {facts.quantization}; correct the name "
            "in `served` (tags such as :7b stand for one quantization), or list it as what it is",
            {"quantization": request.quantization, "served": facts.quantization},
        )
    path = request.model_path
    if path is None:
        return
    header = read_header(path)
    pairs = {
        "architecture": (facts.architecture, header.architecture),
        "layers": (facts.layers, header.block_count),
        "quantization": (served, header.file_type),
    }
    for what, (theirs, ours) in pairs.items():
        if theirs is not None and ours is not None and theirs != ours:
            raise ServerError(
                "server_mismatch",
                f"{where} is another model than {path.name}: its {what} is {theirs}, the file's {ours}; rename one, or "
                "remove it there (`ollama rm`) to have the file imported",
                {"what": what, "served": theirs, "file": ours},
            )


def _extra(spec: ServerSpec, facts: ModelFacts, name: str) -> tuple[dict[str, Any], list[str]]:
    """What every request carries, the same each time (P12), and remarks on it."""
    options = {"num_ctx": spec.context_size, "num_thread": spec.threads, "num_gpu": spec.gpu_layers}
    extra: dict[str, Any] = {
        "options": {key: value for key, value in options.items() if value is not None},
        "keep_alive": _KEEP_ALIVE,
        "truncate": False,  # an overlong prompt is then refused instead of cut without a word (P09)
    }
    if not facts.thinks:  # would refuse to be told
        return extra, []
    if _is_gpt_oss(facts, name):
        extra["think"] = "low"
        return extra, ["this model always reasons first; it is asked for the least (think: low)"]
    extra["think"] = False  # the server's default is true
    return extra, ["this model can reason first; it is asked not to (think: false), so that all tokens are the answer"]


def _is_gpt_oss(facts: ModelFacts, name: str) -> bool:
    return canonical(name).rpartition("/")[2].casefold().startswith("gpt-oss") or facts.family in {"gptoss", "gpt-oss"}


def _protocol(spec: ServerSpec, facts: ModelFacts, name: str) -> ProtocolName:
    """gpt-oss speaks only through the chat route; anything else is measured without one unless that is forced."""
    chats = spec.chat_mode == "force" or (spec.chat_mode != "off" and _is_gpt_oss(facts, name))
    return "ollama_chat" if chats else "ollama_generate"


def _make_room(control: OllamaControl, name: str, *, ours: bool) -> list[str]:
    """Have our model leave memory, so that its load is one, and on a server of ours every other one, too."""
    notes = []
    for entry in control.loaded():
        is_it = same_name(entry.name, name)
        if not is_it and not ours:
            continue
        if not control.unload(entry.name, _UNLOAD_SECONDS):
            notes.append(f"{entry.name} did not leave memory when asked; load_seconds may not be those of a load")
        elif is_it:
            notes.append("this model was in memory already; it was loaded anew, with this run's options")
    return notes


def _offload(spec: ServerSpec, facts: ModelFacts, model: LoadedModel) -> tuple[tuple[str, ...], list[str]]:
    """Whether a model that belongs on a GPU is partly on the CPU instead (P25)."""
    on_gpu, size, asked = model.size_vram_bytes, model.size_bytes, spec.gpu_layers
    if on_gpu >= size or asked == 0 or (asked is None and not on_gpu):
        return (), []
    if on_gpu and asked is not None and facts.layers is not None and 0 < asked <= facts.layers:
        return (), [f"{asked} of {facts.layers + 1} layers were asked onto the GPU; {_percent(on_gpu, size)} are there"]
    note = (
        f"only {_percent(on_gpu, size)} of this model are on the GPU, the rest runs on the CPU: it needs "
        f"{size / 1e9:.1f} GB; free GPU memory or lower ctx_size"
    )
    return ("partial_gpu_offload",), [note]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"


def _shown(models: list[LoadedModel]) -> str:
    return ", ".join(f"{model.name} ({model.size_bytes / 1e9:.1f} GB)" for model in models)


def _api_key(variable: str | None) -> str | None:
    """For a server behind something that asks for a key; Ollama itself has none."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ServerError("wrong_key", f"api_key_env names {variable}, but that variable is not set; export it")
    return key
