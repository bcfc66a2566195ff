"""Small requests to a server's control routes, never while something is being timed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.http import bearer
from pytest_llmbench.errors import RequestError

if TYPE_CHECKING:
    import requests

_MAX_MESSAGE_CHARACTERS = 500


def get_json(endpoint: Endpoint, path: str, timeout_seconds: float = 10.0) -> Any:
    """GET a JSON document.

    Raises:
        RequestError: ``connection_refused``, ``unreachable``, ``timeout``, ``tls_failed``, ``wrong_key``,
            ``http_error`` (with ``http_status`` in its evidence) or ``bad_response``.
    """
    return _json_of(_request("GET", endpoint, path, None, timeout_seconds))


def post_json(endpoint: Endpoint, path: str, body: Any, timeout_seconds: float = 10.0) -> Any:
    """POST a JSON document and read the one that answers it, None where the answer is empty; see :func:`get_json`."""
    response = _request("POST", endpoint, path, body, timeout_seconds)
    return _json_of(response) if response.content else None


def get_text(endpoint: Endpoint, path: str, timeout_seconds: float = 10.0) -> str:
    """GET a text; see :func:`get_json`."""
    return _request("GET", endpoint, path, None, timeout_seconds).content.decode("utf-8", "replace")


def _request(method: str, endpoint: Endpoint, path: str, body: Any, timeout_seconds: float) -> requests.Response:
    import requests

    headers = {"Authorization": bearer(endpoint.api_key)} if endpoint.api_key else {}
    url = endpoint.base_url + path
    with requests.Session() as session:
        session.trust_env = False  # a proxy variable must not route loopback traffic, nor .netrc add a password
        try:
            response = session.request(
                method, url, headers=headers, json=body, timeout=timeout_seconds, allow_redirects=False
            )
        except requests.Timeout as exc:
            raise RequestError("timeout", f"{url}: no answer within {timeout_seconds:g} s") from exc
        except requests.exceptions.SSLError as exc:
            raise RequestError("tls_failed", f"{url}: TLS failed; check the scheme and the certificate") from exc
        except requests.RequestException as exc:
            if _is_refused(exc):
                raise RequestError("connection_refused", f"{url}: nothing listens there; start the server") from exc
            raise RequestError("unreachable", f"{url}: nothing answers; is the server running?") from exc
    if response.status_code in {401, 403}:
        raise RequestError("wrong_key", f"{url}: the server refuses the key (HTTP {response.status_code})")
    if response.status_code not in {200, 201, 204}:
        raise _http_error(url, response, endpoint.api_key)
    return response


def _json_of(response: requests.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError) as exc:
        raise RequestError("bad_response", f"{response.url}: the answer is not JSON; is this a model server?") from exc


def _is_refused(error: BaseException) -> bool:
    """Whether somebody's machine said that nothing listens on the port, wherever the HTTP library hides that."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        if isinstance(one, ConnectionRefusedError):
            return True
        seen.add(id(one))
        pending += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return False


def _http_error(url: str, response: requests.Response, api_key: str | None) -> RequestError:
    """A status that is no success, with what the server said to it; never the key, which some servers repeat."""
    text = response.content[: 16 * _MAX_MESSAGE_CHARACTERS].decode("utf-8", "replace").strip()
    try:
        error = json.loads(text)
        error = error.get("error", error) if isinstance(error, dict) else error
        text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, RecursionError):
        text = "" if text.startswith("<") else text
    if api_key:
        text = text.replace(api_key, "[the key]")
    said = f": {text[:_MAX_MESSAGE_CHARACTERS]}" if text else ""
    return RequestError(
        "http_error", f"{url}: HTTP {response.status_code}{said}", {"http_status": response.status_code}
    )
