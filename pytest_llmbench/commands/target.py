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
_LLAMA_CPP = "llama.cpp"
_WITH_IGNORE_EOS = {"vllm", "sglang"}  # as they name themselves in /v1/models


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
        kind, version, best_protocol = _kind(asked)
    except RequestError as exc:
        if exc.code == "wrong_key":
            hint = "check the key" if api_key_env else "name the variable that holds its key with --api-key-env"
            raise RequestError(exc.code, f"{exc.message}; {hint}") from exc
        raise
    endpoint = asked.replace(protocol=protocol or best_protocol)
    name, owner = _model(endpoint, model)
    endpoint = endpoint.replace(model=name)
    is_router = kind == _LLAMA_CPP and best_protocol != "llama_cpp"
    capabilities = _capabilities(endpoint, kind, owner, is_router=is_router)
    return Target(endpoint.replace(capabilities=capabilities), kind, version)


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"--api-key-env names {variable}, but that variable is not set; export it")
    return key


def _kind(endpoint: Endpoint) -> tuple[str, str | None, ProtocolName]:
    """The kind of server by the routes it has, its version, and the protocol that says most."""
    props = _answer(endpoint, "/props")
    if isinstance(props, dict) and "default_generation_settings" in props:
        # A router has several models behind one port; its own routes do not say for whom.
        spoken: ProtocolName = "openai_chat" if props.get("role") == "router" else "llama_cpp"
        return _LLAMA_CPP, _text(props.get("build_info")), spoken
    version = _answer(endpoint, "/api/version")
    if isinstance(version, dict) and isinstance(version.get("version"), str):
        return "Ollama", version["version"], "ollama_generate"
    return "OpenAI", None, "openai_chat"


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


def _model(endpoint: Endpoint, wanted: str | None) -> tuple[str, str | None]:
    """The name to ask for (the one given, which the server has to know, or the only one there is), and its owner."""
    try:
        entries = [(names_of(entry), _text(entry.get("owned_by"))) for entry in listed_models(endpoint)]
    except ServerError as exc:
        if wanted is not None and exc.code == "not_an_llm_server":
            return wanted, None  # not every server has a list; the first request will tell
        raise exc.__cause__ if isinstance(exc.__cause__, RequestError) else exc from None
    if wanted is not None:
        for names, owner in entries:
            if knows(wanted, names):
                return wanted, owner
        every = [name for names, _ in entries for name in names]
        message = f"{endpoint.base_url} does not serve {wanted!r}{nearest(wanted, every)}; it serves: {_shown(every)}"
        raise ServerError("wrong_model_name", message)
    mains = [(names[0], owner) for names, owner in entries if names]
    if len(mains) != 1:
        what = "serves several models" if mains else "lists no model"
        shown = _shown([name for name, _ in mains])
        raise ServerError("wrong_model_name", f"{endpoint.base_url} {what}; choose with --model: {shown}")
    return mains[0]


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return (", ".join(sorted(names)[:_SHOWN_NAMES]) or "none") + more


def _capabilities(endpoint: Endpoint, kind: str, owner: str | None, *, is_router: bool) -> Capabilities:
    takes_ids = endpoint.protocol in {"llama_cpp", "openai_completions"}
    if endpoint.protocol.startswith("ollama"):
        return Capabilities(server_timings=True)
    if kind == _LLAMA_CPP:
        return dataclasses.replace(LLAMA_CPP, exact_prompts=takes_ids and not is_router, tokenizer=not is_router)
    tokenizer = count_tokens(endpoint, "one two") is not None
    return Capabilities(
        exact_prompts=tokenizer and takes_ids,
        ignores_end_of_sequence=owner in _WITH_IGNORE_EOS,
        tokenizer=tokenizer,
    )
