"""Any server with an OpenAI-compatible API that runs already. We neither start nor stop it."""

from __future__ import annotations

import os
from typing import Any

from pytest_llmbench.backends.base import RunningServer, StartRequest, check_context
from pytest_llmbench.client.control import get_json
from pytest_llmbench.client.request import Endpoint
from pytest_llmbench.core.records import ServerInfo
from pytest_llmbench.core.yaml_source import nearest
from pytest_llmbench.errors import RequestError, ServerError


class OpenAIServer:
    """A server of somebody else's: always taken for alive, never stopped."""

    alive = True

    def __init__(self, endpoint: Endpoint, info: ServerInfo, notes: tuple[str, ...]) -> None:
        self.endpoint = endpoint
        self.info = info
        self.notes = notes

    def death(self) -> ServerError:
        """Never asked for, because the server is never known to be dead: its requests fail and say why."""
        return ServerError("server_died", f"{self.endpoint.base_url} is gone")

    def stop(self) -> None:
        """Let go of it."""


class OpenAIBackend:
    """Connects to a running server and finds out what it can do."""

    brings_model = True

    def start(self, request: StartRequest) -> RunningServer:
        """See :class:`~pytest_llmbench.backends.base.Backend`."""
        spec = request.spec
        assert spec.base_url is not None and spec.model_name is not None  # noqa: S101, PT018 -- checked at start
        base_url = spec.base_url.removesuffix("/v1")
        plain = Endpoint(base_url, "openai_chat", spec.model_name, _api_key(spec.api_key_env))
        try:
            listing = get_json(plain, "/v1/models")
        except RequestError as exc:
            hint = "; is it OpenAI-compatible, and base_url without a path?" if exc.code == "http_error" else ""
            raise ServerError(exc.code, exc.message + hint) from exc
        entry = _entry_of(spec.model_name, base_url, listing)
        props = _llama_cpp_props(plain)
        context_size, notes = _context_size(entry, props), []
        if context_size is None and spec.context_size is not None:
            notes.append("this server does not tell its context size; what was asked for could not be checked")
        check_context(spec.context_size, context_size, base_url, may_be_larger=True)
        if props is None:
            notes.append("this server may have no ignore_eos; the length of each answer is checked instead")
            notes.append("this server may cache prompts; a fresh nonce at the start of each prevents a hit")
        endpoint = Endpoint(
            base_url,
            "openai_chat",
            spec.model_name,
            plain.api_key,
            ignores_end_of_sequence=props is not None,
            controls_cache=props is not None,
        )
        version = str(props.get("build_info")) if props else None
        info = ServerInfo(kind="openai", version=version, args=spec.as_args(), context_size=context_size)
        return OpenAIServer(endpoint, info, tuple(notes))


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ServerError("wrong_key", f"openai.api_key_env names {variable}, but that variable is not set; export it")
    return key


def _entry_of(wanted: str, base_url: str, listing: Any) -> dict[str, Any]:
    """What the server's list says of a model."""
    data = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(data, list):
        raise ServerError("not_an_llm_server", f"{base_url}/v1/models lists no models; is this a model server?")
    entries = {str(entry["id"]): entry for entry in data if isinstance(entry, dict) and "id" in entry}
    names = ", ".join(sorted(entries)) or "none"
    if wanted not in entries:
        raise ServerError(
            "wrong_model_name", f"{base_url} does not serve {wanted!r}{nearest(wanted, entries)}; it serves: {names}"
        )
    return entries[wanted]


def _llama_cpp_props(endpoint: Endpoint) -> dict[str, Any] | None:
    """``/props`` where the server is llama.cpp's, which then also understands its extra parameters."""
    try:
        props = get_json(endpoint, "/props")
    except RequestError:
        return None
    return props if isinstance(props, dict) and "default_generation_settings" in props else None


def _context_size(entry: dict[str, Any], props: dict[str, Any] | None) -> int | None:
    settings = (props or {}).get("default_generation_settings")
    for value in (settings.get("n_ctx") if isinstance(settings, dict) else None, entry.get("max_model_len")):
        if isinstance(value, int):
            return value
    return None
