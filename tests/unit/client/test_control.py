"""Control requests: one JSON document, or one clear reason why not."""

from __future__ import annotations

import json
import socket

import pytest

from pytest_llmbench.client.control import get_json, get_text, post_json
from pytest_llmbench.client.endpoint import Endpoint
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
    assert caught.value.code == "connection_refused"


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(RequestError) as caught:
        get_json(Endpoint("http://no-such-host.invalid:1", "llama_cpp"), "/health")
    assert caught.value.code == "unreachable"


def test_plain_http_where_tls_is_spoken() -> None:
    with (
        ScriptedServer((0, http_response("200 OK", "text/plain", b"x")), then="hang", reads=False) as server,
        pytest.raises(RequestError) as caught,
    ):
        get_json(Endpoint(server.url.replace("http:", "https:"), "llama_cpp"), "/health")
    assert caught.value.code == "tls_failed"


def test_what_the_server_says_to_an_error_is_told_but_never_the_key() -> None:
    body = b'{"error": {"message": "model \'x\' not found, says secret"}}'
    with (
        ScriptedServer((0, http_response("404 Not Found", "application/json", body))) as server,
        pytest.raises(RequestError, match=r"HTTP 404: model 'x' not found, says \[the key\]") as caught,
    ):
        get_json(Endpoint(server.url, "ollama_chat", api_key="secret"), "/api/show")
    assert (caught.value.code, caught.value.evidence) == ("http_error", {"http_status": 404})


def test_a_redirect_is_not_followed_with_the_key() -> None:
    with ScriptedServer((0, http_response("302 Found", "text/plain", b""))) as server, pytest.raises(RequestError):
        get_json(Endpoint(server.url, "llama_cpp", api_key="secret"), "/props")


@pytest.mark.parametrize(("body", "answer"), [(b'{"ok": true}', {"ok": True}), (b"", None)], ids=["json", "empty"])
def test_a_document_is_posted(body: bytes, answer: object) -> None:
    with ScriptedServer((0, http_response("200 OK", "application/json", body))) as server:
        assert post_json(Endpoint(server.url, "ollama_chat"), "/api/show", {"model": "m"}) == answer
    assert server.head.startswith("POST /api/show ")
    assert json.loads(server.body) == {"model": "m"}


def test_a_text() -> None:
    with ScriptedServer((0, http_response("200 OK", "text/plain", b"a 1\n"))) as server:
        assert get_text(Endpoint(server.url, "openai_chat"), "/metrics") == "a 1\n"
