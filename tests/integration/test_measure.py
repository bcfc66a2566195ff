"""``llmbench measure`` on a real engine and a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.backends.base import RunningServer, StartRequest
from pytest_llmbench.backends.embedded import EmbeddedBackend
from pytest_llmbench.cli import main
from pytest_llmbench.client.prompts import count_tokens
from pytest_llmbench.core.cell import ServerSpec

KEY = "LLMBENCH_TEST_KEY"


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    spec = ServerSpec(kind="embedded", label="smol", model_file="x", context_size=512, threads=1, gpu_layers=0)
    stem = tmp_path_factory.mktemp("logs") / "smol"
    running = EmbeddedBackend().start(StartRequest(spec, model_path, stem))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def key(server: RunningServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The server's key, where the command is told to look for it."""
    assert server.endpoint.api_key is not None
    monkeypatch.setenv(KEY, server.endpoint.api_key)
    monkeypatch.chdir(tmp_path)
    return server.endpoint.api_key


def measure(server: RunningServer, *arguments: str) -> int:
    usual = ["--api-key-env", KEY, "--requests", "6", "--tokens", "16", "--output", "out"]
    return main(["measure", server.endpoint.base_url, *usual, *arguments])


def results() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    summary = json.loads(Path("out/summary.json").read_text())
    return summary, [json.loads(line) for line in Path("out/requests.jsonl").read_text().splitlines()]


def test_a_load(server: RunningServer, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(server, "--prompt-tokens", "100") == 0
    summary, requests = results()
    assert summary["server"]["kind"] == "llama.cpp"
    assert summary["server"]["model"] == "smol"
    assert [request["phase"] for request in requests] == ["warmup"] + ["sample"] * 6
    assert {request["prompt_tokens"] for request in requests} == {100}
    assert {request["cached_tokens"] for request in requests} == {0}
    assert {request["output_tokens"] for request in requests[1:]} == {16}
    assert {request["output_tokens_source"] for request in requests} == {"timings.predicted_n"}
    assert summary["output_tokens"] == 96
    assert summary["decode_tokens_per_second"]["n"] == 6
    assert summary["decode_tokens_per_second"]["median"]["ci_low"] > 0
    assert not summary["flags"].keys() & {"prompt_cache_hit", "short_answer", "tokens_not_counted", "chunked_stream"}
    printed = capsys.readouterr()
    assert key not in printed.out + printed.err + Path("out/requests.jsonl").read_text()


def test_text_is_fitted_by_the_servers_count(server: RunningServer) -> None:
    assert measure(server, "--protocol", "openai_chat", "--prompt-tokens", "200", "--requests", "2") == 0
    summary, requests = results()
    assert abs(summary["prompt_tokens"]["expected"] - 200) <= 6
    assert all(abs(request["prompt_tokens"] - 200) <= 6 for request in requests if request["phase"] == "sample")


def test_a_prompt_beyond_the_context(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(server, "--prompt-tokens", "2000") == 1
    assert "exceeds the available context size" in capsys.readouterr().err


def test_tokens_are_counted_as_the_engine_does(server: RunningServer) -> None:
    from pytest_llmbench.client.generation import Generation
    from pytest_llmbench.client.load import send

    text = "[01234567] Häuser, naïve façades — and 3.14 more?\n\tEnd."
    record = send(server.endpoint, Generation(max_tokens=2, prompt=text))
    assert record.prompt_tokens == count_tokens(server.endpoint, text)
