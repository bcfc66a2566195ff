"""The Ollama backend against a test server that speaks Ollama's API. Nothing here is a run on Ollama."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from pytest_llmbench.backends.base import StartRequest
from pytest_llmbench.backends.ollama import OllamaBackend, OllamaServer, _make_room, _offload
from pytest_llmbench.backends.ollama_control import LoadedModel, OllamaControl, canonical, same_name
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import send
from pytest_llmbench.client.timings import was_reloaded
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.records import FLAGS
from pytest_llmbench.errors import CellError, ModelNotDownloaded, ServerError
from tests.servers.ollama_server import OllamaModel, WordEngine
from tests.servers.ollama_server import OllamaServer as StandIn

ROOT = Path(__file__).parents[3]
Answer = tuple[int, bytes]


def request_for(tmp_path: Path, url: str | None = None, name: str = "tiny", **changes: Any) -> StartRequest:
    of_request = ("model_path", "may_download", "progress", "quantization")
    given: dict[str, Any] = {"model_path": None, **{key: changes.pop(key) for key in of_request if key in changes}}
    fields: dict[str, Any] = {"kind": "ollama", "label": "tiny", "model_name": name, "base_url": url}
    spec = ServerSpec(**{**fields, "context_size": 2048, "max_load_seconds": 10.0, **changes})
    return StartRequest(spec, log_stem=tmp_path / "logs" / "tiny", **given)


@contextmanager
def running(request: StartRequest) -> Iterator[OllamaServer]:
    server = OllamaBackend().start(request)
    assert isinstance(server, OllamaServer)
    try:
        yield server
    finally:
        server.stop()


def refused(request: StartRequest) -> CellError:
    """What comes of a start that has to fail."""
    with pytest.raises(CellError) as caught:
        OllamaBackend().start(request)
    return caught.value


def in_memory(server: StandIn) -> list[str]:
    return [model["name"] for model in requests.get(f"{server.url}/api/ps", timeout=5).json()["models"]]


def bodies(server: StandIn, path: str) -> list[dict[str, Any]]:
    return [request.body for request in server.requests_to(path)]


def gguf(path: Path, **metadata: int) -> Path:
    """A GGUF file with a header and nothing else; the word engine does not look into it."""
    entries = [struct.pack("<Q", len(key)) + key.encode() + struct.pack("<II", 4, n) for key, n in metadata.items()]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries))
    return path


@contextmanager
def answering(answers: Mapping[str, Answer]) -> Iterator[tuple[str, list[tuple[str, Mapping[str, str]]]]]:
    """A web server with a fixed answer per path; gives its address and what was asked, with the headers."""
    seen: list[tuple[str, Mapping[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, dict(self.headers)))
            asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = answers.get(self.path, (404, b"<html>nothing here</html>"))
            if b'"prompt": "' in asked and status == 200 and b'"response"' in body:
                body = b'{"response": "It is "}\n' + body  # a prompt is answered as a stream
            self.send_response(status)
            self.send_header(
                "Content-Type", "application/x-ndjson" if self.path == "/api/generate" else "application/json"
            )
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 -- the name is the base class's

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", seen
        finally:
            server.shutdown()
            thread.join()


def as_json(value: Any) -> Answer:
    return 200, json.dumps(value).encode() + b"\n"


OLLAMA: dict[str, Answer] = {
    "/api/version": as_json({"version": "0.33.0"}),
    "/api/tags": as_json({"models": [{"name": "tiny:latest", "model": "tiny:latest"}]}),
    "/api/show": as_json({"details": {}, "model_info": {}, "capabilities": ["completion"]}),
    "/api/ps": as_json({"models": []}),
    "/api/generate": as_json(
        {"model": "tiny", "response": "four", "done": True, "done_reason": "length", "eval_count": 8}
    ),
}


# -- a server that runs already


def test_a_running_server(tmp_path: Path) -> None:
    with StandIn({"tiny": OllamaModel()}) as served:
        with running(request_for(tmp_path, served.url, threads=2)) as server:
            assert server.alive
            assert server.identity() is None  # nothing tells a restart of a server that is not ours
            assert server.endpoint.protocol == "ollama_generate"
            assert server.endpoint.model == "tiny"
            assert server.endpoint.base_url == served.url
            assert (server.info.kind, server.info.version) == ("ollama", served.version)
            assert server.info.context_size == 2048
            assert server.info.load_seconds is not None
            assert server.info.load_seconds >= WordEngine.load_seconds
            assert server.info.pid is None
            assert server.info.args["quantization"] == "F16"
            assert server.info.args["size_vram_bytes"] == 0
            assert int(str(server.info.args["size_bytes"])) > 1_000_000
            assert server.flags == ()
            assert any("takes no token ids" in note for note in server.notes)
            assert not any("does not tell its own times" in note for note in server.notes)
            assert in_memory(served) == ["tiny:latest"]
        assert in_memory(served) == []
        server.stop()  # again


def test_no_request_reloads_the_model(tmp_path: Path) -> None:
    """Every request carries the runner options of the load: the server's default context would be another."""
    with (
        StandIn({"tiny": OllamaModel()}) as served,
        running(request_for(tmp_path, served.url, threads=1, gpu_layers=0)) as server,
    ):
        records = [
            send(server.endpoint, Generation(20, prompt="Count.")),
            send(server.endpoint, Generation(20, messages=({"role": "user", "content": "Count."},))),
            send(server.endpoint, Generation(20, prompt="Count.", temperature=0.7, seed=7)),
        ]
        assert [record.error for record in records] == [None] * 3
        assert [record.output_tokens for record in records] == [20] * 3
        assert not any(was_reloaded(record.server_timings) for record in records)
        assert served.loads == 1
        for body in bodies(served, "/api/generate") + bodies(served, "/api/chat"):
            assert {key: body["options"][key] for key in ("num_ctx", "num_thread", "num_gpu")} == {
                "num_ctx": 2048,
                "num_thread": 1,
                "num_gpu": 0,
            }
            assert body["keep_alive"] == "30m"


