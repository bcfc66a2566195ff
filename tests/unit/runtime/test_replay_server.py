"""The replay server: what it says on the wire, and whether what it tells of its own times is true."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llmbench.runtime.replay import ReplayServer, TrueTimes
from pytest_llmbench.runtime.replay_dialects import WORDS, Truth
from pytest_llmbench.runtime.replay_server import Memory, Timing, clock_name

TTFT_MS, GAP_MS = 20.0, 4.0
SAYING = [WORDS[index % len(WORDS)] for index in range(12)]


@pytest.fixture(scope="module")
def server() -> Iterator[ReplayServer]:
    with ReplayServer(ttft_ms=TTFT_MS, gap_ms=GAP_MS) as running:
        yield running


@pytest.fixture
def client(server: ReplayServer) -> Iterator[http.client.HTTPConnection]:
    server.reset()
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    yield connection
    connection.close()


def post(client: http.client.HTTPConnection, path: str, **body: Any) -> http.client.HTTPResponse:
    client.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return client.getresponse()


def sse(answer: http.client.HTTPResponse) -> list[Any]:
    """The data of each event, read as JSON but for the last mark."""
    assert answer.headers["Content-Type"] == "text/event-stream"
    events = answer.read().decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    return [event if event == "data: [DONE]" else json.loads(event[6:]) for event in events]


def only_truth(server: ReplayServer) -> TrueTimes:
    (truth,) = server.truth()
    return truth


def test_chat(server: ReplayServer, client: http.client.HTTPConnection) -> None:
    messages = [{"role": "user", "content": "three words here"}]
    options = {"include_usage": True}
    answer = post(
        client,
        "/v1/chat/completions",
        model="some",
        messages=messages,
        max_tokens=12,
        stream=True,
        stream_options=options,
    )
    role, *tokens, end, usage, done = sse(answer)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [event["choices"][0]["delta"]["content"] for event in tokens] == SAYING
    assert end["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}
    assert done == "data: [DONE]"
    truth = only_truth(server)
    assert {event["id"] for event in (role, *tokens, end, usage)} == {truth.id}
    assert answer.headers["X-Request-Id"] == truth.id
    assert {event["model"] for event in (role, *tokens)} == {"some"}
    assert (truth.path, truth.planned, truth.written, truth.complete) == ("/v1/chat/completions", 12, 12, True)
    assert len(truth.t_write_ns) == 12


def test_chat_without_usage(client: http.client.HTTPConnection) -> None:
    events = sse(post(client, "/v1/chat/completions", messages=[], max_completion_tokens=1, stream=True))
    assert len(events) == 4  # role, token, end, [DONE]
    assert not any("usage" in event for event in events[:-1])


def test_completions(server: ReplayServer, client: http.client.HTTPConnection) -> None:
    *tokens, end, done = sse(post(client, "/v1/completions", prompt=[5, 6], max_tokens=12, stream=True))
    assert [event["choices"][0]["text"] for event in tokens] == SAYING
    assert end["choices"][0]["finish_reason"] == "length"
    assert done == "data: [DONE]"
    assert tokens[0]["id"] == only_truth(server).id


def test_llama_cpp(server: ReplayServer, client: http.client.HTTPConnection) -> None:
    answer = post(client, "/completion", prompt="a b", n_predict=12, stream=True)
    *tokens, end = sse(answer)
    assert [(event["content"], event["stop"]) for event in tokens] == [(text, False) for text in SAYING]
    assert (end["content"], end["stop"], end["stop_type"]) == ("", True, "limit")
    assert (end["tokens_evaluated"], end["tokens_predicted"]) == (2, 12)
    truth = only_truth(server)
    assert answer.headers["X-Request-Id"] == truth.id
    assert truth.ttft_seconds is not None
    assert end["timings"]["prompt_ms"] == pytest.approx(1e3 * truth.ttft_seconds)
    assert end["timings"]["predicted_ms"] == pytest.approx(sum(truth.gaps_ns) / 1e6)


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_ollama(server: ReplayServer, client: http.client.HTTPConnection, path: str) -> None:
    answer = post(client, path, model="m", prompt="a", messages=[], options={"num_predict": 12})
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    *tokens, end = map(json.loads, answer.read().splitlines())
    texts = [event["response"] if path == "/api/generate" else event["message"]["content"] for event in tokens]
    assert texts == SAYING
    assert not any(event["done"] for event in tokens)
    assert (end["done"], end["done_reason"], end["eval_count"], end["prompt_eval_count"]) == (True, "length", 12, 1)
    truth = only_truth(server)
    assert end["prompt_eval_duration"] == truth.t_write_ns[0] - truth.t_request_read_ns
    assert end["eval_duration"] == sum(truth.gaps_ns)


def test_an_answer_in_one_piece(server: ReplayServer, client: http.client.HTTPConnection) -> None:
    answer = json.loads(post(client, "/v1/chat/completions", messages=[], max_tokens=12).read())
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == "".join(SAYING)
    truth = only_truth(server)
    assert truth.ttft_seconds is not None
    assert truth.ttft_seconds >= (TTFT_MS + 11 * GAP_MS) / 1e3


def test_connections_are_kept_unless_asked_otherwise(server: ReplayServer, client: http.client.HTTPConnection) -> None:
    post(client, "/v1/completions", max_tokens=1, stream=True).read()
    first = client.sock.getsockname()
    post(client, "/v1/completions", max_tokens=1, stream=True).read()
    assert client.sock.getsockname() == first
    headers = {"Connection": "close", "X-Request-Id": "mine"}
    client.request("POST", "/v1/completions", '{"max_tokens": 1, "stream": true}', headers)
    answer = client.getresponse()
    assert answer.headers["Connection"] == "close"
    assert answer.read().endswith(b"[DONE]\n\n")
    assert client.sock is None  # http.client closed it because it was told to
    assert [truth.client_id for truth in server.truth()] == [None, None, "mine"]


def test_one_chunk_per_event_and_the_role_before_the_first_token(server: ReplayServer) -> None:
    """What http.client hides."""
    host, port = server.url.removeprefix("http://").split(":")
    body = b'{"max_tokens": 2, "stream": true}'
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        received = connection.recv(65536)
        assert b'"role":"assistant"' in received
        while data := connection.recv(65536):
            received += data
    head_bytes, _, rest = received.partition(b"\r\n\r\n")
    assert head_bytes.startswith(b"HTTP/1.1 200 OK\r\n")
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        assert rest[int(size, 16) :][:2] == b"\r\n"
        rest = rest[int(size, 16) + 2 :]
    assert chunks.pop() == b""
    assert len(chunks) == 5  # role, two tokens, end, [DONE]
    assert all(piece.startswith(b"data: ") and piece.endswith(b"\n\n") for piece in chunks)


def test_requests_in_one_packet_are_answered_in_turn(server: ReplayServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    server.reset()
    body = b'{"n_predict": 1, "stream": true}'
    request = b"POST /completion HTTP/1.1\r\nContent-Length: %d\r\n" % len(body)
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request + b"\r\n" + body + request + b"Connection: close\r\n\r\n" + body)
        received = b""
        while data := connection.recv(65536):
            received += data
    assert received.count(b"HTTP/1.1 200 OK") == 2
    first, second = server.truth()
    assert first.t_write_ns[-1] <= second.t_request_read_ns


def test_what_it_does_not_understand(client: http.client.HTTPConnection) -> None:
    def get(path: str) -> tuple[int, Any]:
        client.request("GET", path)
        answer = client.getresponse()
        return answer.status, json.loads(answer.read())

    assert get("/health") == (200, {"status": "ok"})
    assert [model["id"] for model in get("/v1/models")[1]["data"]] == ["replay"]
    assert get("/props")[0] == 404
    assert get("/completion")[0] == 404
    for body in (b"no json", b"[]", b'{"n_predict": "many"}', b'{"n_predict": 1e3}', b'{"n_predict": 999999999999}'):
        client.request("POST", "/completion", body)
        answer = client.getresponse()
        assert answer.status == 400
        answer.read()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", b"505"),
        (b"\x16\x03\x01\r\n\r\n", b"505"),
        (b"POST /completion HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST /completion HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"411"),
        (b"POST /completion HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"a" * 100_000, b"431"),
    ],
)
def test_what_is_no_request(server: ReplayServer, request_bytes: bytes, status: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request_bytes)
        assert connection.recv(65536).split(b" ")[1] == status
        with suppress(ConnectionResetError):  # where it did not read all of it
            assert connection.recv(65536) == b""


def test_truth_keeps_the_schedule(server: ReplayServer, client: http.client.HTTPConnection) -> None:
    """Never early, and not later with every token: the schedule is absolute. A second is much."""
    before_ns = time.perf_counter_ns()
    post(client, "/completion", n_predict=50, stream=True).read()
    after_ns = time.perf_counter_ns()
    truth = only_truth(server)
    assert before_ns < truth.t_request_read_ns
    assert truth.t_write_ns[-1] < after_ns
    lateness_ms = [
        (t_ns - truth.t_request_read_ns) / 1e6 - TTFT_MS - index * GAP_MS for index, t_ns in enumerate(truth.t_write_ns)
    ]
    assert all(0 <= late < 1000 for late in lateness_ms)
    assert not truth.blocked_writes
    assert not truth.ends_only


def test_a_client_that_leaves(server: ReplayServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    server.reset()
    body = b'{"n_predict": 100000, "stream": true}'
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /completion HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(1000)
    deadline = time.monotonic() + 30
    written, before = 0, -1
    while written != before and time.monotonic() < deadline:
        before = written
        time.sleep(10 * GAP_MS / 1e3)
        written = only_truth(server).written
    assert written < 100_000
    assert not only_truth(server).complete


def test_many_at_once(server: ReplayServer) -> None:
    host = server.url.removeprefix("http://")
    server.reset()
    clients = [http.client.HTTPConnection(host, timeout=30) for _ in range(20)]
    try:
        for client in clients:
            client.request("POST", "/completion", '{"n_predict": 12, "stream": true}')
        answers = [client.getresponse() for client in clients]
        for answer in answers:
            assert answer.read().count(b"data: ") == 13
    finally:
        for client in clients:
            client.close()
    truths = server.truth()
    assert len({truth.id for truth in truths}) == 20
    assert {truth.id for truth in truths} == {answer.headers["X-Request-Id"] for answer in answers}
    assert all(a.t_request_read_ns <= b.t_request_read_ns for a, b in pairwise(truths))


def test_fire_hose() -> None:
    """More than any socket buffer holds, and nothing lost or turned around."""
    tokens = 200_003
    with ReplayServer(ttft_ms=1, gap_ms=0) as server:
        client = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        try:
            answer = post(client, "/completion", n_predict=tokens, stream=True)
            *events, end = answer.read().split(b"\n\n")[:-1]
        finally:
            client.close()
        (truth,) = server.truth()
    texts = [event.split(b'"content":"')[1].split(b'"')[0].decode() for event in events]
    assert texts == [WORDS[index % len(WORDS)] for index in range(tokens)]
    assert json.loads(end[6:])["tokens_predicted"] == tokens
    assert (truth.written, truth.ends_only, truth.complete, len(truth.t_write_ns)) == (tokens, True, True, 2)


def test_a_reader_that_pauses_holds_nobody_up_and_is_told() -> None:
    """Its tokens pile up, which the truth admits; another client is served meanwhile."""
    with ReplayServer(ttft_ms=0, gap_ms=0.001) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as lazy:
            body = b'{"n_predict": 1000000, "stream": true}'
            lazy.sendall(b"POST /completion HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            deadline = time.monotonic() + 60
            while not server.truth()[0].blocked_writes and time.monotonic() < deadline:
                time.sleep(0.1)
            client = http.client.HTTPConnection(host, int(port), timeout=30)
            try:
                assert post(client, "/completion", n_predict=3, stream=True).read().count(b"data: ") == 4
            finally:
                client.close()
            assert server.truth()[0].blocked_writes


def test_jitter_spreads_the_starts_and_is_the_same_every_time() -> None:
    timing = Timing(ttft_ns=1000, gap_ns=100, jitter=1.0)
    starts = [timing.first_ns(number) for number in range(8)]
    assert len(set(starts)) == 8
    assert all(1000 <= start < 1100 for start in starts)
    assert starts == [timing.first_ns(number) for number in range(8)]
    assert {Timing(1000, 100).first_ns(number) for number in range(8)} == {1000}


def test_memory_is_bounded() -> None:
    memory = Memory()
    for number in range(30_000):
        memory.add(Truth(str(number), "/", planned=1000, prompt_tokens=1, t_request_read_ns=0, ends_only=number > 9000))
    kept = memory.as_json("clock")
    assert len(kept["requests"]) == 20_000
    assert kept["dropped"] == 10_000
    assert kept["requests"][-1]["id"] == "29999"
    for number in range(5000):
        memory.add(Truth(str(number), "/", planned=1000, prompt_tokens=1, t_request_read_ns=0, ends_only=False))
    assert len(memory.as_json("clock")["requests"]) == 4000
    memory.reset()
    assert memory.as_json("clock") == {"clock": "clock", "dropped": 0, "requests": []}


def test_perf_counter_and_monotonic_are_one_clock() -> None:
    assert clock_name()
    before = time.monotonic_ns()
    between = time.perf_counter_ns()
    assert before <= between <= time.monotonic_ns()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_nothing_is_left() -> None:
    with ReplayServer() as server:
        pid, url = server.pid, server.url
        (log,) = (Path(file.path) for file in psutil.Process(pid).open_files() if "stdout" in file.path)
        assert psutil.Process(pid).net_connections()[0].laddr.ip == "127.0.0.1"
    assert gone(pid)
    assert not log.parent.exists()
    host, port = url.removeprefix("http://").split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


PARENT = """
import sys, time
from pytest_llmbench.runtime.replay import ReplayServer
with ReplayServer() as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # a killed parent can not tidy up
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    assert gone(pid)


def test_on_its_own_it_prints_its_address() -> None:
    command = [sys.executable, "-m", "pytest_llmbench.runtime.replay_server", "--ttft-ms", "1", "--gap-ms", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 30)[0]
            report = json.loads(process.stdout.readline())
            client = http.client.HTTPConnection(report["url"].removeprefix("http://"), timeout=30)
            try:
                assert len(sse(post(client, "/v1/completions", max_tokens=2, stream=True))) == 4
            finally:
                client.close()
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT


@pytest.mark.parametrize("option", ["--ttft-ms=-1", "--gap-ms=nan", "--jitter=2"])
def test_options_that_make_no_sense(option: str) -> None:
    command = [sys.executable, "-m", "pytest_llmbench.runtime.replay_server", option]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "times can not be negative" in done.stderr
