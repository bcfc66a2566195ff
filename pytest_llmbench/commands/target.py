"""What server answers at an address: which protocol it speaks, which model it serves, what it can do."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from pytest_llmbench.backends.checks import knows, listed_models, names_of
from pytest_llmbench.client.control import get_json
from pytest_llmbench.client.endpoint import LLAMA_CPP, Capabilities, Endpoint, ProtocolName
from pytest_llmbench.client.prompts import count_tokens
from pytest_llmbench.core.config import check_base_url
from pytest_llmbench.core.yaml_source import nearest
from pytest_llmbench.errors import ConfigError, RequestError, ServerError

_SHOWN_NAMES = 20


@dataclass(frozen=True)
class Target:
    """A running server of somebody's, as a load needs to know it.

    Attributes:
        kind: llama.cpp, Ollama, or what only speaks OpenAI's API.
        version: as the server tells it.
    """

    endpoint: Endpoint
    kind: str
    version: str | None


def find_target(url: str, protocol: ProtocolName | None, model: str | None, api_key_env: str | None) -> Target:
    """Look at the server that runs at ``url``.

    Args:
        protocol: what to speak; None: found out.
        model: the name to ask for; None: the only one there is.
        api_key_env: the environment variable that holds the server's key.

    Raises:
        ConfigError: an address or a variable that can not be used.
        CellError: no server, no model server, or not that model.
    """
    try:
        base_url = check_base_url(url).removesuffix("/v1")
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    asked = Endpoint(base_url, protocol or "openai_chat", model, _api_key(api_key_env))
    try:
        kind, version = _kind(asked)
    except RequestError as exc:
        if exc.code == "wrong_key":
            hint = "check the key" if api_key_env else "name the variable that holds its key with --api-key-env"
            raise RequestError(exc.code, f"{exc.message}; {hint}") from exc
        raise
    spoken: ProtocolName = protocol or _PROTOCOLS[kind]
    endpoint = asked.replace(protocol=spoken)
    endpoint = endpoint.replace(model=_model(endpoint, model))
    return Target(endpoint.replace(capabilities=_capabilities(endpoint, kind)), kind, version)


_PROTOCOLS: dict[str, ProtocolName] = {"llama.cpp": "llama_cpp", "Ollama": "ollama_generate", "OpenAI": "openai_chat"}


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"--api-key-env names {variable}, but that variable is not set; export it")
    return key


def _kind(endpoint: Endpoint) -> tuple[str, str | None]:
    """The kind of server and its version, by the routes it has; most servers have one of OpenAI's."""
    props = _answer(endpoint, "/props")
    if isinstance(props, dict) and "default_generation_settings" in props:
        return "llama.cpp", _text(props.get("build_info"))
    version = _answer(endpoint, "/api/version")
    if isinstance(version, dict) and isinstance(version.get("version"), str):
        return "Ollama", version["version"]
    return "OpenAI", None


def _answer(endpoint: Endpoint, path: str) -> Any:
    """What a route says, None where the server has no such route."""
    try:
        return get_json(endpoint, path)
    except RequestError as exc:
        status = exc.evidence.get("http_status")
        if exc.code == "bad_response" or (isinstance(status, int) and status < 500):
            return None
        raise


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _model(endpoint: Endpoint, wanted: str | None) -> str:
    """The name to ask for: the one given, which the server has to know, or the only one there is."""
    try:
        entries = [names_of(entry) for entry in listed_models(endpoint)]
    except ServerError as exc:
        if wanted is not None and exc.code == "not_an_llm_server":
            return wanted  # not every server has a list; the first request will tell
        raise exc.__cause__ if isinstance(exc.__cause__, RequestError) else exc from None
    names = [name for entry in entries for name in entry]
    if wanted is not None:
        if knows(wanted, names):
            return wanted
        message = f"{endpoint.base_url} does not serve {wanted!r}{nearest(wanted, names)}; it serves: {_shown(names)}"
        raise ServerError("wrong_model_name", message)
    mains = [entry[0] for entry in entries if entry]
    if len(mains) != 1:
        what = "serves several models" if mains else "lists no model"
        raise ServerError("wrong_model_name", f"{endpoint.base_url} {what}; choose with --model: {_shown(mains)}")
    return mains[0]


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return (", ".join(sorted(names)[:_SHOWN_NAMES]) or "none") + more


def _capabilities(endpoint: Endpoint, kind: str) -> Capabilities:
    takes_ids = endpoint.protocol in {"llama_cpp", "openai_completions"}
    if kind == "llama.cpp" and not endpoint.protocol.startswith("ollama"):
        return dataclasses.replace(LLAMA_CPP, exact_prompts=takes_ids)
    if endpoint.protocol.startswith("ollama"):
        return Capabilities(server_timings=True)
    if count_tokens(endpoint, "one two") is None:
        return Capabilities()
    # vLLM and SGLang: who has their /tokenize also has their ignore_eos.
    return Capabilities(exact_prompts=takes_ids, ignores_end_of_sequence=True, tokenizer=True)