def test_an_overlong_prompt_is_refused_instead_of_cut(tmp_path: Path) -> None:
    with (
        StandIn({"tiny": OllamaModel()}) as served,
        running(request_for(tmp_path, served.url, context_size=64)) as server,
    ):
        assert not send(server.endpoint, Generation(8, prompt="word " * 200)).ok


def test_context_beyond_the_trained_one(tmp_path: Path) -> None:
    with StandIn({"tiny": OllamaModel(trained_context=1024)}) as served:
        error = refused(request_for(tmp_path, served.url))
        assert error.code == "context_mismatch"
        assert error.evidence == {"asked_tokens": 2048, "actual_tokens": 1024}
        assert in_memory(served) == []  # a start that fails leaves nothing behind


def test_no_context_asked_for(tmp_path: Path) -> None:
    with (
        StandIn({"tiny": OllamaModel()}, context_length=8192) as served,
        running(request_for(tmp_path, served.url, context_size=None)) as server,
    ):
        assert server.info.context_size == 8192
        assert any("chose 8192 tokens" in note for note in server.notes)
        assert send(server.endpoint, Generation(8, prompt="Count.")).ok
        assert served.loads == 1


@pytest.mark.parametrize(
    ("name", "mode", "protocol"),
    [
        ("tiny", "auto", "ollama_generate"),
        ("tiny", "force", "ollama_chat"),
        ("gpt-oss:20b", "auto", "ollama_chat"),
        ("somebody/GPT-OSS-20b-GGUF:Q4_K_M", "auto", "ollama_chat"),
        ("me/not-gpt-oss", "auto", "ollama_generate"),
        ("gpt-oss:20b", None, "ollama_chat"),
    ],
)
def test_the_chat_route(tmp_path: Path, name: str, mode: str | None, protocol: str) -> None:
    with (
        StandIn({name: OllamaModel()}) as served,
        running(request_for(tmp_path, served.url, name, chat_mode=mode)) as server,
    ):
        assert server.endpoint.protocol == protocol
        assert server.endpoint.chat_protocol == "ollama_chat"


