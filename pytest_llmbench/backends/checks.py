"""Whether a server is what it should be: one glance before the run, one real answer before the first measurement.

Every way to be wrong has a code of its own and a remedy in its message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from pytest_llmbench.client.control import get_json
from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.exchange import Deadlines
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import send
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.yaml_source import nearest
from pytest_llmbench.errors import Primitive, RequestError, ServerError

_GLANCE_SECONDS = 2.0
_NOT_READY = {"connection_refused", "unreachable", "timeout", "http_error"}
_PROOF_TOKENS = (8, 64)  # the second where the first were used up before any text came
_SHOWN_NAMES = 20
_SNAPSHOT = re.compile(r"-\d{4}(-?\d{2}){0,2}")  # a dated snapshot of a model that was asked for by its short name

# Codes of failed requests that mean the same thing to somebody who wants a server to work.
_CODES = {
    "connect_timeout": "timeout",
    "first_token_timeout": "timeout",
    "request_timeout": "timeout",
    "stream_stalled": "timeout",
    "bad_response": "not_an_llm_server",
    "not_found": "not_an_llm_server",
    "http_error": "generation_failed",
    "server_error_event": "generation_failed",
    "stream_truncated": "generation_failed",
    "connection_lost": "generation_failed",
}

_REMEDIES = {
    "connection_refused": "start the server, or correct base_url (host and port)",
    "unreachable": "check the host name in base_url and the network",
    "timeout": "is the server overloaded or still loading? wait, or correct base_url",
    "tls_failed": "check http:// against https:// in base_url, and the server's certificate",
    "wrong_key": "set openai.api_key_env to the variable that holds the server's key, and check its value",
    "not_an_llm_server": "base_url must be the root of a model server (without /v1), for example http://127.0.0.1:8080",
    "model_missing": "load or pull the model on the server, or correct `served` in the models file",
    "wrong_model_name": "write one of the server's names into `served` in the models file",
    "empty_answer": "check the model's chat template and stop words on the server",
    "another_model_answered": "write the name of the model that is loaded into `served`, or load the one asked for",
    "server_busy": "let no other client use the server while it is measured",
    "generation_failed": "look into the server's log",
}
_REMEDIES_FOR_OLLAMA = {
    "connection_refused": "start Ollama, correct ollama.base_url (host and port), or set ollama.start: true",
    "wrong_key": "Ollama itself asks for no key: what stands before it at base_url?",
    "not_an_llm_server": "ollama.base_url must be the root of an Ollama server, for example http://127.0.0.1:11434",
    "model_missing": "`ollama pull` the model, or correct `served` in the models file",
}


def first_look(endpoint: Endpoint, model: str | None) -> ServerError | None:
    """Whether a running server can be reached and knows a model, without a generation; None: nothing speaks against it.

    Args:
        model: the name it should know; None: any.
    """
    try:
        names = served_names(endpoint, _GLANCE_SECONDS)
    except ServerError as exc:
        return exc
    return None if model is None or knows(model, names) else wrong_name(endpoint, model, names)


def answers(endpoint: Endpoint, path: str) -> Callable[[], bool]:
    """A check for ``ServerProcess.wait_until``: whether a route answers with a document yet."""

    def check() -> bool:
        try:
            get_json(endpoint, path, _GLANCE_SECONDS)
        except RequestError as exc:
            if exc.code in _NOT_READY:
                return False
            raise ServerError(exc.code, f"the server started, but answers wrongly: {exc.message}") from exc
        return True

    return check


def prove(endpoint: Endpoint, expected_model: str | None, *, aliases: Collection[str] = ()) -> RequestRecord:
    """Ask for a few tokens, as a measurement would; returns the record of the answer.

    Args:
        expected_model: who should answer, where the server says who did; None: not compared.
        aliases: other names of that model on this server.

    Raises:
        ServerError: with a code of its own for each cause.
    """
    for tokens in _PROOF_TOKENS:
        generation = Generation(max_tokens=tokens, prompt="Count: one, two, three,", demand_length=True)
        record = send(endpoint, generation, phase="warmup", deadlines=Deadlines(gap=60.0, whole=600.0))
        answers = record.ok or (record.error == "empty_answer" and bool(record.reasoning.strip()))
        if answers or record.error != "empty_answer" or record.finish_reason != "length":
            break
    if not answers:
        raise _failed(endpoint, record)
    answered = record.response_model
    if expected_model is not None and answered is not None:
        known = [expected_model, *aliases]
        if not any(same_model(name, answered) for name in known):
            raise _server_error(
                "another_model_answered",
                endpoint,
                f"was asked for {expected_model!r}, and {answered!r} answered",
                {"asked": expected_model, "answered": answered},
            )
    return record


def served_names(endpoint: Endpoint, timeout_seconds: float = 10.0) -> list[str]:
    """The names of the models a server lists.

    Raises:
        ServerError: it can not be reached, or is no model server.
    """
    return sorted(name for entry in listed_models(endpoint, timeout_seconds) for name in names_of(entry))


def listed_models(endpoint: Endpoint, timeout_seconds: float = 10.0) -> list[dict[str, Any]]:
    """What a server says of the models it serves, as it says it. Raises ServerError; see :func:`served_names`."""
    ollama = endpoint.protocol.startswith("ollama")
    path, part = ("/api/tags", "models") if ollama else ("/v1/models", "data")
    try:
        listing = get_json(endpoint, path, timeout_seconds)
    except RequestError as exc:
        raise explained(endpoint, exc) from exc
    entries = listing.get(part) if isinstance(listing, dict) else None
    if ollama and isinstance(listing, dict) and entries is None:
        entries = []  # a server without models leaves the field out
    if not isinstance(entries, list):
        raise _server_error("not_an_llm_server", endpoint, f"lists no models under {path}")
    return [entry for entry in entries if isinstance(entry, dict)]


def names_of(entry: dict[str, Any]) -> list[str]:
    """The names by which a listed model can be asked for."""
    aliases = entry.get("aliases")
    names = [entry.get("id"), entry.get("name"), entry.get("model")]
    names += aliases if isinstance(aliases, list) else []
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def knows(model: str, names: Collection[str]) -> bool:
    """Whether a server that lists these names can be asked for a model: exactly, but for Ollama's ``:latest``."""
    return any(name.removesuffix(":latest").lower() == model.removesuffix(":latest").lower() for name in names)


