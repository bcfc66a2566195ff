"""The Ollama-speaking test server on the real engine: its numbers are llama.cpp's own, told in Ollama's words."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ollama
import psutil
import pytest
import requests

from tests.integration.suite import GONE_SECONDS, PATIENCE_SECONDS, closest_to_1, wait_until
from tests.servers.ollama_server import EmbeddedEngine, OllamaModel, OllamaServer

pytestmark = pytest.mark.slow  # of the server itself; what is measured on it, test_ollama_backend.py shows
STORY = "Once upon a time there was a fox who lived in a wood. " * 10
GREEDY: dict[str, Any] = {"temperature": 0, "num_ctx": 512, "num_thread": 1}


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[OllamaServer]:
    models = {"smol": OllamaModel(model_path), "thinker": OllamaModel(model_path, thinking_pieces=3)}
    with OllamaServer(models, EmbeddedEngine(), unload_seconds=0.05) as server:
        yield server
    assert wait_until(lambda: not engines(), GONE_SECONDS)


@pytest.fixture
def client(server: OllamaServer) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as client:
        yield client


def engines(parent: int | None = None) -> list[int]:
    """Pids of engine children of a process, ours by default."""
    return [
        process.pid
        for process in psutil.Process(parent).children(recursive=True)
        if any("ollama_engine.py" in word for word in process.cmdline())
    ]


def story(client: ollama.Client, count: int, *, prompt: str = STORY, **options: Any) -> ollama.GenerateResponse:
    return client.generate("smol", prompt, raw=True, options={**GREEDY, "num_predict": count, **options})


def test_generates_and_tells_the_engines_own_numbers(client: ollama.Client) -> None:
    def spread() -> float:
        began = time.perf_counter_ns()
        arrivals, pieces = [], []
        for part in client.generate("smol", STORY, raw=True, options={**GREEDY, "num_predict": 24}, stream=True):
            arrivals.append(time.perf_counter_ns() - began)
            pieces.append(part)
        last = pieces[-1]
        assert last.eval_count is not None
        assert last.eval_duration is not None
        assert last.prompt_eval_duration is not None
        assert (last.done_reason, last.eval_count) == ("length", 24)
        assert len("".join(piece.response or "" for piece in pieces)) > 24
        assert last.load_duration is not None
        assert last.total_duration is not None
        assert last.load_duration + last.prompt_eval_duration + last.eval_duration <= last.total_duration
        assert last.total_duration <= arrivals[-1]
        return (arrivals[-2] - arrivals[0]) / last.eval_duration

    assert closest_to_1(spread, within=0.4) == pytest.approx(1, abs=0.4)  # sent as they come, timed from the first on


def test_cached_prompts_are_counted_but_took_no_time(client: ollama.Client) -> None:
    first, *again = (story(client, 2, prompt=f"New. {STORY}") for _ in range(4))
    assert {answer.prompt_eval_count for answer in again} == {first.prompt_eval_count}
    assert (first.prompt_eval_count or 0) > 100
    assert (first.prompt_eval_duration or 0) > 3 * min(answer.prompt_eval_duration or 0 for answer in again)


def test_chats(client: ollama.Client) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    answer = client.chat("smol", messages, options={**GREEDY, "num_predict": 60})
    assert re.search("hello|hi|help", answer.message.content or "", re.IGNORECASE)
    assert answer.done_reason == "stop"
    assert (answer.eval_count or 60) < 60
    rendered = client.generate("smol", "Say hello.", options={**GREEDY, "num_predict": 60})
    assert (rendered.response, rendered.prompt_eval_count) == (answer.message.content, answer.prompt_eval_count)
    assert rendered.context is not None
    assert len(rendered.context) >= (rendered.prompt_eval_count or 0)


def test_thinks_first(client: ollama.Client) -> None:
    options = {**GREEDY, "num_predict": 8}
    thought = client.generate("thinker", "Say hello.", options=options)
    plain = client.generate("thinker", "Say hello.", options=options, think=False)
    assert thought.thinking
    assert thought.response
    assert thought.thinking + thought.response == plain.response


def test_overlong_prompts_are_cut_in_silence_or_refused(client: ollama.Client) -> None:
    assert story(client, 2, prompt=STORY * 8).prompt_eval_count == 512 - (512 - 4) // 2
    with pytest.raises(ollama.ResponseError, match="exceed_context_size_error") as caught:
        client.chat("smol", [{"role": "user", "content": STORY * 8}], options=GREEDY)
    assert caught.value.status_code == 400
    assert story(client, 2).done  # the engine is still well


def test_answers_outgrow_the_context_by_shifting_it(server: OllamaServer, client: ollama.Client) -> None:
    prompt = STORY + STORY[: len(STORY) // 2]
    grown = story(client, 80, prompt=prompt, num_ctx=256)  # llama.cpp has no smaller context
    assert (grown.eval_count, grown.done_reason) == (80, "length")
    assert 256 - 80 < (grown.prompt_eval_count or 0) < 256
    options = {**GREEDY, "num_ctx": 256, "num_predict": 80}
    body = {"model": "smol", "prompt": prompt, "raw": True, "stream": False, "shift": False, "options": options}
    stuck = requests.post(f"{server.url}/api/generate", json=body, timeout=60).json()  # the client knows no ``shift``
    assert stuck["done_reason"] == "length"
    assert stuck["prompt_eval_count"] + stuck["eval_count"] <= 257


def test_loads_again_when_asked_for_other_settings(server: OllamaServer, client: ollama.Client) -> None:
    story(client, 1)
    (before,), loads = [m for m in client.ps().models if m.model == "smol:latest"], server.loads
    assert story(client, 1).load_duration is not None
    assert server.loads == loads
    again = story(client, 1, num_batch=256)
    assert server.loads == loads + 1
    assert (again.load_duration or 0) > 0.05e9
    assert before.context_length == 512
    assert (before.size or 0) > 98_000_000


def test_context_is_capped_at_the_trained_one(server: OllamaServer, client: ollama.Client) -> None:
    client.generate("smol", options={"num_ctx": 100_000, "num_thread": 1})
    (loaded,) = (m for m in client.ps().models if m.model == "smol:latest")
    assert loaded.context_length == 8192
    shown = client.show("smol")
    assert shown.details is not None
    assert shown.modelinfo is not None
    assert (shown.details.quantization_level, shown.details.family) == ("Q4_1", "llama")
    assert shown.modelinfo["llama.context_length"] == 8192
    assert shown.modelinfo["general.parameter_count"] == 134_515_008


def test_unloads(client: ollama.Client) -> None:
    story(client, 1)
    for model in ("smol", "thinker"):
        assert client.generate(model, keep_alive=0).done_reason == "unload"
    assert wait_until(lambda: not client.ps().models, GONE_SECONDS)
    assert not engines()


def test_imports_a_file_and_answers_with_it(server: OllamaServer, client: ollama.Client, model_path: Path) -> None:
    digest = client.create_blob(model_path)
    assert client.create("mine", files={"model.gguf": digest}).status == "success"
    assert client.generate("mine", "Say hello.", options={**GREEDY, "num_predict": 4}).eval_count == 4
    client.delete("mine")
    assert wait_until(lambda: "mine:latest" not in [m.model for m in client.ps().models], GONE_SECONDS)


def test_half_a_file_can_not_be_loaded(client: ollama.Client, model_path: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.gguf"
    half.write_bytes(model_path.read_bytes()[: model_path.stat().st_size // 2])
    client.create("half", files={"half.gguf": client.create_blob(half)})
    with pytest.raises(ollama.ResponseError, match="data is not within the file bounds") as caught:
        client.generate("half", "x")
    assert caught.value.status_code == 500


def test_an_engine_that_dies_breaks_its_answer_and_is_started_again(client: ollama.Client) -> None:
    client.generate("thinker", keep_alive=0)
    story(client, 1)
    assert wait_until(lambda: len(engines()) == 1, GONE_SECONDS)
    parts = client.generate("smol", STORY, raw=True, options={**GREEDY, "num_predict": 300}, stream=True)
    next(iter(parts))
    os.kill(engines()[0], signal.SIGKILL)
    with pytest.raises(ollama.ResponseError, match="model runner has unexpectedly stopped"):
        list(parts)
    assert story(client, 1).eval_count == 1


@contextmanager
def process(model_path: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], ollama.Client]]:
    command = [sys.executable, "-m", "tests.servers.ollama_server", "serve", "--model", f"smol={model_path}"]
    environment = {**os.environ, "OLLAMA_HOST": "127.0.0.1:0", "TMPDIR": str(folder)}
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr is not None
            with ollama.Client(host=f"http://{child.stderr.readline().split()[2]}") as client:
                yield child, client
        finally:
            child.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_takes_its_engine_along(model_path: Path, tmp_path: Path, number: signal.Signals) -> None:
    with process(model_path, tmp_path) as (child, client):
        assert story(client, 2).eval_count == 2
        (engine,) = engines(child.pid)
        child.send_signal(number)
        child.wait(PATIENCE_SECONDS)
        assert wait_until(lambda: not psutil.pid_exists(engine), GONE_SECONDS)
    if number == signal.SIGTERM:
        assert child.returncode == 0
        assert list(tmp_path.iterdir()) == []