def test_gpt_oss_says_nothing_without_the_chat_route(tmp_path: Path) -> None:
    with StandIn({"gpt-oss:20b": OllamaModel()}) as served:
        assert refused(request_for(tmp_path, served.url, "gpt-oss:20b", chat_mode="off")).code == "empty_answer"
        assert in_memory(served) == []


@pytest.mark.parametrize(
    ("name", "pieces", "think", "note"),
    [
        ("tiny", 0, None, None),
        ("thinker", 5, False, "think: false"),
        ("gpt-oss:20b", 5, "low", "think: low"),
    ],
)
def test_reasoning(tmp_path: Path, name: str, pieces: int, think: object, note: str | None) -> None:
    """A model that can reason does so unless told not to; one that can not would refuse to be told."""
    with (
        StandIn({name: OllamaModel(thinking_pieces=pieces)}) as served,
        running(request_for(tmp_path, served.url, name)) as server,
    ):
        record = send(server.endpoint, Generation(20, prompt="Count."))
        assert record.error is None
        assert bool(record.reasoning) is (think == "low")
        assert server.endpoint.extra.get("think") == think
        assert server.info.args.get("think") == think
        assert any(note in text for text in server.notes) if note else not any("think" in t for t in server.notes)


# -- memory


def test_other_models_in_memory_are_told_and_left_alone(tmp_path: Path) -> None:
    with StandIn({"tiny": OllamaModel(), "big": OllamaModel()}) as served:
        requests.post(
            f"{served.url}/api/generate", json={"model": "big", "options": {"num_ctx": 30_000_000}}, timeout=5
        )
        with running(request_for(tmp_path, served.url)) as server:
            assert any("big:latest (3.0 GB)" in note for note in server.notes)
        assert in_memory(served) == ["big:latest"]


def test_a_model_that_is_in_memory_is_loaded_anew(tmp_path: Path) -> None:
    with StandIn({"tiny": OllamaModel()}) as served:
        requests.post(f"{served.url}/api/generate", json={"model": "tiny", "options": {"num_ctx": 2048}}, timeout=5)
        with running(request_for(tmp_path, served.url)) as server:
            assert served.loads == 2
            assert server.info.load_seconds is not None
            assert server.info.load_seconds >= WordEngine.load_seconds
            assert any("loaded anew" in note for note in server.notes)


@pytest.mark.parametrize("ours", [False, True])
def test_only_a_server_of_our_own_is_cleared_of_other_models(ours: bool) -> None:
    with StandIn({"tiny": OllamaModel(), "big": OllamaModel()}) as served:
        for name in ("tiny", "big"):
            requests.post(f"{served.url}/api/generate", json={"model": name}, timeout=5)
        control = OllamaControl(served.url)
        notes = _make_room(control, "tiny", ours=ours)
        control.close()
        assert in_memory(served) == ([] if ours else ["big:latest"])
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("vram_share", "gpu_layers", "flags"),
    [
        (0.0, None, ()),  # no GPU, none asked for
        (0.0, 0, ()),
        (0.0, 99, ("partial_gpu_offload",)),  # on a GPU in name only
        (0.6, None, ("partial_gpu_offload",)),
        (0.6, 99, ("partial_gpu_offload",)),
        (0.6, 0, ()),
        (1.0, None, ()),
        (1.0, 99, ()),
    ],
)
def test_falling_back_to_the_cpu_is_a_doubt(
    tmp_path: Path, vram_share: float, gpu_layers: int | None, flags: tuple[str, ...]
) -> None:
    with (
        StandIn({"tiny": OllamaModel()}, vram_share=vram_share) as served,
        running(request_for(tmp_path, served.url, gpu_layers=gpu_layers)) as server,
    ):
        assert server.flags == flags
        assert any("on the CPU" in note for note in server.notes) is bool(flags)