def wrong_name(endpoint: Endpoint, model: str, names: Collection[str]) -> ServerError:
    """A server does not list a model."""
    shown = ", ".join(sorted(set(names))[:_SHOWN_NAMES]) or "none"
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return _server_error(
        "wrong_model_name", endpoint, f"does not serve {model!r}{nearest(model, names)}; it serves: {shown}{more}"
    )


def same_model(asked: str, answered: str) -> bool:
    """Whether two names may mean one model: case, path, ``:latest``, ``.gguf`` and a snapshot's date do not count."""
    one, other = _plain(asked), _plain(answered)
    return one == other or bool(other.startswith(one) and _SNAPSHOT.fullmatch(other[len(one) :]))


def explained(endpoint: Endpoint, error: RequestError) -> ServerError:
    """What a failed control request means for somebody who wants a server to work."""
    code = _CODES.get(error.code, error.code)
    if error.code == "http_error" and error.evidence.get("http_status") in {404, 405}:
        code = "not_an_llm_server"
    fact = error.message.partition("; ")[0]  # what to do is said here, knowing who is asked
    return ServerError(code, f"{fact}{_remedy(code, endpoint)}", error.evidence)


def _failed(endpoint: Endpoint, record: RequestRecord) -> ServerError:
    code = str(record.error)
    said = f"did not answer a first, small request: {record.error_message}"
    if code == "model_missing" and endpoint.model is not None:
        try:
            names = served_names(endpoint, _GLANCE_SECONDS)
        except ServerError:
            names = []
        if names and not knows(endpoint.model, names):
            return wrong_name(endpoint, endpoint.model, names)
    return _server_error(_CODES.get(code, code), endpoint, said, {"request_error": code})


def _server_error(
    code: str, endpoint: Endpoint, what: str, evidence: dict[str, Primitive] | None = None
) -> ServerError:
    return ServerError(code, f"{endpoint.base_url} {what}{_remedy(code, endpoint)}", evidence)


def _remedy(code: str, endpoint: Endpoint) -> str:
    remedies = {**_REMEDIES, **(_REMEDIES_FOR_OLLAMA if endpoint.protocol.startswith("ollama") else {})}
    return f"; {remedies[code]}" if code in remedies else ""


def _plain(name: str) -> str:
    return name.lower().replace("\\", "/").rstrip("/").rpartition("/")[2].removesuffix(":latest").removesuffix(".gguf")
