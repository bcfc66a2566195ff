"""A server in which faults are planted: it becomes slower, leaks, stalls, fails, or its machine becomes hot.

It speaks llama.cpp's ``/completion``, or OpenAI's chat, in a process of its own, so that its memory is its own and a
leak is one. A word is a token. Run as a script, this file is that process: it serves until its standard input ends,
and says on its standard output where it listens and, after each request, that it is done.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FILE = Path(__file__)
_LEAVING_SECONDS = 10.0
_MB = 1_000_000


@dataclass(frozen=True)
class Faults:
    """What is wrong with the server; as it stands, nothing is. Requests are counted from 0, the warm-up.

    Attributes:
        token_seconds: between tokens; of prompt tokens a fiftieth.
        noise_percent: standard deviation of a request's pace, normal, from ``seed``.
        slower_percent: by how much each request is slower than the one before, of the first one's time.
        leak_mb: that are allocated with each request, touched and never given back.
        settling_mb: memory that is touched for the first time, most of it by the first requests.
        stalls: request → seconds for which its stream rests in the middle.
        hot_from: the request from which on the rate is lower by 20 % and the machine hot; None: never.
        failing: requests that are answered with HTTP 500.
        dies_at: the request at which the process ends.
        short: request → tokens after which its answer ends, as if the model had ended it.
        cached: tokens of each prompt that are said to have come from a cache.
    """

    token_seconds: float = 0.0015
    noise_percent: float = 1.0
    seed: int = 0
    slower_percent: float = 0.0
    leak_mb: float = 0.0
    settling_mb: float = 0.0
    stalls: Mapping[int, float] = field(default_factory=dict)
    hot_from: int | None = None
    failing: Sequence[int] = ()
    dies_at: int | None = None
    short: Mapping[int, int] = field(default_factory=dict)
    cached: int = 0

    def pace(self, request: int) -> float:
        """How many times the usual time a request takes."""
        noise = random.Random(f"{self.seed} {request}").gauss(0, self.noise_percent / 100)
        hot = self.hot_from is not None and request >= self.hot_from
        return math.exp(noise) * (1 + self.slower_percent / 100 * request) * (1.25 if hot else 1)


class DriftingServer:
    """Use as a context manager.

    Attributes:
        url: where it listens.
        pid: of its process.
        served: requests that were answered, the warm-up among them.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.url = ""
        self.served = 0

    def __enter__(self) -> DriftingServer:
        self._process = subprocess.Popen(
            [sys.executable, str(FILE), json.dumps(asdict(self.faults))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self._reader = threading.Thread(target=self._count)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(_LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join()
        process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def is_hot(self) -> bool:
        """Whether the requests so far have made the machine hot."""
        return self.faults.hot_from is not None and self.served >= self.faults.hot_from

    def _count(self) -> None:
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            self.served += 1


class _Handler(BaseHTTPRequestHandler):
    """``faults``, ``held`` and ``count`` are of the process."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    faults = Faults()
    held: list[bytearray] = []  # noqa: RUF012 -- that it is shared and grows is what it is for
    count = 0

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self._json(200, {"tokens": list(range(len(str(body["content"]).split())))})
            return
        faults, number = self.faults, _Handler.count
        _Handler.count += 1
        if number == faults.dies_at:
            os._exit(3)
        self._grow(faults.leak_mb + faults.settling_mb * (math.exp(-number / 2) - math.exp(-(number + 1) / 2)))
        if number in faults.failing:
            self._json(500, {"error": {"message": "out of luck"}})
        else:
            self._answer(body, number)
        print("served", flush=True)  # noqa: T201 -- this is how it reports

    def _grow(self, megabytes: float) -> None:
        if megabytes > 0:
            self.held.append(bytearray(b"x" * int(megabytes * _MB)))

    def _answer(self, body: dict[str, Any], number: int) -> None:
        faults, is_chat = self.faults, "messages" in body
        text = body["messages"][0]["content"] if is_chat else body["prompt"]
        read, asked = len(text.split()), int(body["max_tokens"] if is_chat else body["n_predict"])
        tokens = min(asked, faults.short.get(number, asked))
        gap = faults.token_seconds * faults.pace(number)
        began = time.perf_counter()
        due = began + read * gap / 50
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for index in range(tokens):
            due += gap + (faults.stalls.get(number, 0.0) if index == tokens // 2 else 0.0)
            time.sleep(max(0.0, due - time.perf_counter()))
            word = f"word{index} "
            self._event({"choices": [{"delta": {"content": word}}]} if is_chat else {"content": word, "stop": False})
        for event in _ending(read, tokens, faults.cached, is_cut=tokens == asked, is_chat=is_chat):
            self._event(event)
        if is_chat:
            self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps({"model": "drifting", **event}).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _json(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _ending(read: int, tokens: int, cached: int, *, is_cut: bool, is_chat: bool) -> list[dict[str, Any]]:
    """The last events of an answer, with what was counted."""
    if not is_chat:
        timings = {"cache_n": cached, "predicted_n": tokens}
        stop = {"content": "", "stop": True, "stop_type": "limit" if is_cut else "eos"}
        return [{**stop, "tokens_evaluated": read, "timings": timings}]
    usage = {"prompt_tokens": read, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": cached}}
    return [
        {"choices": [{"delta": {}, "finish_reason": "length" if is_cut else "stop"}]},
        {"choices": [], "usage": usage},
    ]


def main() -> None:
    """Serve until standard input ends."""
    given = json.loads(sys.argv[1])
    for name in ("stalls", "short"):  # JSON made text of the numbers
        given[name] = {int(key): value for key, value in given[name].items()}
    _Handler.faults = Faults(**given)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)  # noqa: T201
    serving = threading.Thread(target=server.serve_forever, args=(0.02,))
    serving.start()
    sys.stdin.read()
    server.shutdown()
    serving.join()
    server.server_close()


if __name__ == "__main__":
    main()
