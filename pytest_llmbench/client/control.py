"""Small JSON requests to a server's control routes, never while something is being timed."""

from __future__ import annotations

from typing import Any

from pytest_llmbench.client.http import bearer
from pytest_llmbench.client.request import Endpoint
from pytest_llmbench.errors import RequestError


def get_json(endpoint: Endpoint, path: str, timeout_seconds: float = 10.0) -> Any:
    """GET a JSON document.

    Raises:
        RequestError: unreachable, a status other than 200, or no JSON; ``code`` tells which.
    """
    import requests

    headers = {"Authorization": bearer(endpoint.api_key)} if endpoint.api_key else {}
    url = endpoint.base_url + path
    with requests.Session() as session:
        session.trust_env = False  # a proxy variable must not route loopback traffic, nor .netrc add a password
        try:
            response = session.get(url, headers=headers, timeout=timeout_seconds)
        except requests.Timeout as exc:
            raise RequestError("timeout", f"{url}: no answer within {timeout_seconds:g} s") from exc
        except requests.exceptions.SSLError as exc:
            raise RequestError("tls_failed", f"{url}: TLS failed; check the scheme and the certificate") from exc
        except requests.RequestException as exc:
            raise RequestError("unreachable", f"{url}: nothing answers; is the server running?") from exc
    if response.status_code in {401, 403}:
        raise RequestError("wrong_key", f"{url}: the server refuses the key (HTTP {response.status_code})")
    if response.status_code != 200:
        raise RequestError("http_error", f"{url}: HTTP {response.status_code}")
    try:
        return response.json()
    except ValueError as exc:
        raise RequestError("bad_response", f"{url}: the answer is not JSON; is this a model server?") from exc
