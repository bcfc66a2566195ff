"""The Ollama-speaking test server, on words: its routes and its traps, driven by Ollama's own Python client."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import ollama
import pytest
import requests

from tests.servers.ollama_models import full_name, read_header
from tests.servers.ollama_scheduler import parse_keep_alive
from tests.servers.ollama_server import Fault, OllamaModel, OllamaServer, WordEngine

MODELS = {
    "words": OllamaModel(),
    "thinker": OllamaModel(thinking_pieces=2),
    "gpt-oss:20b": OllamaModel(thinking_pieces=2),
    "small": OllamaModel(trained_context=64),
    "rendered": OllamaModel(rendered_chat=True),
}
LONG = " ".join(f"p{i}" for i in range(100))


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer(dict(MODELS), WordEngine(load_seconds=0.01), unload_seconds=0.05) as server:
        yield server


@pytest.fixture
def client(server: OllamaServer) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as client:
        yield client


def post(server: OllamaServer, path: str, **body: object) -> requests.Response:
    return requests.post(server.url + path, json=body, timeout=20)


def lines(server: OllamaServer, path: str = "/api/generate", **body: object) -> list[dict[str, Any]]:
    response = post(server, path, **{"model": "words", **body})
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def final(server: OllamaServer, **body: object) -> dict[str, Any]:
    """The last object of a short answer; the prompt is raw, so that its words are its tokens."""
    body = {"prompt": "one two three", "raw": True, **body}
    body["options"] = {"num_predict": 4, **dict(body.get("options") or {})}  # type: ignore[call-overload]
    last: dict[str, Any] = json.loads(post(server, "/api/generate", **{"model": "words", **body}).text.splitlines()[-1])
    assert last["done"] is True, last
    return last


# -- what is installed


def test_says_that_it_runs(server: OllamaServer) -> None:
    assert requests.get(server.url, timeout=5).text == "Ollama is running"
    assert requests.head(server.url, timeout=5).status_code == 200
    assert "test-server" in requests.get(f"{server.url}/api/version", timeout=5).json()["version"]
    assert "Ollama" not in str(requests.get(server.url, timeout=5).headers)


def test_unknown_routes_and_methods_are_refused(server: OllamaServer) -> None:
    assert requests.get(f"{server.url}/api/nothing", timeout=5).status_code == 404
    assert requests.get(f"{server.url}/api/generate", timeout=5).status_code == 405
    assert requests.post(f"{server.url}/api/generate", timeout=5).json() == {"error": "missing request body"}
    assert requests.post(f"{server.url}/api/generate", data="{", timeout=5).status_code == 400
    assert requests.post(f"{server.url}/api/generate", data="[]", timeout=5).status_code == 400


def test_lists_models(server: OllamaServer, client: ollama.Client) -> None:
    assert [m.model for m in client.list().models] == [full_name(name) for name in MODELS]
    ids = [m["id"] for m in requests.get(f"{server.url}/v1/models", timeout=5).json()["data"]]
    assert ids == [full_name(name) for name in MODELS]


def test_shows_a_model(client: ollama.Client) -> None:
    shown = client.show("small")
    assert shown.modelinfo is not None
    assert shown.modelinfo["words.context_length"] == 64
    assert shown.capabilities == ["completion"]
    assert client.show("thinker").capabilities == ["completion", "thinking"]
    with pytest.raises(ollama.ResponseError, match="model 'nothing:latest' not found"):
        client.show("nothing")


def test_names_are_found_without_tag_and_in_any_case(server: OllamaServer) -> None:
    assert final(server, model="WORDS:latest")["model"] == "WORDS:latest"
    assert full_name("hf.co/a/b") == "hf.co/a/b:latest"
    assert full_name("library/x:1b") == "x:1b"


def test_deletes_a_model(server: OllamaServer, client: ollama.Client) -> None:
    client.delete("words")
    with pytest.raises(ollama.ResponseError, match="model 'words' not found") as caught:
        client.delete("words")
    assert caught.value.status_code == 404


def test_embeddings_are_refused_honestly(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="does not make embeddings") as caught:
        client.embed("words", "text")
    assert caught.value.status_code == 501


# -- answers


@pytest.mark.parametrize("stream", [True, False])
def test_generates(client: ollama.Client, stream: bool) -> None:
    options = {"num_predict": 5}
    if stream:
        parts = list(client.generate("words", "Say", options=options, stream=True))
        assert [part.done for part in parts] == [False] * 5 + [True]
        text, last = "".join(part.response or "" for part in parts), parts[-1]
    else:
        last = client.generate("words", "Say", options=options)
        text = last.response or ""
    assert text == "word0 word1 word2 word3 word4 "
    assert (last.done, last.done_reason, last.eval_count, last.prompt_eval_count) == (True, "length", 5, 2)
    assert last.context is not None
    assert len(last.context) == 7


@pytest.mark.parametrize("stream", [True, False])
def test_chats(client: ollama.Client, stream: bool) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say it"}]
    if stream:
        parts = list(client.chat("words", messages, options={"num_predict": 3}, stream=True))
        text, last = "".join(part.message.content or "" for part in parts), parts[-1]
    else:
        last = client.chat("words", messages, options={"num_predict": 3})
        text = last.message.content or ""
    assert text == "word0 word1 word2 "
    assert (last.done_reason, last.eval_count, last.prompt_eval_count) == ("length", 3, 6)


def test_pieces_come_one_by_one() -> None:
    with OllamaServer({"words": OllamaModel()}, WordEngine(word_seconds=0.03)) as server:
        body = {"model": "words", "prompt": "x", "options": {"num_predict": 6}}
        with requests.post(f"{server.url}/api/generate", json=body, stream=True, timeout=5) as response:
            times = [time.monotonic() for line in response.iter_lines(chunk_size=1) if b'"done":false' in line]
    assert len(times) == 6
    assert times[-1] - times[0] >= 0.12


def test_answers_end_at_their_own_end_whatever_was_asked(server: OllamaServer) -> None:
    last = final(server, options={"num_predict": 10_000, "ignore_eos": True})
    assert (last["done_reason"], last["eval_count"]) == ("stop", 200)
    assert final(server, options={"num_predict": -1})["done_reason"] == "stop"
    assert final(server, options={"num_predict": 200})["done_reason"] == "length"


def test_durations_are_whole_nanoseconds_and_zeros_are_left_out(server: OllamaServer) -> None:
    *pieces, last = lines(server, prompt="x", options={"num_predict": 4})
    durations = [last[f"{name}_duration"] for name in ("total", "load", "prompt_eval", "eval")]
    assert all(type(value) is int and value > 0 for value in durations)
    assert sum(durations[1:]) <= durations[0]
    assert all(set(piece) == {"model", "created_at", "response", "done"} for piece in pieces)
    nothing = final(server, options={"num_predict": 0})
    assert "eval_count" not in nothing
    assert nothing["prompt_eval_count"] == 3


def test_time_of_the_first_token_is_not_in_eval_duration() -> None:
    with OllamaServer({"words": OllamaModel()}, WordEngine(word_seconds=0.2)) as server:
        last = final(server, options={"num_predict": 2})
        assert last["eval_count"] == 2
        assert 0.2e9 <= last["eval_duration"] < 0.4e9
        assert final(server, options={"num_predict": 1})["eval_duration"] < 0.2e9


def test_cached_tokens_are_counted_but_took_no_time() -> None:
    with OllamaServer({"words": OllamaModel()}, WordEngine(prompt_word_seconds=0.002)) as server:
        first, second = final(server, prompt=LONG), final(server, prompt=LONG)
        other = final(server, prompt=f"x {LONG}")
    assert first["prompt_eval_count"] == second["prompt_eval_count"] == 100
    assert first["prompt_eval_duration"] >= 0.2e9 > 10 * second["prompt_eval_duration"]
    assert other["prompt_eval_duration"] >= 0.2e9


@pytest.mark.parametrize(("cuts_to", "left"), [("half", 34), ("whole", 63)])
def test_overlong_prompts_are_cut_in_silence(cuts_to: Literal["half", "whole"], left: int) -> None:
    with OllamaServer(dict(MODELS), cuts_to=cuts_to) as server:
        assert final(server, prompt=LONG, options={"num_ctx": 64})["prompt_eval_count"] == left
        assert final(server, prompt=LONG, options={"num_ctx": 101})["prompt_eval_count"] == 100
        chat = {"messages": [{"role": "user", "content": LONG}], "options": {"num_ctx": 64, "num_predict": 2}}
        assert lines(server, "/api/chat", model="rendered", **chat)[-1]["prompt_eval_count"] == left


def test_overlong_prompts_are_refused_when_they_must_not_be_cut(server: OllamaServer) -> None:
    for extra in ({"truncate": False}, {"shift": False}):
        body = {"model": "words", "prompt": LONG, "options": {"num_ctx": 64}, **extra}
        assert post(server, "/api/generate", **body).status_code == 400
    assert final(server, prompt=LONG, options={"num_ctx": 128}, truncate=False)["prompt_eval_count"] == 100


def test_chat_loses_its_oldest_messages_and_refuses_an_overlong_last_one(server: OllamaServer) -> None:
    system, old, new = (
        {"role": role, "content": text} for role, text in (("system", "s"), ("user", LONG), ("user", "n"))
    )
    chat = {"options": {"num_ctx": 64, "num_predict": 2}, "model": "words"}
    assert lines(server, "/api/chat", messages=[system, old, new], **chat)[-1]["prompt_eval_count"] == 4
    refused = post(server, "/api/chat", messages=[system, new, old], **chat)
    assert refused.status_code == 400
    assert "exceed_context_size_error" in refused.json()["error"]


def test_thinking_has_a_field_of_its_own(client: ollama.Client) -> None:
    for think in (None, True, "low", "medium", "high"):
        answer = client.generate("thinker", "x", options={"num_predict": 4}, think=think)
        assert (answer.thinking, answer.response) == ("word0 word1 ", "word2 word3 ")
        assert answer.eval_count == 4
    chat = client.chat("thinker", [{"role": "user", "content": "x"}], options={"num_predict": 3}, think="high")
    assert (chat.message.thinking, chat.message.content) == ("word0 word1 ", "word2 ")
    without = client.generate("thinker", "x", options={"num_predict": 3}, think=False)
    assert (without.thinking, without.response) == (None, "word0 word1 word2 ")


def test_thinking_is_refused_by_models_that_can_not(server: OllamaServer, client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match='"words" does not support thinking') as caught:
        client.generate("words", "x", think=True)
    assert caught.value.status_code == 400
    assert client.generate("words", "x", think=False).response
    assert post(server, "/api/chat", model="thinker", messages=[{}], think="much").status_code == 400
    assert post(server, "/api/chat", model="thinker", messages=[{}], think=1).status_code == 400


def test_gpt_oss_only_speaks_in_chats(server: OllamaServer, client: ollama.Client) -> None:
    answer = client.generate("gpt-oss:20b", "x", options={"num_predict": 4})
    assert (answer.response, answer.eval_count, answer.done_reason) == ("", 4, "length")
    assert len(lines(server, model="gpt-oss:20b", prompt="x")) == 1
    chat = client.chat("gpt-oss:20b", [{"role": "user", "content": "x"}], options={"num_predict": 4})
    assert chat.message.content == "word2 word3 "


# -- faults


def test_unknown_models_are_not_found(client: ollama.Client) -> None:
    for call in (lambda: client.generate("no", "x"), lambda: client.chat("no", [])):
        with pytest.raises(ollama.ResponseError) as caught:
            call()
        assert (caught.value.status_code, caught.value.error) == (404, "model 'no' not found")


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("busy", 503, "server busy, please try again.  maximum pending requests exceeded"),
        ("load_failure", 500, "error loading model"),
    ],
)
def test_faults_before_an_answer_have_a_status(server: OllamaServer, fault: Fault, status: int, message: str) -> None:
    server.fault["words"] = fault
    for stream in (True, False):
        response = post(server, "/api/generate", model="words", prompt="x", stream=stream)
        assert response.status_code == status
        assert message in response.json()["error"]
    assert final(server, model="small")


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
@pytest.mark.parametrize("fault", ["stutter", "error_line"])
def test_faults_in_an_answer_come_under_200(server: OllamaServer, path: str, fault: Fault) -> None:
    server.fault["*"] = fault
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    got = lines(server, path, **body)
    assert not any(line.get("done") for line in got)
    assert ("error" in got[-1]) == (fault == "error_line")
    assert len(got) == 3 + (fault == "error_line")
    whole = post(server, path, model="words", stream=False, **body)
    if fault == "stutter":
        assert (whole.status_code, whole.json()["done"]) == (200, False)
    else:
        assert (whole.status_code, set(whole.json())) == (500, {"error"})


def test_client_sees_the_error_line(server: OllamaServer, client: ollama.Client) -> None:
    server.fault["words"] = "error_line"
    with pytest.raises(ollama.ResponseError, match="an error was encountered"):
        list(client.generate("words", "x", stream=True))


def test_saying_the_same_again_and_again_ends_the_answer_without_an_end() -> None:
    with OllamaServer(dict(MODELS), WordEngine(word="again ")) as server:
        got = lines(server, prompt="x", options={"num_predict": 60})
        assert (len(got), got[-1]["done"]) == (31, False)
        messages = [{"role": "user", "content": "x"}]
        by_engine = lines(server, "/api/chat", messages=messages, options={"num_predict": 60})
        assert by_engine[-1]["done_reason"] == "length"
        assert not lines(server, "/api/chat", model="rendered", messages=messages)[-1]["done"]


# -- loading


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({}, False),
        ({"num_predict": 7, "temperature": 0.1, "seed": 3, "num_keep": 2, "unknown": 1}, False),
        ({"num_ctx": 4096}, False),
        ({"num_batch": 512}, False),
        ({"num_gpu": -1}, False),
        ({"num_ctx": 2048}, True),
        ({"num_batch": 256}, True),
        ({"num_gpu": 0}, True),
        ({"num_thread": 2}, True),
        ({"use_mmap": False}, True),
        ({"main_gpu": 0}, True),
    ],
    ids=str,
)
def test_what_loads_again(options: dict[str, Any], again: bool) -> None:
    with OllamaServer(dict(MODELS), WordEngine(load_seconds=0.1)) as server:
        final(server)
        second = final(server, options=options)
        assert server.loads == 1 + again
        assert (second["load_duration"] >= 0.1e9) == again


def test_shift_loads_again_and_back_to_defaults_too(server: OllamaServer) -> None:
    final(server)
    final(server, shift=False)
    final(server, options={"num_ctx": 512}, shift=False)
    final(server, shift=False)
    assert server.loads == 4


def test_options_of_a_wrong_type_are_an_error(server: OllamaServer) -> None:
    for options in ({"num_ctx": "512"}, {"use_mmap": 1}, {"temperature": "x"}, {"stop": "x"}, {"seed": True}):
        response = post(server, "/api/generate", model="words", prompt="x", options=options)
        assert (response.status_code, "must be of type" in response.json()["error"]) == (500, True)


def test_context_is_the_default_or_capped(server: OllamaServer, client: ollama.Client) -> None:
    def context_of(model: str, **options: int) -> int | None:
        final(server, model=model, options=options)
        (found,) = (m for m in client.ps().models if m.model == full_name(model))
        return found.context_length

    assert context_of("words") == 4096
    assert context_of("words", num_ctx=777) == 777
    assert context_of("words", num_ctx=1) == 4
    assert context_of("small", num_ctx=1024) == 64
    loads = server.loads
    assert context_of("small", num_ctx=2048) == 64
    assert server.loads == loads  # capped, it is the same


def test_empty_prompts_load_and_unload(server: OllamaServer, client: ollama.Client) -> None:
    for load, unload in (
        (lambda: client.generate("words"), lambda: client.generate("words", keep_alive=0)),
        (lambda: client.chat("words"), lambda: client.chat("words", keep_alive=0)),
    ):
        assert load().done_reason == "load"
        assert [m.model for m in client.ps().models] == ["words:latest"]
        assert unload().done_reason == "unload"
        assert client.ps().models  # it takes a while
        wait_until_nothing_is_loaded(client)
    assert server.loads == 2
    assert set(post(server, "/api/generate", model="words").json()) == {
        "model",
        "created_at",
        "response",
        "done",
        "done_reason",
    }


def wait_until_nothing_is_loaded(client: ollama.Client) -> None:
    deadline = time.monotonic() + 5
    while client.ps().models:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_model_that_has_gone_is_loaded_anew(server: OllamaServer, client: ollama.Client) -> None:
    final(server, keep_alive=0)
    wait_until_nothing_is_loaded(client)  # it goes after its answer was sent, so the next could still find it
    final(server)
    assert server.loads == 2


def test_keep_alive_is_obeyed_and_shown(server: OllamaServer, client: ollama.Client) -> None:
    def remaining() -> float:
        (found,) = client.ps().models
        assert found.expires_at is not None
        return found.expires_at.timestamp() - time.time()

    final(server)
    assert 290 < remaining() <= 300
    final(server, keep_alive="1h")
    assert 3590 < remaining() <= 3600
    final(server, keep_alive=-1)
    assert remaining() > 1e9
    final(server, keep_alive="50ms")
    wait_until_nothing_is_loaded(client)


def test_keep_alive_is_read_as_go_reads_it(server: OllamaServer) -> None:
    assert parse_keep_alive("1h30m") == 5400
    assert parse_keep_alive("0") == parse_keep_alive(0) == 0
    assert parse_keep_alive("1.5s") == 1.5
    assert parse_keep_alive("-1m") == float("inf")
    for wrong in ("5", "-1", "five", True):
        assert post(server, "/api/generate", model="words", keep_alive=wrong).status_code == 400


def test_ps_says_what_is_on_the_gpu(server: OllamaServer, client: ollama.Client) -> None:
    final(server)
    (loaded,) = client.ps().models
    assert (loaded.size or 0) > 0
    assert loaded.size_vram == 0
    server.vram_share = 0.5
    (loaded,) = client.ps().models
    assert loaded.size_vram == (loaded.size or 0) // 2


def test_the_oldest_makes_room(client: ollama.Client, server: OllamaServer) -> None:
    for name in ("words", "thinker", "small", "rendered"):
        final(server, model=name)
    assert {m.model for m in client.ps().models} == {"thinker:latest", "small:latest", "rendered:latest"}


def test_full_queue_is_busy() -> None:
    with OllamaServer(dict(MODELS), WordEngine(load_seconds=0.5), max_queue=1) as server:
        slow = threading.Thread(target=final, args=(server,))
        slow.start()
        while not server.requests:
            time.sleep(0.01)
        time.sleep(0.1)
        assert post(server, "/api/generate", model="small", prompt="x").status_code == 503
        slow.join()
        assert final(server)["load_duration"] < 0.5e9


def test_requests_are_answered_one_after_the_other_and_reloads_wait_for_them() -> None:
    with OllamaServer(dict(MODELS), WordEngine(word_seconds=0.02, load_seconds=0.01)) as server:
        results: list[dict[str, Any]] = []

        def ask(context: int) -> None:
            results.append(final(server, options={"num_predict": 10, "num_ctx": context}))

        ask(512)
        threads = [threading.Thread(target=ask, args=(context,)) for context in (512, 512, 1024)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        for thread in threads:
            thread.join()
        assert [r["eval_count"] for r in results] == [10] * 4
        first, second, reloaded = (results[i] for i in (1, 2, 3))
        assert second["total_duration"] - second["eval_duration"] > 0.05e9 > second["load_duration"]
        assert reloaded["load_duration"] > 0.1e9 > first["load_duration"]


# -- what is installed changes


def test_pulls_with_progress(client: ollama.Client) -> None:
    with OllamaServer({}, library={"new": OllamaModel()}) as server, ollama.Client(host=server.url) as client:
        progress = list(client.pull("new", stream=True))
        assert progress[0].status == "pulling manifest"
        assert progress[-1].status == "success"
        layers = [p for p in progress if p.digest]
        assert len({p.digest for p in layers}) == 2
        assert layers[0].completed is None  # a zero is left out
        assert [p.completed for p in layers[1:5]] == [250_000, 500_000, 750_000, 1_000_000]
        assert {p.total for p in layers[:5]} == {1_000_000}
        assert client.generate("new", "x").response
        assert client.pull("new").status == "success"


def test_pulling_what_does_not_exist_is_an_error_line(server: OllamaServer, client: ollama.Client) -> None:
    got = lines(server, "/api/pull", model="nothing")
    assert got == [{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}]
    with pytest.raises(ollama.ResponseError, match="file does not exist") as caught:
        client.pull("nothing")
    assert caught.value.status_code == 500


def gguf(path: Path) -> Path:
    """A header and one tensor's name: what an import looks at."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    entries = [
        text("general.architecture") + struct.pack("<I", 8) + text("tiny"),
        text("tiny.context_length") + struct.pack("<II", 4, 96),
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("scores") + struct.pack("<IIQ", 9, 6, 2) + bytes(8),
        text("general.file_type") + struct.pack("<II", 4, 3),
    ]
    tensor = text("t") + struct.pack("<IQQIQ", 2, 30, 50, 0, 0)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entries) + tensor)
    return path