@pytest.mark.parametrize(("gpu_layers", "flagged"), [(10, False), (24, False), (25, True)])
def test_layers_kept_off_the_gpu_on_purpose_are_no_doubt(tmp_path: Path, gpu_layers: int, flagged: bool) -> None:
    show = {"model_info": {"general.architecture": "llama", "llama.block_count": 24}}
    with answering({"/api/show": as_json(show)}) as (url, _):
        control = OllamaControl(url)
        facts = control.show("tiny")
        control.close()
    spec = request_for(tmp_path, gpu_layers=gpu_layers).spec
    flags, notes = _offload(spec, facts, LoadedModel("tiny", 1000, 400, 2048, None))
    assert (flags == ("partial_gpu_offload",)) is flagged
    assert "40 %" in notes[0]


def test_every_flag_is_one_of_the_list() -> None:
    assert "partial_gpu_offload" in FLAGS


def test_a_server_that_is_gone_does_not_disturb_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with StandIn({"tiny": OllamaModel()}) as served:
        server = OllamaBackend().start(request_for(tmp_path, served.url))
    with caplog.at_level(logging.WARNING):
        server.stop()
    assert "may be left in memory" in caplog.text


# -- where the model comes from


def test_a_missing_model_is_downloaded(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int | None]] = []
    with (
        StandIn({}, library={"tiny": OllamaModel()}) as served,
        running(request_for(tmp_path, served.url, progress=lambda *step: steps.append(step))) as server,
    ):
        assert server.info.load_seconds is not None
        assert {what for what, _, _ in steps} == {"downloading tiny"}
        assert steps[0][2] is None  # the manifest tells how much there is
        assert steps[-1][1:] == (1_000_487, 1_000_487)
        assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


def test_a_model_that_the_registry_does_not_have(tmp_path: Path) -> None:
    with StandIn({"tiny:135m": OllamaModel()}) as served:
        error = refused(request_for(tmp_path, served.url, "tiny:136m"))
    assert (type(error), error.code) == (ServerError, "model_missing")
    assert "did you mean 'tiny:135m'?" in error.message


def test_a_missing_model_without_downloads_is_skipped(tmp_path: Path) -> None:
    with StandIn({"tiny:135m": OllamaModel()}, library={"tiny": OllamaModel()}) as served:
        error = refused(request_for(tmp_path, served.url, may_download=False))
        assert not served.requests_to("/api/pull")
    assert (type(error), error.code) == (ModelNotDownloaded, "model_missing")
    assert "ollama pull tiny" in error.message
    assert "tiny:135m" in error.message


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"status": "pulling manifest"}], "broke off"),
        ([{"error": 'Get "https://registry.ollama.ai/v2/": dial tcp: no such host'}], "no such host"),
        ([{"status": "pulling", "digest": "sha256:1", "total": 9}, {"error": "no space left on device"}], "no space"),
    ],
)
def test_a_download_that_breaks(tmp_path: Path, lines: list[dict[str, Any]], said: str) -> None:
    stream = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    with answering({**OLLAMA, "/api/tags": as_json({"models": []}), "/api/pull": (200, stream)}) as (url, _):
        error = refused(request_for(tmp_path, url))
    assert error.code == "download_failed"
    assert said in error.message


def test_a_local_file_is_imported_once(tmp_path: Path) -> None:
    path = gguf(tmp_path / "tiny.Q4_1.gguf")
    with StandIn({}) as served:
        with running(request_for(tmp_path, served.url, "tiny-q4_1", model_path=path)) as server:
            assert any("imported as tiny-q4_1 and stays there" in note for note in server.notes)
        uploads = [request for request in served.requests if request.path.startswith("/api/blobs/")]
        assert [request.method for request in uploads] == ["HEAD", "POST"]
        with running(request_for(tmp_path, served.url, "Tiny-Q4_1:latest", model_path=path)) as server:
            assert any("was there already" in note for note in server.notes)
        assert len(served.requests_to("/api/create")) == 1
        assert len([r for r in served.requests if r.path.startswith("/api/blobs/")]) == 2


