"""The ``openai`` kind: what it finds out about servers that run, and how it runs one that a command starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llmbench.backends.base import RunningServer, StartRequest
from pytest_llmbench.backends.openai import OpenAIBackend
from pytest_llmbench.client.endpoint import LLAMA_CPP, Capabilities
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.errors import CellError, ModelError, ServerError
from pytest_llmbench.runtime.process import free_port
from tests.unit.backends.routes import Routes, chat, completion

CHAT = "POST /v1/chat/completions"


def listed(**more: Any) -> dict[str, Any]:
    return {"GET /v1/models": (200, {"data": [{"id": "m", **more}]}), CHAT: (200, chat())}


def props(**more: Any) -> dict[str, Any]:
    answer = {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 1, "build_info": "b1", **more}
    return {"GET /props": (200, answer), "POST /completion": (200, completion())}


def start(tmp_path: Path, url: str | None = None, *, quantization: str | None = None, **fields: Any) -> RunningServer:
    spec = ServerSpec("openai", "x", **{"model_name": "m", "base_url": url, "max_load_seconds": 20.0, **fields})
    return OpenAIBackend().start(StartRequest(spec, None, tmp_path / "logs" / "x", quantization, tmp_path))


def refused(tmp_path: Path, routes: dict[str, Any], *, key: str | None = None, **fields: Any) -> CellError:
    with Routes(routes, key) as server, pytest.raises(CellError) as caught:
        start(tmp_path, server.url, **fields)
    return caught.value


# ---------------------------------------------------------------- servers that run


def test_a_server_of_which_nothing_is_known(tmp_path: Path) -> None:
    with Routes(listed()) as routes:
        server = start(tmp_path, routes.url + "/v1", context_size=100)
        assert server.endpoint.base_url == routes.url
        assert (server.endpoint.protocol, server.endpoint.capabilities) == ("openai_chat", Capabilities())
        assert (server.info.version, server.info.context_size, server.info.pid) == (None, None, None)
        *missing, unchecked = server.notes
        assert tuple(missing) == Capabilities().missing_notes()
        assert unchecked == "this server does not tell its context size; what was asked for could not be checked"
        assert server.identity() is None
        assert (server.alive, server.flags) == (True, ())
        server.stop()
        assert server.alive
        assert server.death().code == "server_died"


def test_llama_cpp_is_measured_with_its_own_protocol(tmp_path: Path) -> None:
    with Routes({**listed(), **props(media_marker="<__media_abc__>")}) as routes:
        server = start(tmp_path, routes.url, context_size=4000)
        assert (server.endpoint.protocol, server.endpoint.capabilities) == ("llama_cpp", LLAMA_CPP)
        assert (server.info.version, server.info.context_size) == ("llama.cpp b1", 4096)
        assert server.notes == ("this server is not ours to look into; its memory is not known",)
        before = server.identity()
        assert before == "<__media_abc__>"
        routes.routes |= props(media_marker="<__media_xyz__>")  # it was restarted
        assert server.identity() not in {before, None}


def test_a_marker_that_every_start_shares_tells_nothing(tmp_path: Path) -> None:
    with Routes({**listed(), **props(media_marker="<__media__>")}) as routes:
        assert start(tmp_path, routes.url).identity() is None


def test_a_router_of_llama_cpp_is_asked_for_its_model(tmp_path: Path) -> None:
    routes = {**listed(), **props(role="router", default_generation_settings={"n_ctx": 0})}
    with Routes(routes) as server:
        found = start(tmp_path, server.url)
        assert ("GET", "/props?model=m", {}) in server.requests
        assert found.endpoint.protocol == "openai_chat"
        assert found.endpoint.capabilities.ignores_end_of_sequence
        assert not found.endpoint.capabilities.exact_prompts
        assert found.info.context_size is None


def test_vllm_is_known_by_its_name(tmp_path: Path) -> None:
    routes = {**listed(owned_by="vllm", max_model_len=2048), "GET /version": (200, {"version": "0.9.1"})}
    routes["GET /metrics"] = (200, "# HELP x\nprocess_start_time_seconds 1.5e+09\n")
    with Routes(routes) as server:
        found = start(tmp_path, server.url)
        assert (found.info.version, found.info.context_size) == ("vllm 0.9.1", 2048)
        assert found.endpoint.capabilities == Capabilities(ignores_end_of_sequence=True, tokenizer=True)
        assert found.identity() == "started 1.5e+09"


def test_sglang_is_known_by_its_name(tmp_path: Path) -> None:
    with Routes(listed(owned_by="sglang")) as server:
        found = start(tmp_path, server.url)
    assert (found.info.version, found.endpoint.capabilities) == ("sglang", Capabilities(ignores_end_of_sequence=True))


@pytest.mark.parametrize(("said", "quantization"), [("Q4_K - Medium", "Q4_K_M"), ("all F32", "Q8_0"), ("Q8_0", None)])
def test_a_model_that_may_be_what_it_is_listed_as(tmp_path: Path, said: str, quantization: str | None) -> None:
    with Routes({**listed(), **props(model_ftype=said)}) as server:
        start(tmp_path, server.url, quantization=quantization)


def test_a_model_of_another_quantization_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, {**listed(), **props(model_ftype="Q4_K - Small")}, quantization="Q4_K_M")
    assert isinstance(error, ModelError)
    assert error.code == "wrong_quantization"
    assert "serves a model of Q4_K_S, it is listed as Q4_K_M" in error.message


def test_a_name_is_an_alias_of_what_answers(tmp_path: Path) -> None:
    """vLLM may serve one model under several names and sign with the first."""
    models = [{"id": "first", "root": "/models/x"}, {"id": "m", "root": "/models/x"}, {"id": "n", "root": "/models/y"}]
    routes: dict[str, Any] = {"GET /v1/models": (200, {"data": models}), CHAT: (200, chat(model="first"))}
    with Routes(routes) as server:
        start(tmp_path, server.url)
        with pytest.raises(ServerError) as caught:
            start(tmp_path, server.url, model_name="n")
    assert caught.value.code == "another_model_answered"


@pytest.mark.parametrize(
    ("routes", "fields", "code"),
    [
        ({}, {}, "not_an_llm_server"),
        (listed(), {"model_name": "x"}, "wrong_model_name"),
        ({**listed(), CHAT: (200, chat(model="other"))}, {}, "another_model_answered"),
        ({**listed(), CHAT: (200, chat("", finish="stop"))}, {}, "empty_answer"),
        (listed(max_model_len=99), {"context_size": 100}, "context_mismatch"),
    ],
)
def test_a_server_that_is_not_what_it_should_be(
    tmp_path: Path, routes: dict[str, Any], fields: dict[str, Any], code: str
) -> None:
    assert refused(tmp_path, routes, **fields).code == code


def test_the_key_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "right")
    with Routes(listed(), key="right") as server:
        found = start(tmp_path, server.url, api_key_env="A_KEY")
        assert "right" not in repr(found.endpoint)
        assert "right" not in str(found.info)
        monkeypatch.delenv("A_KEY")
        with pytest.raises(ServerError, match="A_KEY, but that variable is not set; export it") as caught:
            start(tmp_path, server.url, api_key_env="A_KEY")
    assert caught.value.code == "wrong_key"
    assert refused(tmp_path, listed(), key="right").code == "wrong_key"


def test_a_first_look() -> None:
    look = OpenAIBackend().first_look
    with Routes(listed()) as server:
        assert look(ServerSpec("openai", "x", model_name="m", base_url=server.url)) is None
        problem = look(ServerSpec("openai", "x", model_name="mm", base_url=server.url))
        assert problem is not None
        assert problem.code == "wrong_model_name"
        key_missing = look(ServerSpec("openai", "x", model_name="m", base_url=server.url, api_key_env="NOT_SET_AT_ALL"))
        assert key_missing is not None
        assert key_missing.code == "wrong_key"
    gone = ServerSpec("openai", "x", model_name="m", base_url=server.url)
    problem = look(gone)
    assert problem is not None
    assert problem.code == "connection_refused"
    assert look(ServerSpec("openai", "x", model_name="m", base_url=server.url, command=("a",))) is None
    assert look(ServerSpec("openai", "x", model_name="m")) is None


# ---------------------------------------------------------------- servers that a command starts

PROGRAM = """
import sys, os, time
sys.path.insert(0, {root!r})
from tests.unit.backends.routes import Routes, chat
host, port, model = sys.argv[1:4]
print("key", os.environ.get("A_KEY"), file=sys.stderr)
if model == "dies":
    sys.exit("error: no such model")