def test_reads_a_header(tmp_path: Path) -> None:
    assert read_header(gguf(tmp_path / "m.gguf")) == {
        "general.architecture": "tiny",
        "tiny.context_length": 96,
        "general.file_type": 3,
        "general.parameter_count": 1500,
    }


def test_imports_a_file(server: OllamaServer, client: ollama.Client, tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf")
    digest = client.create_blob(path)
    assert client.create_blob(path) == digest
    blobs = [r.method for r in server.requests if r.path == f"/api/blobs/{digest}"]
    assert blobs == ["POST", "POST"]
    assert requests.head(f"{server.url}/api/blobs/{digest}", timeout=5).status_code == 200
    created = client.create("mine", files={"m.gguf": digest}, parameters={"num_ctx": 80}, stream=True)
    assert [p.status for p in created][-2:] == ["writing manifest", "success"]
    shown = client.show("mine")
    assert shown.details is not None
    assert (shown.details.quantization_level, shown.details.parameter_size) == ("Q4_1", "1.5K")
    assert client.generate("mine", "x").response
    assert client.ps().models[0].context_length == 80
    assert client.create("yours", from_="mine").status == "success"


def test_uploads_must_be_what_they_are_called(server: OllamaServer, client: ollama.Client, tmp_path: Path) -> None:
    right = f"sha256:{hashlib.sha256(b'text').hexdigest()}"
    assert requests.head(f"{server.url}/api/blobs/{right}", timeout=5).status_code == 404
    assert requests.post(f"{server.url}/api/blobs/{right}", data=b"other", timeout=5).status_code == 400
    assert requests.post(f"{server.url}/api/blobs/../x", data=b"other", timeout=5).status_code == 404
    assert requests.post(f"{server.url}/api/blobs/sha256:..", data=b"other", timeout=5).status_code == 400
    chunked = requests.post(f"{server.url}/api/blobs/{right}", data=iter([b"te", b"xt"]), timeout=5)
    assert chunked.status_code == 201
    for files, message in (({"a": right}, "not in GGUF format"), ({"a": f"sha256:{'0' * 64}"}, "no such file")):
        with pytest.raises(ollama.ResponseError, match=message):
            client.create("mine", files=files)
    with pytest.raises(ollama.ResponseError, match="neither 'from' or 'files'"):
        client.create("mine")


# -- leaving


def test_a_client_that_leaves_ends_its_answer() -> None:
    with OllamaServer(dict(MODELS), WordEngine(word_seconds=0.05)) as server:
        body = {"model": "words", "prompt": "x"}
        with requests.post(f"{server.url}/api/generate", json=body, stream=True, timeout=5) as response:
            next(response.iter_lines(chunk_size=1))
        started = time.monotonic()
        assert final(server, options={"num_predict": 1})
        assert time.monotonic() - started < 2  # two hundred words take ten seconds


def test_ends_while_it_answers() -> None:
    before = threading.active_count()
    with OllamaServer(dict(MODELS), WordEngine(word_seconds=0.5)) as server, requests.Session() as session:
        body = {"model": "words", "prompt": "x", "stream": False}

        def ask() -> None:
            with pytest.raises(requests.RequestException):
                session.post(f"{server.url}/api/generate", json=body, timeout=20)

        thread = threading.Thread(target=ask)
        thread.start()
        while server.loads < 1:
            time.sleep(0.01)
        started = time.monotonic()
    thread.join()
    assert time.monotonic() - started < 2
    assert threading.active_count() == before


def test_remembers_requests(server: OllamaServer) -> None:
    final(server, prompt="remember me")
    (request,) = server.requests_to("/api/generate")
    assert (request.method, request.body["prompt"]) == ("POST", "remember me")
    deadline = time.monotonic() + 5
    while request.t_end is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert request.t_end is not None
    assert request.t_end > request.t_begin


# -- as a process


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.servers.ollama_server", "serve", *arguments]
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        command, cwd=root, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def test_serves_as_a_process_until_sigterm(tmp_path: Path) -> None:
    environment = {"OLLAMA_HOST": "127.0.0.1:0", "OLLAMA_CONTEXT_LENGTH": "123", "TMPDIR": str(tmp_path)}
    with process("--words", "fake", "--words", "other", OLLAMA_KEEP_ALIVE="1m", **environment) as child:
        assert child.stderr is not None
        address = child.stderr.readline().split()[2]
        with ollama.Client(host=f"http://{address}") as client:
            assert [m.model for m in client.list().models] == ["fake:latest", "other:latest"]
            assert client.generate("fake", "x").response
            (loaded,) = client.ps().models
            assert loaded.context_length == 123
            child.send_signal(signal.SIGTERM)
            assert child.wait(5) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with process("--words", "fake", OLLAMA_HOST=f"http://127.0.0.1:{port}", TMPDIR=str(tmp_path)) as child:
            assert child.wait(10) == 1
            assert child.stderr is not None
            assert "address already in use" in child.stderr.read()
    assert list(tmp_path.iterdir()) == []