def test_a_file_that_was_uploaded_before_is_not_uploaded_again(tmp_path: Path) -> None:
    path = gguf(tmp_path / "tiny.gguf")
    with StandIn({}) as served:
        for name in ("one", "two"):
            OllamaBackend().start(request_for(tmp_path, served.url, name, model_path=path)).stop()
        methods = [request.method for request in served.requests if request.path.startswith("/api/blobs/")]
    assert methods == ["HEAD", "POST", "HEAD"]


def test_a_file_that_is_newer_than_its_import_is_imported_again(tmp_path: Path) -> None:
    path = gguf(tmp_path / "tiny.gguf")
    with StandIn({"tiny": OllamaModel()}) as served:
        path.write_bytes(path.read_bytes())
        with running(request_for(tmp_path, served.url, model_path=path)) as server:
            assert any("was imported" in note for note in server.notes)
        assert len(served.requests_to("/api/create")) == 1


def test_a_split_file_is_given_whole(tmp_path: Path) -> None:
    first, second = (gguf(tmp_path / f"big-0000{number}-of-00002.gguf") for number in (1, 2))
    with StandIn({}) as served, running(request_for(tmp_path, served.url, model_path=first)):
        (body,) = bodies(served, "/api/create")
    assert set(body["files"]) == {first.name, second.name}


@pytest.mark.parametrize("content", [b"not a model", None], ids=["other", "absent"])
def test_a_file_that_can_not_be_imported(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tiny.gguf"
    if content is not None:
        path.write_bytes(content)
    with StandIn({}) as served:
        error = refused(request_for(tmp_path, served.url, model_path=path))
    assert error.code == "import_failed"
    assert "tiny.gguf" in error.message


def test_another_model_of_that_name(tmp_path: Path) -> None:
    path = gguf(tmp_path / "tiny.gguf", **{"general.file_type": 15})
    with StandIn({"tiny": OllamaModel()}) as served:
        error = refused(request_for(tmp_path, served.url, model_path=path))
        assert served.loads == 0
    assert error.code == "server_mismatch"
    assert error.evidence == {"what": "quantization", "served": "F16", "file": "Q4_K_M"}


@pytest.mark.parametrize(
    ("listed", "served", "code"),
    [
        ("F16", "F16", None),
        ("Q4_K_M", "Q4_K_M", None),
        ("Q4_K_M", "unknown", None),
        ("UD-Q4_K_XL", "Q4_K_M", None),  # no type of llama.cpp: not judged
        ("Q8_0", "Q4_K_M", "wrong_quantization"),
    ],
)
def test_the_quantization_behind_a_name(tmp_path: Path, listed: str, served: str, code: str | None) -> None:
    show = {"details": {"quantization_level": served}, "model_info": {}}
    with answering({**OLLAMA, "/api/show": as_json(show)}) as (url, _):
        error = refused(request_for(tmp_path, url, quantization=listed))
    assert error.code == (code or "model_not_loaded")


def test_names() -> None:
    assert canonical("tiny") == "tiny:latest"
    assert canonical("registry.ollama.ai/library/tiny:1b") == "tiny:1b"
    assert canonical("hf.co:443/me/tiny") == "hf.co:443/me/tiny:latest"
    assert same_name("Tiny", "tiny:LATEST")
    assert not same_name("me/tiny", "tiny")


# -- what can be wrong with a server


@pytest.mark.parametrize(
    ("version", "code"),
    [
        ((404, b"<html>"), "not_an_llm_server"),
        ((200, b"<html>welcome</html>"), "not_an_llm_server"),
        (as_json({"build": 7}), "not_an_llm_server"),
        (as_json([]), "not_an_llm_server"),
        (as_json({"version": 7}), "not_an_llm_server"),
        ((401, b"who are you?"), "wrong_key"),
    ],
    ids=["404", "html", "no version", "list", "number", "401"],
)
def test_something_else_listens_there(tmp_path: Path, version: Answer, code: str) -> None:
    with answering({"/api/version": version}) as (url, _):
        error = refused(request_for(tmp_path, url))
    assert (type(error), error.code) == (ServerError, code)
    assert url in error.message


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert refused(request_for(tmp_path, url)).code in {"connection_refused", "unreachable"}


def test_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_llmbench.backends.ollama._ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert refused(request_for(tmp_path, f"http://127.0.0.1:{listener.getsockname()[1]}")).code == "timeout"


def test_no_tls_there(tmp_path: Path) -> None:
    with answering(OLLAMA) as (url, _):
        assert refused(request_for(tmp_path, url.replace("http:", "https:"))).code == "tls_failed"


@pytest.mark.parametrize("path", ["/api/tags", "/api/show", "/api/ps", "/api/generate"])
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((200, b"<html>"), "bad_response"),
        ((200, b"[1]"), "bad_response"),
        ((200, b'"text"'), "bad_response"),
        ((200, b"\xff\xfe"), "bad_response"),
        ((500, b"[]"), "bad_response"),
        ((301, b""), "http_error"),
        ((403, b'{"error": "no"}'), "wrong_key"),
        ((503, b'{"error": "server busy, please try again."}'), "server_busy"),
    ],
    ids=["html", "list", "text", "bytes", "error list", "moved", "forbidden", "busy"],
)
def test_answers_that_are_none(tmp_path: Path, path: str, answer: Answer, code: str) -> None:
    """Whatever the official client makes of them, only ServerErrors leave the backend."""
    with answering({**OLLAMA, path: answer}) as (url, _):
        error = refused(request_for(tmp_path, url))
    expected = "model_load_failed" if (path, code) == ("/api/generate", "http_error") else code
    assert (type(error), error.code) == (ServerError, expected)