if model == "sleeps":
    time.sleep(60)
routes = {{"GET /v1/models": (200, {{"data": [{{"id": model}}]}})}}
routes["POST /v1/chat/completions"] = (200, chat(model=model))
server = Routes(routes, key=os.environ.get("A_KEY"))
if model == "dies-when-asked":
    routes["POST /v1/chat/completions"] = lambda body: os._exit(3)
from tests.unit.backends import routes as module
class Fixed(module.ThreadingHTTPServer):
    def __init__(self, address, handler):
        super().__init__((host, int(port)), handler)
module.ThreadingHTTPServer = Fixed
with server:
    time.sleep(60)
"""


@pytest.fixture
def command(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "serve.py").write_text(PROGRAM.format(root=str(Path(__file__).parents[3])))
    return (sys.executable, "serve.py", "{host}", "{port}", "{model}", '{"json": "stays"}')


def test_a_command_is_run_and_its_server_stopped(
    tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    server = start(tmp_path, command=command, api_key_env="A_KEY")
    try:
        pid = server.info.pid
        assert pid is not None
        *_, host, port, model, json = psutil.Process(pid).cmdline()
        assert (host, model, json) == ("127.0.0.1", "m", '{"json": "stays"}')
        assert server.endpoint.base_url == f"http://127.0.0.1:{port}"
        assert server.endpoint.capabilities.memory
        assert not any("memory" in note for note in server.notes)
        assert server.info.load_seconds is not None
        assert server.endpoint.api_key is not None
        assert len(server.endpoint.api_key) > 20
        assert server.endpoint.api_key in (tmp_path / "logs" / "x_stderr.log").read_text()  # it got the random key
        assert server.endpoint.api_key not in str(server.info)
        assert server.identity() == f"{pid}@{psutil.Process(pid).create_time():.2f}"
        assert server.alive
    finally:
        server.stop()
    assert not psutil.pid_exists(pid)
    assert server.identity() is None
    assert server.death().code == "server_died"


def test_a_key_that_is_set_is_given_to_the_command(
    tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "mine")
    server = start(tmp_path, command=command, api_key_env="A_KEY")
    server.stop()
    assert server.endpoint.api_key == "mine"


def test_a_command_may_listen_where_it_was_told(tmp_path: Path, command: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    server = start(tmp_path, url, command=command)
    server.stop()
    assert server.endpoint.base_url == url


def test_a_server_of_somebody_else_is_not_taken_for_ours(tmp_path: Path, command: tuple[str, ...]) -> None:
    error = refused(tmp_path, listed(), command=command)
    assert error.code == "port_taken"
    assert "stop that server, or leave out openai.command to measure it" in error.message


@pytest.mark.parametrize(
    ("model", "fields", "code", "words"),
    [
        ("dies", {}, "server_start_failed", "exit status 1): error: no such model"),
        ("dies-when-asked", {}, "server_died", "ended while it was being checked (exit status 3)"),
        ("sleeps", {"max_load_seconds": 1.0}, "server_start_timeout", "not ready in 1 s (limits.max_load_time)"),
    ],
)
def test_a_command_whose_server_does_not_live(
    tmp_path: Path, command: tuple[str, ...], model: str, fields: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(ServerError) as caught:
        start(tmp_path, command=command, model_name=model, **fields)
    assert caught.value.code == code
    assert words in caught.value.message
    assert not [child for child in psutil.Process(os.getpid()).children() if "serve.py" in child.cmdline()]


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no-such-program can not be started: No such file") as caught:
        start(tmp_path, command=("no-such-program", "{port}"))
    assert caught.value.code == "server_start_failed"
