"""A server that is not what it should be: one reason with a remedy, no harm to others, an early warning if possible.

Each run has two variants: ``bad``, on the server in question, and ``good``, on a healthy one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_llmbench.client.control import get_json as get_json_patiently
from pytest_llmbench.runtime.process import free_port
from tests.plugin.bench import Bench
from tests.plugin.pitfalls import PROPS, code_of
from tests.servers.fake_openai import FakeOpenAI
from tests.servers.ollama_server import OllamaModel, OllamaServer
from tests.unit.backends.routes import Routes

BAD = "suites/test_interactive.py::test_interactive[tiny-Q4_K_M-bad]"


@dataclass(frozen=True)
class Case:
    """A way not to be what one should be.

    Attributes:
        server: gives the address of the ``bad`` variant.
        remedy: part of the message.
        early: whether it is to be seen without a generation.
        changes: of the variant.
    """

    code: str
    server: Callable[[], AbstractContextManager[str]]
    remedy: str
    early: bool
    changes: dict[str, Any] = field(default_factory=dict)


def at(url: str) -> Callable[[], AbstractContextManager[str]]:
    return lambda: nullcontext(url)


@contextmanager
def nobody() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


@contextmanager
def silent() -> Iterator[str]:
    """Takes connections, and that is all."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def fake(*, scheme: str = "http", **fields: Any) -> Callable[[], AbstractContextManager[str]]:
    @contextmanager
    def server() -> Iterator[str]:
        with FakeOpenAI(**fields) as running:
            yield running.url.replace("http", scheme)

    return server


@contextmanager
def web_page() -> Iterator[str]:
    with Routes({"GET /v1/models": (200, "<!doctype html><title>Router</title>")}) as server:
        yield server.url


@contextmanager
def something_with_json() -> Iterator[str]:
    with Routes({"GET /v1/models": (200, {"status": "ok"})}) as server:
        yield server.url


@contextmanager
def without_generation() -> Iterator[str]:
    with Routes({"GET /v1/models": (200, {"data": [{"id": "fake"}]})}) as server:
        yield server.url


def from_the_beginning(fault: str) -> Callable[[], AbstractContextManager[str]]:
    return fake(fault={"*": fault}, faulty_proofs=True)