def test_a_model_that_runs_elsewhere(tmp_path: Path) -> None:
    with answering(OLLAMA) as (url, _):
        error = refused(request_for(tmp_path, url))
    assert error.code == "model_not_loaded"
    assert "cloud" in error.message


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [("load_failure", "model_load_failed", "unable to allocate"), ("busy", "server_busy", "maximum pending")],
)
def test_a_model_that_does_not_load(tmp_path: Path, fault: Any, code: str, said: str) -> None:
    with StandIn({"tiny": OllamaModel()}, fault={"tiny": fault}) as served:
        error = refused(request_for(tmp_path, served.url))
    assert error.code == code
    assert said in error.message
    assert all(isinstance(value, (str, int)) for value in error.evidence.values())


def test_a_load_that_takes_too_long(tmp_path: Path) -> None:
    with StandIn({"tiny": OllamaModel()}, WordEngine(load_seconds=1.0)) as served:
        error = refused(request_for(tmp_path, served.url, max_load_seconds=0.2))
    assert error.code == "server_start_timeout"
    assert "limits.max_load_time" in error.message


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official client would send the key of ollama.com to any server."""
    monkeypatch.setenv("OLLAMA_API_KEY", "for ollama.com alone")
    monkeypatch.setenv("MY_KEY", "mine")
    for variable, sent in ((None, None), ("MY_KEY", "Bearer mine")):
        with answering(OLLAMA) as (url, seen):
            error = refused(request_for(tmp_path, url, api_key_env=variable))
        assert error.code == "model_not_loaded"  # it got that far
        assert {headers.get("Authorization", headers.get("authorization")) for _, headers in seen} == {sent}


def test_a_key_that_is_not_set(tmp_path: Path) -> None:
    error = refused(request_for(tmp_path, "http://127.0.0.1:9", api_key_env="NO_SUCH_VARIABLE"))
    assert error.code == "wrong_key"
    assert "NO_SUCH_VARIABLE" in error.message


def test_proxies_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with StandIn({"tiny": OllamaModel()}) as served, running(request_for(tmp_path, served.url)) as server:
        assert server.info.context_size == 2048


# -- a server of our own


@pytest.fixture
def fake_ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``ollama`` on PATH is the test server; its environment is written to a file. Returns that file."""
    seen, folder = tmp_path / "environment.json", tmp_path / "bin"
    folder.mkdir()
    script = folder / "ollama"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"open({str(seen)!r}, 'w').write(json.dumps({{**os.environ, 'PID': os.getpid()}}))\n"
        "from tests.servers.ollama_server import main\n"
        "sys.exit(main([*sys.argv[1:], '--words', 'tiny']))\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return seen


