"""Control requests: one JSON document, or one clear reason why not."""

from __future__ import annotations

import socket

import pytest

from pytest_llmbench.client.control import get_json
from pytest_llmbench.client.request import Endpoint
from pytest_llmbench.errors import RequestError
from tests.servers.scripted import ScriptedServer, http_response


def test_a_document() -> None:
    with ScriptedServer((0, http_response("200 OK", "application/json", b'{"a": 1}'))) as server:
        assert get_json(Endpoint(server.url, "llama_cpp", api_key="secret"), "/props") == {"a": 1}
    assert server.head.startswith("GET /props ")
    assert "Authorization: Bearer secret" in server.head


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (http_response("401 Unauthorized", "text/plain", b"secret"), "wrong_key"),
        (http_response("500 Oops", "text/plain", b""), "http_error"),
        (http_response("200 OK", "text/html", b"<html>"), "bad_response"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "unreachable"),
        (b"", "unreachable"),
    ],
    ids=["key", "status", "html", "ssh", "nothing"],
)
def test_what_is_no_document(answer: bytes, code: str) -> None:
    with (
        ScriptedServer((0, answer)) as server,
        pytest.raises(RequestError) as caught,
    ):
        get_json(Endpoint(server.url, "llama_cpp", api_key="secret"), "/props")
    assert caught.value.code == code
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("key", ["k€y", "key\n"], ids=ascii)
def test_a_key_that_no_header_can_carry(key: str) -> None:
    with ScriptedServer() as server, pytest.raises(RequestError) as caught:
        get_json(Endpoint(server.url, "llama_cpp", api_key=key), "/props")
    assert caught.value.code == "wrong_key"
    assert key not in caught.value.message


def test_no_answer_in_time() -> None:
    with ScriptedServer(then="hang") as server, pytest.raises(RequestError) as caught:
        get_json(Endpoint(server.url, "llama_cpp"), "/health", timeout_seconds=0.1)
    assert caught.value.code == "timeout"


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RequestError) as caught:
        get_json(Endpoint(f"http://127.0.0.1:{port}", "llama_cpp"), "/health")
    assert caught.value.code == "unreachable"
