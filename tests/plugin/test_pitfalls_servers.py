"""Pitfalls of servers and models (P08, P12–P15, P25, P26, P34, P35): each is provoked, and noticed or without effect.

``docs/pitfalls.md`` says what goes wrong in each. Servers here are fast stand-ins; nothing is a measurement of a model.
"""

from __future__ import annotations

import ast
import asyncio
import socket
from typing import Any

import pytest

from tests.plugin.bench import SUITE, SWITCH, Bench
from tests.plugin.pitfalls import (
    Q4_K_M,
    Q8_0,
    assert_measured,
    cell_of,
    code_of,
    gguf,
    like_llama_cpp,
    llama_server,
    ollama,
    on_ollama,
    samples_of,
    started_by_command,
)
from tests.servers.ollama_server import OllamaModel

PROXY_VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


# ---------------------------------------------------------------- P08: another context than asked for


def test_p08_a_server_with_a_smaller_context(bench: Bench) -> None:
    like_llama_cpp(bench.fake, default_generation_settings={"n_ctx": 2048})
    bench.config["openai"]["default_ctx_size"] = 4096
    cell = cell_of(bench)
    assert code_of(cell) == ("error", "context_mismatch")
    assert cell["reason"]["evidence"] == {"asked_tokens": 4096, "actual_tokens": 2048}
    assert bench.fake.requests == []
    bench.config["openai"]["default_ctx_size"] = 2048
    cell = cell_of(bench)
    assert_measured(cell)
    assert cell["server"]["context_size"] == 2048


def test_p08_a_server_that_does_not_do_what_it_is_told(bench: Bench) -> None:
    llama_server(bench, context=768)
    cell = cell_of(bench)
    assert code_of(cell) == ("error", "context_mismatch")
    assert cell["reason"]["evidence"] == {"asked_tokens": 1024, "actual_tokens": 768}


def test_p08_ollama_goes_no_further_than_the_model_was_trained(bench: Bench) -> None:
    with ollama(models={"tiny": OllamaModel(trained_context=1024)}) as server:
        on_ollama(bench, server, context=4096)
        cell = cell_of(bench)
        assert code_of(cell) == ("error", "context_mismatch")
        assert cell["reason"]["evidence"] == {"asked_tokens": 4096, "actual_tokens": 1024}
        on_ollama(bench, server, context=1024)
        cell = cell_of(bench)
    assert_measured(cell)
    assert cell["server"]["context_size"] == 1024


# ---------------------------------------------------------------- P12, P13: which model answers, and how it was loaded


OTHER_PROFILE = """
import pydantic
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.profiles.base import Measurement, nonce

class Shout:
    name = "shout"
    emits = ("ttft_seconds",)
    class settings_model(pydantic.BaseModel):
        pass

    def run(self, context):
        measurement = Measurement()
        for temperature in (0.0, 0.5):
            generation = Generation(max_tokens=8, prompt=nonce() + "HELLO", temperature=temperature)
            context.file(context.request(generation, "sample"))
        return measurement

def pytest_llmbench_register_profiles(registry):
    registry.add(Shout())
"""


def test_p12_no_request_changes_what_ollama_reloads_for(bench: Bench) -> None:
    own = "llm.chat('x', max_tokens=3, temperature=0.5); llm.complete('x', max_tokens=3)"
    bench.write("conftest.py", SWITCH + OTHER_PROFILE)
    bench.write("suites/test_own.py", SUITE.replace("llm.measure().check()", own))
    bench.write("suites/test_shout.py", SUITE.replace("interactive", "shout"))
    with ollama() as server:
        on_ollama(bench, server)
        bench.config["profiles"] = ["interactive", "shout"]
        bench.run("suites/").assert_outcomes(passed=3)
        assert server.loads == 1
        asked = [*server.requests_to("/api/generate"), *server.requests_to("/api/chat")]
    bodies = [request.body for request in asked if request.body.get("keep_alive") != 0]
    assert len(bodies) == 1 + 1 + 7 + 2 + 2  # load, proof, interactive, own, shout
    loads_for = {"num_ctx", "num_batch", "num_gpu", "num_thread", "use_mmap", "main_gpu"}
    options = [{key: value for key, value in body["options"].items() if key in loads_for} for body in bodies]
    assert options == [{"num_ctx": 2048}] * len(bodies)
    assert {str(body["keep_alive"]) for body in bodies} == {"30m"}
    assert not any("model_reloaded" in cell["flags"] for cell in bench.cells())


