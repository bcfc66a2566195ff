"""What is found out about a server before anything is measured on it, and in which words."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from pytest_llmbench.backends import checks
from pytest_llmbench.backends.checks import first_look, knows, prove, same_model
from pytest_llmbench.client.endpoint import Capabilities, Endpoint
from pytest_llmbench.errors import ServerError
from tests.servers.scripted import ScriptedServer
from tests.unit.backends.routes import Routes, chat, completion

MODELS = (200, {"data": [{"id": "m"}, {"id": "other", "aliases": ["o"]}]})
CHAT = "POST /v1/chat/completions"


def endpoint(url: str, model: str | None = "m", **options: Any) -> Endpoint:
    return Endpoint(url, "openai_chat", model, **options)


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"


# ---------------------------------------------------------------- the glance


@pytest.mark.parametrize("model", ["m", "o", "other", None])
def test_a_server_that_seems_right(model: str | None) -> None:
    with Routes({"GET /v1/models": MODELS}) as server:
        assert first_look(endpoint(server.url), model) is None
        assert [request[:2] for request in server.requests] == [("GET", "/v1/models")]


@pytest.mark.parametrize(("name", "known"), [("m", True), ("m:latest", True), ("m:8b", False), ("n", False)])
def test_an_ollama_server_is_asked_in_its_own_way(name: str, known: bool) -> None:
    with Routes({"GET /api/tags": (200, {"models": [{"name": "m:latest", "model": "m:latest"}]})}) as server:
        problem = first_look(Endpoint(server.url, "ollama_generate"), name)
    assert (problem is None) is known


def test_an_ollama_server_without_models_has_none() -> None:
    with Routes({"GET /api/tags": (200, {})}) as server:
        problem = first_look(Endpoint(server.url, "ollama_generate"), "m")
    assert problem is not None
    assert (problem.code, "it serves: none" in problem.message) == ("wrong_model_name", True)


def test_a_model_that_is_not_there_is_told_with_the_nearest() -> None:
    with Routes({"GET /v1/models": MODELS}) as server:
        problem = first_look(endpoint(server.url), "othr")
        assert problem is not None
        assert problem.code == "wrong_model_name"
        assert problem.message == (
            f"{server.url} does not serve 'othr' (did you mean 'other'?); it serves: m, o, other; "
            "write one of the server's names into `served` in the models file"
        )


def test_a_hundred_models_do_not_fill_the_screen() -> None:
    with Routes({"GET /v1/models": (200, {"data": [{"id": f"m{i:03}"} for i in range(100)]})}) as server:
        problem = first_look(endpoint(server.url), "x")
    assert problem is not None
    assert "m019 and 80 more" in problem.message


@pytest.mark.parametrize(
    ("routes", "code", "words"),
    [
        ({}, "not_an_llm_server", "HTTP 404: no such route; base_url must be the root of a model server"),
        ({"GET /v1/models": (200, "<html>")}, "not_an_llm_server", "the answer is not JSON; base_url must"),
        ({"GET /v1/models": (200, [1])}, "not_an_llm_server", "lists no models under /v1/models; base_url must"),
        ({"GET /v1/models": (200, {"data": None})}, "not_an_llm_server", "lists no models under /v1/models"),
        ({"GET /v1/models": (500, {})}, "generation_failed", "HTTP 500"),
    ],
)
def test_what_is_no_model_server(routes: dict[str, Any], code: str, words: str) -> None:
    with Routes(routes) as server:
        problem = first_look(endpoint(server.url), "m")
    assert problem is not None
    assert problem.code == code
    assert words in problem.message


def test_a_server_that_wants_a_key() -> None:
    with Routes({"GET /v1/models": MODELS}, key="right") as server:
        assert first_look(endpoint(server.url, api_key="right"), "m") is None
        problem = first_look(endpoint(server.url, api_key="wrong"), "m")
    assert problem is not None
    assert problem.code == "wrong_key"
    assert "set openai.api_key_env to the variable that holds the server's key" in problem.message
    assert "'wrong'" not in problem.message


def test_nobody_there() -> None:
    problem = first_look(endpoint(nobody()), "m")
    assert problem is not None
    assert problem.code == "connection_refused"
    assert problem.message.endswith("nothing listens there; start the server, or correct base_url (host and port)")


def test_a_host_that_does_not_exist() -> None:
    problem = first_look(endpoint("http://no-such-host.invalid:1"), "m")
    assert problem is not None
    assert problem.code == "unreachable"
    assert "check the host name in base_url" in problem.message


def test_silence_ends_the_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_GLANCE_SECONDS", 0.2)
    with ScriptedServer(then="hang") as server:
        problem = first_look(endpoint(server.url), "m")
    assert problem is not None
    assert (problem.code, "no answer within 0.2 s" in problem.message) == ("timeout", True)


def test_tls_where_none_is_spoken() -> None:
    with Routes({}) as server:
        problem = first_look(endpoint(server.url.replace("http:", "https:")), "m")
    assert problem is not None
    assert (problem.code, "check http:// against https://" in problem.message) == ("tls_failed", True)


# ---------------------------------------------------------------- the proof


def refused(routes: dict[str, Any], expected: str | None = "m", key: str | None = None, **options: Any) -> ServerError:
    with Routes(routes, key=key) as server, pytest.raises(ServerError) as caught:
        prove(endpoint(server.url, **options), expected)
    return caught.value


def test_a_server_that_answers() -> None:
    with Routes({CHAT: (200, chat())}) as server:
        record = prove(endpoint(server.url, capabilities=Capabilities(ignores_end_of_sequence=True)), "m")
        ((_, _, body),) = server.requests
    assert (record.ok, record.output, record.phase) == (True, "four", "warmup")
    assert (body["max_tokens"], body["ignore_eos"]) == (8, True)


def test_reasoning_is_an_answer() -> None:
    with Routes({CHAT: (200, chat("hm", field="reasoning_content"))}) as server:
        assert prove(endpoint(server.url), "m").reasoning == "hm"


def test_more_tokens_are_asked_for_where_the_first_went_somewhere_else() -> None:
    with Routes({CHAT: lambda body: (200, chat("four" if body["max_tokens"] > 8 else ""))}) as server:
        assert prove(endpoint(server.url), "m").output == "four"
        assert [body["max_tokens"] for _, _, body in server.requests] == [8, 64]


@pytest.mark.parametrize(("finish", "times"), [("length", 2), ("stop", 1)])
def test_an_answer_without_text_is_none(finish: str, times: int) -> None:
    with Routes({CHAT: (200, chat("", finish=finish))}) as server:
        with pytest.raises(ServerError, match="check the model's chat template") as caught:
            prove(endpoint(server.url), "m")
        assert len(server.requests) == times
    assert caught.value.code == "empty_answer"


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((500, {"error": {"message": "out of luck"}}), "generation_failed", "out of luck; look into the server's log"),
        ((404, {"detail": "Not Found"}), "not_an_llm_server", "base_url must be the root of a model server"),
        ((200, "<html>hello"), "not_an_llm_server", "base_url must be the root of a model server"),
        ((503, {"error": "busy"}), "server_busy", "let no other client use the server"),
        ((200, b"data: {}\n\n"), "generation_failed", "look into the server's log"),
        ((200, b'data: {"error": {"message": "boom"}}\n\n'), "generation_failed", "boom"),
    ],
)
def test_an_answer_that_is_none(answer: tuple[int, Any], code: str, words: str) -> None:
    error = refused({CHAT: answer})
    assert error.code == code
    assert words in error.message


def test_a_wrong_key() -> None:
    error = refused({CHAT: (200, chat())}, key="right", api_key="wrong-one")
    assert error.code == "wrong_key"
    assert "wrong-one" not in error.message


def test_nobody_answers() -> None:
    with pytest.raises(ServerError) as caught:
        prove(endpoint(nobody()), "m")
    assert caught.value.code == "connection_refused"


NOT_FOUND = (404, {"error": {"message": "The model `m` does not exist."}})


def test_a_model_that_the_server_has_not() -> None:
    error = refused({CHAT: NOT_FOUND, "GET /v1/models": (200, {"data": [{"id": "mm"}]})})
    assert (error.code, "did you mean 'mm'?" in error.message) == ("wrong_model_name", True)


@pytest.mark.parametrize("routes", [{}, {"GET /v1/models": MODELS}], ids=["no list", "listed"])
def test_a_model_that_the_server_does_not_find(routes: dict[str, Any]) -> None:
    error = refused({CHAT: NOT_FOUND, **routes})
    assert (error.code, "load or pull the model" in error.message) == ("model_missing", True)


def test_another_model_answers() -> None:
    error = refused({CHAT: (200, chat(model="qwen"))})
    assert error.code == "another_model_answered"
    assert error.evidence == {"asked": "m", "answered": "qwen"}
    assert "was asked for 'm', and 'qwen' answered" in error.message


@pytest.mark.parametrize(("expected", "aliases"), [(None, ()), ("m", ("qwen",))], ids=["not compared", "alias"])
def test_another_name_may_be_right(expected: str | None, aliases: tuple[str, ...]) -> None:
    with Routes({CHAT: (200, chat(model="qwen"))}) as server:
        assert prove(endpoint(server.url), expected, aliases=aliases).ok


def test_a_server_that_does_not_say_who_answered() -> None:
    with Routes({CHAT: (200, chat(model=None))}) as server:
        assert prove(endpoint(server.url), "m").response_model is None


def test_llama_cpps_own_route_says_who_answered() -> None:
    with Routes({"POST /completion": (200, completion(model="qwen"))}) as server, pytest.raises(ServerError) as caught:
        prove(Endpoint(server.url, "llama_cpp", "m"), "m")
    assert caught.value.code == "another_model_answered"


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [
        ("m", "M", True),
        ("m", "m:latest", True),
        ("m:latest", "m", True),
        ("org/m", "m", True),
        ("m", "/models/m.gguf", True),
        ("m", "C:\\models\\m.gguf", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o-0806", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("qwen2.5:7b", "qwen2.5:14b", False),
        ("m", "m2", False),
        ("m", "", False),
    ],
)
def test_names_of_one_model(asked: str, answered: str, same: bool) -> None:
    assert same_model(asked, answered) is same


def test_a_name_is_known_exactly() -> None:
    assert knows("m", ["a", "M"])
    assert not knows("org/m", ["m"])  # the server would not find it