def test_a_server_of_our_own(tmp_path: Path, fake_ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", "/models/of/the/user")
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", "4")
    with running(request_for(tmp_path, start_server=True)) as server:
        pid = server.info.pid
        assert pid is not None
        assert str(server.identity()).startswith(f"{pid}@")
        assert server.alive
        assert send(server.endpoint, Generation(8, prompt="Count.")).ok
        seen = json.loads(fake_ollama.read_text())
        assert f"http://{seen['OLLAMA_HOST']}" == server.endpoint.base_url
        assert seen["OLLAMA_HOST"].startswith("127.0.0.1:")
        assert seen["OLLAMA_NUM_PARALLEL"] == seen["OLLAMA_MAX_LOADED_MODELS"] == seen["OLLAMA_NOPRUNE"] == "1"
        assert seen["OLLAMA_MODELS"] == "/models/of/the/user"
        assert "OLLAMA_KV_CACHE_TYPE" not in seen
        assert "OLLAMA_MODELS=/models/of/the/user" in str(server.info.args["environment"])
    assert not psutil.pid_exists(pid)
    assert server.identity() is None
    assert "Listening" in (tmp_path / "logs" / "tiny_stderr.log").read_text()


def test_the_type_of_the_cache(tmp_path: Path, fake_ollama: Path) -> None:
    with running(request_for(tmp_path, start_server=True, cache_type_k="q8_0", cache_type_v="q8_0")):
        seen = json.loads(fake_ollama.read_text())
    assert (seen["OLLAMA_KV_CACHE_TYPE"], seen["OLLAMA_FLASH_ATTENTION"]) == ("q8_0", "1")


@pytest.mark.parametrize(
    "changes",
    [
        {"start_server": True, "cache_type_k": "q8_0"},
        {"start_server": True, "cache_type_k": "q8_0", "cache_type_v": "f16"},
        {"cache_type_k": "q8_0", "cache_type_v": "q8_0"},
    ],
    ids=["half", "different", "running"],
)
def test_a_type_of_the_cache_that_can_not_be_had(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert refused(request_for(tmp_path, "http://127.0.0.1:9", **changes)).code == "unsupported_option"


def test_no_ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused(request_for(tmp_path, start_server=True))
    assert error.code == "engine_missing"
    assert "ollama.com/download" in error.message


def test_a_server_of_our_own_that_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ollama"
    script.write_text("#!/bin/sh\necho 'Error: no permission for the models' >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    error = refused(request_for(tmp_path, start_server=True))
    assert error.code == "server_start_failed"
    assert error.evidence["exit_status"] == 3
    assert "no permission" in error.message


def test_a_server_of_our_own_that_ends_while_loading(
    tmp_path: Path, fake_ollama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> float:
        os.kill(int(json.loads(fake_ollama.read_text())["PID"]), signal.SIGKILL)
        raise ServerError("unreachable", "the connection broke")

    monkeypatch.setattr(OllamaControl, "load", load)
    error = refused(request_for(tmp_path, start_server=True))
    assert error.code == "server_start_failed"
    assert error.evidence["exit_status"] == -signal.SIGKILL


def test_a_server_of_our_own_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ollama"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    error = refused(request_for(tmp_path, start_server=True, max_load_seconds=0.5))
    assert error.code == "server_start_timeout"
    assert not [p for p in psutil.Process().children(recursive=True) if p.name() == "sleep"]


def test_the_death_of_a_server_of_our_own(tmp_path: Path, fake_ollama: Path) -> None:
    with running(request_for(tmp_path, start_server=True)) as server:
        assert server.info.pid is not None
        psutil.Process(server.info.pid).kill()
        deadline = time.monotonic() + 5
        while server.alive and time.monotonic() < deadline:
            time.sleep(0.01)
        error = server.death()
    assert error.code == "server_died"
    assert "SIGKILL" in error.message