@pytest.mark.parametrize("backend", ["embedded", "llama_cpp"])
def test_p13_a_file_of_another_quantization(bench: Bench, backend: str) -> None:
    llama_server(bench, file_type=Q8_0)
    bench.config["backend"] = backend
    cell = cell_of(bench)
    assert code_of(cell) == ("error", "wrong_quantization")
    if backend == "llama_cpp":
        gguf(bench.path / "models" / "1B" / "tiny.gguf", Q4_K_M)
        assert_measured(cell_of(bench))


def test_p13_a_server_says_that_its_model_is_of_another_quantization(bench: Bench) -> None:
    like_llama_cpp(bench.fake, model_ftype="Q8_0")
    assert code_of(cell_of(bench)) == ("error", "wrong_quantization")
    with ollama() as server:
        on_ollama(bench, server)
        bench.models["models"][0]["served"] = {"Q4_K_M": "tiny"}
        bench.models["full_mode_quants"] = ["Q4_K_M"]
        assert code_of(cell_of(bench)) == ("error", "wrong_quantization")
        assert server.loads == 0


@pytest.mark.parametrize("kind", ["openai", "llama.cpp"])
def test_p13_another_model_answers_from_the_beginning(bench: Bench, kind: str) -> None:
    if kind == "llama.cpp":
        like_llama_cpp(bench.fake)
    bench.fake.fault["*"], bench.fake.faulty_proofs = "another_model", True
    cell = cell_of(bench)
    assert code_of(cell) == ("error", "another_model_answered")
    assert cell["reason"]["evidence"] == {"asked": "fake", "answered": "another"}
    assert bench.fake.requests == []


@pytest.mark.parametrize("kind", ["openai", "llama.cpp"])
def test_p13_another_model_answers_in_between(bench: Bench, kind: str) -> None:
    if kind == "llama.cpp":
        like_llama_cpp(bench.fake)
    bench.fake.fault["*"], bench.fake.faulty_requests = "another_model", {4}
    cell = cell_of(bench)
    assert code_of(cell) == ("invalid", "another_model_answered")
    assert (cell["flags"], cell["metrics"]) == (["another_model_answered"], {})
    assert [record["usable"] for record in samples_of(bench)] == [True, True, True, False]


def test_p13_another_model_answers_from_the_warmup_on(bench: Bench) -> None:
    bench.fake.fault["*"] = "another_model"  # the proof was signed by the right one
    assert code_of(cell_of(bench))[1] == "another_model_answered"


# ---------------------------------------------------------------- P14, P15: ways to the server that cost time