CASES = {
    "unreachable": Case("unreachable", at("http://no-such-host.invalid:1"), "check the host name in base_url", True),
    "connection_refused": Case("connection_refused", nobody, "start the server, or correct base_url", True),
    "timeout": Case("timeout", silent, "wait, or correct base_url", True),
    "tls_failed": Case("tls_failed", fake(scheme="https"), "check http:// against https:// in base_url", True),
    "wrong_key": Case("wrong_key", fake(key="secret"), "set openai.api_key_env to the variable", True),
    "web page": Case("not_an_llm_server", web_page, "base_url must be the root of a model server", True),
    "other JSON": Case("not_an_llm_server", something_with_json, "base_url must be the root of a model server", True),
    "no generation": Case(
        "not_an_llm_server", without_generation, "base_url must be the root of a model server", False
    ),
    "wrong_model_name": Case(
        "wrong_model_name",
        fake(models=("fake-7b", "something-else")),
        "(did you mean 'fake-7b'?); it serves: fake-7b, something-else; write one of the server's names into `served`",
        True,
    ),
    "model_missing": Case("model_missing", from_the_beginning("not_loaded"), "load or pull the model", False),
    "empty_answer": Case("empty_answer", from_the_beginning("empty"), "check the model's chat template", False),
    "blank answer": Case("empty_answer", from_the_beginning("blank"), "check the model's chat template", False),
    "another_model_answered": Case(
        "another_model_answered",
        from_the_beginning("another_model"),
        "write the name of the model that is loaded into `served`",
        False,
    ),
    "context_mismatch": Case(
        "context_mismatch",
        fake(props=PROPS),
        "lower ctx_size, or what settings ask for, to what the model was trained for",
        False,
        {"ctx_size": 8192},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_reason_one_remedy_and_no_harm_to_others(bench: Bench, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    with case.server() as url:
        impatient_with(url, monkeypatch, "timeout" in case.code)
        bench.config["variants"] = [
            {"id": "bad", "base_url": url, **case.changes},
            {"id": "good", "base_url": bench.fake.url},
        ]
        result = bench.run("suites/")
    bad, good = bench.cells()
    assert (bad["nodeid"], good["variant"]) == (BAD, "good")
    assert code_of(bad) == ("error", case.code)
    assert case.remedy in bad["reason"]["message"]
    assert (bad["metrics"], bad["answered_requests"]) == ({}, 0)
    assert code_of(good) == ("passed", None)
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    lines = result.outlines
    warnings = [number for number, line in enumerate(lines) if line.startswith("llmbench: warning: ")]
    assert len(warnings) == case.early
    if case.early:
        assert lines[warnings[0]].endswith(f"({case.code})")
        assert warnings[0] < next(number for number, line in enumerate(lines) if line.startswith("suites/"))


def impatient_with(url: str, monkeypatch: pytest.MonkeyPatch, really: bool) -> None:
    """Wait for one server no longer than a moment."""

    def get_json(endpoint: Any, path: str, timeout_seconds: float = 10.0) -> Any:
        return get_json_patiently(endpoint, path, 0.3 if endpoint.base_url == url else timeout_seconds)

    if really:
        monkeypatch.setattr("pytest_llmbench.backends.checks.get_json", get_json)


def test_a_healthy_run_warns_of_nothing(bench: Bench) -> None:
    result = bench.run("suites/")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*warning:*")


def test_a_server_that_comes_in_time_is_only_warned_of(bench: Bench) -> None:
    """The early look only warns: what counts is the look before the first measurement."""
    bench.fake.key = "later"
    bench.write("suites/test_first.py", "def test_first():\n    pass\n")
    bench.write("conftest.py", (bench.path / "conftest.py").read_text() + OPEN_UP)
    result = bench.run("suites/test_first.py", "suites/test_interactive.py")
    result.stdout.fnmatch_lines(["llmbench: warning: *(wrong_key)"])
    result.assert_outcomes(passed=2)


OPEN_UP = """
import gc, pytest

@pytest.fixture(autouse=True)
def open_up():
    from tests.servers.fake_openai import FakeOpenAI
    for server in gc.get_objects():
        if isinstance(server, FakeOpenAI):
            server.key = None
"""


@pytest.mark.parametrize(
    ("downloads", "status"), [((), "error"), (("--llmbench-no-download",), "skipped")], ids=["asked", "forbidden"]
)
def test_a_model_that_ollama_has_not(bench: Bench, downloads: tuple[str, ...], status: str) -> None:
    with OllamaServer({"tiny": OllamaModel()}, unload_seconds=0.0) as server:
        on_both(bench, server.url, served="tinny")
        bench.run("suites/", *downloads)
    bad, good = bench.cells()
    assert code_of(bad) == (status, "model_missing")
    assert "did you mean 'tiny:latest'?" in bad["reason"]["message"]
    assert good["status"] == "error"  # the healthy server does not know that name either
    assert good["reason"]["code"] == "wrong_model_name"


def test_an_ollama_server_that_is_not_there_is_seen_early(bench: Bench) -> None:
    with nobody() as url:
        on_both(bench, url, served="fake")
        result = bench.run("suites/")
    bad, good = bench.cells()
    assert code_of(bad) == ("error", "connection_refused")
    assert code_of(good) == ("passed", None)
    result.stdout.fnmatch_lines(["llmbench: warning: ollama: *(connection_refused)"])


def on_both(bench: Bench, ollama_url: str, served: str) -> None:
    """One variant on Ollama, one on the healthy server."""
    bench.config["ollama"] = {"base_url": ollama_url, "default_ctx_size": 2048}
    bench.config["variants"] = [{"id": "bad", "backend": "ollama"}, {"id": "good"}]
    bench.models["models"][0]["served"] = {"Q4_K_M": served}