def test_p14_localhost_is_tried_as_ipv4_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    class Noting:
        """The event loop, on a machine whose ``localhost`` names an IPv6 address first."""

        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self._loop = loop

        def __getattr__(self, name: str) -> Any:
            return getattr(self._loop, name)

        async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
            assert host == "localhost"
            first = (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("::1", port, 0, 0))
            return [first, (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]

        async def create_connection(self, factory: Any, host: str, port: int, **options: Any) -> Any:
            tried.append(host)
            return await self._loop.create_connection(factory, host, port, **options)

    running = asyncio.get_running_loop
    monkeypatch.setattr("pytest_llmbench.client.transport.asyncio.get_running_loop", lambda: Noting(running()))
    bench.config["openai"]["base_url"] = bench.fake.url.replace("127.0.0.1", "localhost")
    assert_measured(cell_of(bench))
    assert tried == ["127.0.0.1"] * (1 + 7)


def test_p15_proxies_of_the_environment_are_ignored(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    like_llama_cpp(bench.fake)  # is asked more than others besides answers
    assert_measured(cell_of(bench))
    assert {"/v1/models", "/props", "/tokenize", "/completion"} <= set(bench.fake.paths)
    with ollama() as server:
        on_ollama(bench, server)
        assert_measured(cell_of(bench))


# ---------------------------------------------------------------- P25, P26: a server that is not what it was


@pytest.mark.parametrize(("share", "flagged"), [(0.5, True), (0.0, False), (1.0, False)])
def test_p25_a_model_that_is_only_partly_on_the_gpu(bench: Bench, share: float, flagged: bool) -> None:
    with ollama(vram_share=share) as server:
        on_ollama(bench, server)
        cell = cell_of(bench)
    assert cell["status"] == "passed"
    assert ("partial_gpu_offload" in cell["flags"]) == flagged
    assert any("only 50 % of this model are on the GPU" in note for note in cell["notes"]) == flagged


@pytest.mark.parametrize("kind", ["openai", "llama.cpp"])
def test_p26_a_running_server_that_was_restarted(bench: Bench, kind: str) -> None:
    if kind == "llama.cpp":
        like_llama_cpp(bench.fake)
    bench.fake.start_time = 1.7e9
    bench.fake.restarts_before = 4
    cell = cell_of(bench)
    assert code_of(cell) == ("invalid", "server_restarted")
    assert (cell["flags"], cell["metrics"]) == (["server_restarted"], {})
    assert_measured(cell_of(bench))  # and once it stays


SUPERVISED = """
import os, socket, threading, time
from tests.servers.fake_openai import FakeOpenAI
listener, first = socket.create_server((host, port), backlog=64), True
while True:
    pid = os.fork()
    if not pid:
        # The supervisor keeps the listening socket, so that clients wait a little and nobody is refused.
        with FakeOpenAI(listener=listener, start_time=time.monotonic(), dies_after=4 if first else None):
            threading.Event().wait(100)
        os._exit(0)
    os.waitpid(pid, 0)
    first = False
"""


def test_p26_a_server_of_ours_whose_supervisor_restarts_it(bench: Bench) -> None:
    started_by_command(bench, SUPERVISED)
    cell = cell_of(bench)
    assert code_of(cell) == ("invalid", "server_restarted")


DYING = """
import threading
from tests.servers.fake_openai import FakeOpenAI
with FakeOpenAI(port=port, dies_after=4, dying_seconds=0.2):
    threading.Event().wait(100)
"""


def test_p26_a_server_of_ours_that_dies_is_not_taken_for_one_that_refuses(bench: Bench) -> None:
    started_by_command(bench, DYING)  # its connections are refused some moments before it is gone
    cell = cell_of(bench)
    assert code_of(cell) == ("error", "server_died")
    assert cell["reason"]["evidence"]["exit_status"] == 3


# ---------------------------------------------------------------- P34, P35: programs that we start


TALKATIVE = """
import threading
from tests.servers.fake_openai import FakeOpenAI, _Handler
line = "a line of a log that nobody reads " * 30
def talk():
    for stream in (sys.stdout, sys.stderr):
        for _ in range(200):
            print(line, file=stream, flush=True)  # 200 kB: three times what a pipe holds
talk()
answer = _Handler._stream
def talks_and_answers(self, *arguments):
    talk()
    answer(self, *arguments)
    talk()
_Handler._stream = talks_and_answers
with FakeOpenAI(port=port):
    threading.Event().wait(100)
"""


def test_p34_a_server_that_logs_much_is_not_blocked(bench: Bench) -> None:
    started_by_command(bench, TALKATIVE)
    assert_measured(cell_of(bench))
    logs = list((bench.latest / "logs").iterdir())
    assert len(logs) == 2
    assert all(log.stat().st_size > 17 * 200_000 for log in logs)


def test_p35_what_a_binary_does_not_know_is_left_out_and_told(bench: Bench) -> None:
    seen = llama_server(bench, without=("-fit", "--cache-ram", "--offline"))
    cell = cell_of(bench)
    assert_measured(cell)
    (note,) = [note for note in cell["notes"] if "knows no" in note]
    assert "knows no -fit off, --cache-ram 0, --offline; left out" in note
    given = ast.literal_eval(seen.read_text())
    assert (given["-np"], given["-ctxcp"], given["-c"], given["--no-webui"]) == ("1", "0", "1024", "")
    llama_server(bench)
    assert not [note for note in cell_of(bench)["notes"] if "knows no" in note]
    given = ast.literal_eval(seen.read_text())
    assert (given["-fit"], given["--cache-ram"], given["--offline"]) == ("off", "0", "")


def test_p35_an_argument_that_a_binary_does_not_know_is_refused(bench: Bench) -> None:
    seen = llama_server(bench)
    bench.config["llama_cpp"]["extra_args"] = ["--flash-attention", "on"]
    cell = cell_of(bench)
    assert code_of(cell) == ("error", "unknown_flag")
    assert cell["reason"]["evidence"] == {"flag": "--flash-attention"}
    assert not seen.exists()  # it was not even started


def test_the_stand_in_for_llama_server_ends_at_what_it_does_not_know(bench: Bench) -> None:
    llama_server(bench, without=("-fit",))
    run = bench.pytester.run(str(bench.path / "llama-server"), "-fit", "off")
    assert run.ret == 1
    run.stderr.fnmatch_lines(["error: invalid argument: -fit"])
