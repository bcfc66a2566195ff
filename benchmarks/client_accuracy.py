"""How wrong the client's times are, and what a token costs it.

A replay server (``pytest_llmbench.runtime.replay_server``) streams tokens at a steady pace and notes when it really
wrote each. Clients ask it for the same answers, each in a process of its own, in turn and over several rounds. A
client's error is its own time to first token less the server's, and how far each of its gaps between tokens is from
the server's. The server's times end before the send call and the client's begin before its own, so the errors include
what the kernel takes to carry the bytes: no client comes below that. Each stream begins with one more request that is
not judged, so that connecting and warming up are over; without it the tools' first requests would be all one sees.

Clients: ``ours``; ``asyncio``, which does the least a client can do (connections opened beforehand, a timestamp for
whatever arrives, nothing parsed but the borders of chunks; on uvloop where that is installed beside it); and others by
``--against``: ``uvloop`` (the same, run by an interpreter that has it), ``locust``, ``guidellm``, ``aiperf``.

    cpu/token   user and system time of the client's process while the load runs, divided by tokens. For locust,
                guidellm and aiperf: of all their processes (wait4), less that of a run of one short request.
    peak        resident memory; of the largest process, where there are several.
    fire-hose   one stream without any pause: thousands of tokens a second that are read and understood.

A difference is the median of the differences within the rounds, so it need not be the difference of the medians above
it. guidellm tells only the mean gap of each request, which is compared with the true mean, and reads the wall clock.
Processor time that is less than a tenth of a tool's start can not be told from the start, and is not shown.

The tools have dependencies that get along neither with each other nor with ours, so each gets an environment of its
own below one folder, which ``--tools`` names (without it, what is on PATH is used, or importable here)::

    for tool in locust guidellm aiperf uvloop; do
        python3 -m venv tools/$tool && tools/$tool/bin/pip install $tool
    done
    python benchmarks/client_accuracy.py --streams 1 16 64 --against locust,guidellm,aiperf --tools tools

guidellm and aiperf want a tokenizer; a tiny one is made for them, nothing is downloaded.

With ``--url`` the requests go to a server of yours, whose true times are not known: ours is then compared with what
that server says of itself, where it does (llama.cpp, Ollama).

    python benchmarks/client_accuracy.py --url http://127.0.0.1:11434 --protocol ollama_generate --model NAME
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pytest_llmbench.runtime.replay import ReplayServer, TrueTimes

TOOLS = ("uvloop", "locust", "guidellm", "aiperf")
PROMPT = "Count to ten, again and again."
PATH = "/v1/chat/completions"
NOT_TOKENS = 4  # chunks of the replay server's chat beside those of tokens: role, finish, usage, [DONE]
TOOL_START_SECONDS = 120.0
LEAST_SHARE_OF_START = 0.1


@dataclass(frozen=True)
class Job:
    """What a client is to do. ``requests`` is the number for all streams together."""

    url: str
    streams: int
    requests: int
    tokens: int
    protocol: str = "openai_chat"
    model: str = "replay"


@dataclass(frozen=True)
class Answer:
    """What a client says of one request.

    Attributes:
        id: that of the server's answer, or the one the client sent.
        gaps_ms: one per token after the first; empty where only ``mean_gap_ms`` is known.
        server_ttft_ms, server_gap_ms: what the server itself told with its answer.
    """

    id: str | None
    ttft_ms: float | None
    gaps_ms: tuple[float, ...] = ()
    mean_gap_ms: float | None = None
    duration_seconds: float | None = None
    tokens: int = 0
    server_ttft_ms: float | None = None
    server_gap_ms: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a job. None for processor time: too little to be told from that of the start."""

    answers: list[Answer]
    cpu_seconds: float | None
    peak_rss_mb: float
    note: str = ""
    wall_seconds: float | None = None


class ClientFailed(Exception):
    """A client did not do its job; the message says why."""


# Our own clients. This part runs in their processes, and needs the standard library only (but for ours).


def work(name: str, job: Job, result: Path) -> None:
    """Do a job and write what came of it."""
    answers, used, note = work_ours(job) if name == "ours" else work_asyncio(job)
    written = {"answers": answers, **asdict(used), "peak_rss_mb": peak_rss_mb(), "note": note}
    result.write_text(json.dumps(written), encoding="utf-8")


@dataclass
class Used:
    """What a load took. Made before it, and told when it has ended."""

    cpu_seconds: float = field(default_factory=lambda: -cpu_seconds())
    wall_seconds: float = field(default_factory=lambda: -time.perf_counter())

    def ended(self) -> None:
        self.cpu_seconds += cpu_seconds()
        self.wall_seconds += time.perf_counter()


def cpu_seconds() -> float:
    """What this process has used so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_rss_mb() -> float:
    """Of this process. Linux counts what its parent had before ``exec`` into ``ru_maxrss``, so not from there."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return rss_mb(resource.getrusage(resource.RUSAGE_SELF))


def rss_mb(usage: resource.struct_rusage) -> float:
    """macOS counts bytes, others kilobytes."""
    return usage.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def work_ours(job: Job) -> tuple[list[dict[str, Any]], Used, str]:
    from pytest_llmbench.client.endpoint import Endpoint
    from pytest_llmbench.client.generation import Generation
    from pytest_llmbench.client.load import ClosedLoop, run_load
    from pytest_llmbench.client.timings import ServerTimes
    from pytest_llmbench.core.records import RequestRecord

    records: list[RequestRecord] = []
    endpoint = Endpoint(base_url=job.url, protocol=job.protocol, model=job.model)  # type: ignore[arg-type]
    generations = (Generation(max_tokens=job.tokens, prompt=PROMPT) for _ in range(job.requests))
    used = Used()
    run_load(endpoint, generations, ClosedLoop(streams=job.streams), records.append)
    used.ended()
    answers = []
    for record in records:
        times = ServerTimes.of(record.server_timings)
        waits = [seconds for seconds in (times.prompt_seconds, times.load_seconds) if seconds is not None]
        rate = times.decode_tokens_per_second
        told = {"server_ttft_ms": 1e3 * sum(waits) if waits else None, "server_gap_ms": 1e3 / rate if rate else None}
        tokens_ns = [record.t_send_ns + 1000 * offset for offset in record.token_offsets_us]
        ttft_ns = None if record.t_first_token_ns is None else record.t_first_token_ns - record.t_send_ns
        error = record.error_message
        answers.append(answer_of(record.response_id, ttft_ns, tokens_ns, record.t_send_ns, error) | told)
    return answers, used, ""


def answer_of(
    name: str | None, ttft_ns: int | None, tokens_ns: Sequence[int], t_send_ns: int, error: str | None = None
) -> dict[str, Any]:
    """An :class:`Answer` as JSON; one that failed has no times."""
    if error is not None or ttft_ns is None:
        return {"id": name, "ttft_ms": None, "error": error or "not all of the answer arrived"}
    return {
        "id": name,
        "ttft_ms": ttft_ns / 1e6,
        "gaps_ms": [(after - before) / 1e6 for before, after in pairwise(tokens_ns)],
        "duration_seconds": (tokens_ns[-1] - t_send_ns) / 1e9,
        "tokens": len(tokens_ns),
    }


class ChunkReader(asyncio.Protocol):
    """Sends requests one after the other, and notes when each chunk of the answers was complete."""

    def __init__(self, request: bytes, left: int, tokens: int, gone: asyncio.Future[None]) -> None:
        self.answers: list[dict[str, Any]] = []
        self._request = request
        self._left = left
        self._tokens = tokens
        self._gone = gone
        self._transport: asyncio.Transport
        self._buffer = b""
        self._times: list[int] = []
        self._id: str | None = None
        self._t_send_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by descent

    def ask(self) -> None:
        """Send the next request."""
        self._id, self._times = None, []
        self._t_send_ns = time.perf_counter_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        t_ns = time.perf_counter_ns()
        buffer, at = self._buffer + data if self._buffer else data, 0
        if self._id is None:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = buffer
                return
            head, at = buffer[:end], end + 4
            self._id = head.split(b"\r\nX-Request-Id: ", 1)[1].split(b"\r\n", 1)[0].decode("ascii")
        while (line_end := buffer.find(b"\r\n", at)) >= 0:
            size = int(buffer[at:line_end], 16)
            end = line_end + size + 4
            if end > len(buffer):
                break
            at = end
            if size == 0:
                self._buffer = buffer[at:]
                self._answered()
                return
            self._times.append(t_ns)
        self._buffer = buffer[at:]

    def _answered(self) -> None:
        times = self._times[1 : self._tokens + 1]  # after the role
        complete = len(self._times) == self._tokens + NOT_TOKENS
        ttft_ns = times[0] - self._t_send_ns if complete else None
        self.answers.append(answer_of(self._id, ttft_ns, times, self._t_send_ns))
        self._left -= 1
        if self._left:
            self.ask()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._gone.done():
            self._gone.set_result(None)


def work_asyncio(job: Job) -> tuple[list[dict[str, Any]], Used, str]:
    body = {
        "stream": True,
        "temperature": 0.0,
        "max_tokens": job.tokens,
        "stream_options": {"include_usage": True},
        "model": job.model,
        "messages": [{"role": "user", "content": PROMPT}],
    }
    data = json.dumps(body).encode()
    host, port = job.url.removeprefix("http://").split(":")
    lines = [f"POST {PATH} HTTP/1.1", f"Host: {host}:{port}", "Content-Type: application/json"]
    request = "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data
    readers: list[ChunkReader] = []

    async def run() -> Used:
        loop = asyncio.get_running_loop()
        gone = [loop.create_future() for _ in range(job.streams)]
        for future in gone:
            reader = ChunkReader(request, job.requests // job.streams, job.tokens, future)
            await loop.create_connection(lambda reader=reader: reader, host, int(port))  # type: ignore[misc]
            readers.append(reader)
        used = Used()
        for reader in readers:
            reader.ask()
        await asyncio.gather(*gone)
        used.ended()
        return used

    if importlib.util.find_spec("uvloop") is not None:
        used = importlib.import_module("uvloop").run(run())
        note = "on uvloop"
    else:
        used = asyncio.run(run())
        note = "on asyncio's own loop; uvloop is not installed beside it"
    return [answer for reader in readers for answer in reader.answers], used, note


# Everything below runs in the benchmark's own process.


@dataclass
class Ended:
    """A process that has ended."""

    cpu_seconds: float
    peak_rss_mb: float


def run_process(command: Sequence[str], folder: Path, timeout: float, **environment: str) -> Ended:
    """Run a client to its end, and tell what it and its children have used.

    Raises:
        ClientFailed: it failed, or took too long.
    """
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            if time.monotonic() > deadline:
                raise ClientFailed(f"not done within {timeout:.0f} s")
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what it may have left
        process.wait()
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        raise ClientFailed(f"it ended with {process.returncode}:\n{tail}")
    return Ended(usage.ru_utime + usage.ru_stime, rss_mb(usage))


class Client:
    """A client in a process of its own."""

    def __init__(self, name: str, python: str) -> None:
        self.name = name
        self.python = python
        self.note = ""
        self.idle_cpu_seconds = 0.0

    def prepare(self, url: str, folder: Path) -> None:
        """What has to be known or made before the first job."""

    def run(self, job: Job, folder: Path, timeout: float) -> Outcome:
        """Do a job. Raises ClientFailed."""
        raise NotImplementedError


class OwnClient(Client):
    """``ours`` or ``asyncio``: this file, run as a worker."""

    def __init__(self, name: str, python: str, worker: str) -> None:
        super().__init__(name, python)
        self._worker = worker

    def run(self, job: Job, folder: Path, timeout: float) -> Outcome:
        result = folder / "result.json"
        arguments = ["--work", self._worker, json.dumps(asdict(job)), str(result)]
        run_process([self.python, str(Path(__file__).resolve()), *arguments], folder, timeout)
        data = json.loads(result.read_text(encoding="utf-8"))
        return Outcome(**{**data, "answers": read_answers(data["answers"])})


def read_answers(answers: list[dict[str, Any]]) -> list[Answer]:
    return [Answer(**{**answer, "gaps_ms": tuple(answer.get("gaps_ms", ()))}) for answer in answers]


class Tool(Client):
    """Somebody else's client, whose start is heavy: what it uses for next to nothing is measured and taken off."""

    def prepare(self, url: str, folder: Path) -> None:
        self.make(folder)
        idle = folder / "idle"
        idle.mkdir()
        self.idle_cpu_seconds = self._end(Job(url, 1, 1, 2), idle, TOOL_START_SECONDS).cpu_seconds
        self.note = f"{self.idle_cpu_seconds:.1f} s of its processor time is that of its start, taken off"

    def make(self, folder: Path) -> None:
        """Files it needs."""

    def command(self, job: Job, folder: Path) -> list[str]:
        """How to start it."""
        raise NotImplementedError

    def environment(self, job: Job) -> dict[str, str]:
        """What its environment has to say."""
        return {}

    def read(self, folder: Path) -> Iterator[Answer]:
        """What it says of each request."""
        raise NotImplementedError

    def run(self, job: Job, folder: Path, timeout: float) -> Outcome:
        ended = self._end(job, folder, timeout)
        try:
            answers = list(self.read(folder))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise ClientFailed(f"its results are not as expected: {exc!r}") from exc
        used = ended.cpu_seconds - self.idle_cpu_seconds
        telling = used >= LEAST_SHARE_OF_START * self.idle_cpu_seconds
        return Outcome(answers, used if telling else None, ended.peak_rss_mb)

    def _end(self, job: Job, folder: Path, timeout: float) -> Ended:
        return run_process(self.command(job, folder), folder, timeout, **self.environment(job))


LOCUST_FILE = """
import json, os, time
from locust import HttpUser, task
from locust.exception import StopUser

JOB = json.loads(os.environ["CLIENT_ACCURACY_JOB"])
BODY = {
    "model": JOB["model"],
    "messages": [{"role": "user", "content": JOB["prompt"]}],
    "max_tokens": JOB["tokens"],
    "stream": True,
}
answers = []

class Reader(HttpUser):
    host = JOB["url"]
    left = JOB["requests"] // JOB["streams"]

    @task
    def ask(self):
        times = []
        started = time.perf_counter_ns()
        with self.client.post(JOB["path"], json=BODY, stream=True, catch_response=True) as response:
            for line in response.iter_lines():
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    choices = json.loads(line[6:])["choices"]
                    if choices and choices[0]["delta"].get("content"):
                        times.append(time.perf_counter_ns())
            answers.append([response.headers.get("X-Request-Id"), started, times])
        self.left -= 1
        if not self.left:
            if len(answers) >= JOB["requests"]:
                with open("answers.json", "w") as file:
                    json.dump(answers, file)
                self.environment.runner.quit()
            raise StopUser
"""


class Locust(Tool):
    """A user per stream that reads with requests and ``iter_lines``, as people write it."""

    def command(self, job: Job, folder: Path) -> list[str]:
        (folder / "reader.py").write_text(LOCUST_FILE, encoding="utf-8")
        users = ["--users", str(job.streams), "--spawn-rate", str(job.streams)]
        quiet = ["--only-summary", "--loglevel", "ERROR"]
        return [self.python, "-m", "locust", "--locustfile", "reader.py", "--headless", *users, *quiet]

    def environment(self, job: Job) -> dict[str, str]:
        return {"CLIENT_ACCURACY_JOB": json.dumps({**asdict(job), "path": PATH, "prompt": PROMPT})}

    def read(self, folder: Path) -> Iterator[Answer]:
        for name, started, times in json.loads((folder / "answers.json").read_text(encoding="utf-8")):
            yield from read_answers([answer_of(name, times[0] - started if times else None, times, started)])


TOKENIZER_CODE = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
vocabulary["<|end|>"] = len(vocabulary)
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(sys.argv[1])
"""


class WithTokenizer(Tool):
    """A tool that will not start without a tokenizer: it gets one whose tokens are bytes."""

    tokenizer = ""

    def make(self, folder: Path) -> None:
        self.tokenizer = str(folder / "tokenizer")
        run_process([self.python, "-c", TOKENIZER_CODE, self.tokenizer], folder, TOOL_START_SECONDS)


class GuideLLM(WithTokenizer):
    """vLLM's."""

    def command(self, job: Job, folder: Path) -> list[str]:
        options = [
            ("--backend", f"kind=openai_http,target={job.url},model={job.model}"),
            ("--profile", f"kind=concurrent,streams={job.streams}"),
            ("--constraint", f"kind=max_requests,count={job.requests}"),
            ("--data", f"kind=synthetic_text,prompt_tokens=10,output_tokens={job.tokens}"),
            ("--tokenizer", f"kind=hf_auto,model={self.tokenizer}"),
            ("--output", "kind=json,path=report.json"),
        ]
        given = [text for option in options for text in option]
        return [self.python, "-m", "guidellm", "run", *given, "--disable-console-interactive"]

    def environment(self, job: Job) -> dict[str, str]:
        return {"HF_HUB_OFFLINE": "1"}

    def read(self, folder: Path) -> Iterator[Answer]:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        for kind, requests in report["benchmarks"][0]["requests"].items():
            for request in requests or ():
                if kind != "successful":
                    yield Answer(None, None)
                    continue
                yield Answer(
                    request["response_id"],
                    request["time_to_first_token_ms"],
                    mean_gap_ms=request["inter_token_latency_ms"],
                    duration_seconds=request["request_latency"],
                    tokens=request["output_tokens"],
                )


class AIPerf(WithTokenizer):
    """NVIDIA's."""

    def command(self, job: Job, folder: Path) -> list[str]:
        target = ["--model", job.model, "--url", job.url, "--endpoint-type", "chat", "--streaming"]
        load = ["--concurrency", str(job.streams), "--request-count", str(job.requests)]
        size = ["--synthetic-input-tokens-mean", "10", "--output-tokens-mean", str(job.tokens)]
        tokens = ["--tokenizer", self.tokenizer, "--use-server-token-count"]
        output = ["--artifact-dir", "artifacts", "--export-level", "records", "--ui", "none"]
        return [self.python, "-m", "aiperf", "profile", *target, *load, *size, *tokens, *output]

    def read(self, folder: Path) -> Iterator[Answer]:
        for line in (folder / "artifacts" / "profile_export.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            values = {name: metric["value"] for name, metric in record["metrics"].items()}
            if record.get("error") or "time_to_first_token" not in values:
                yield Answer(None, None)
                continue
            yield Answer(
                record["metadata"]["x_request_id"],
                values["time_to_first_token"],
                tuple(values.get("inter_chunk_latency", ())),
                duration_seconds=values["request_latency"] / 1e3,
                tokens=values["output_sequence_length"],
            )


def find_python(name: str, tools: Path | None) -> str | None:
    """The interpreter that has a tool."""
    if tools is not None:
        python = (tools / name / "bin" / "python").absolute()
        return str(python) if python.exists() else None
    script = shutil.which(name)
    if script is not None and (python := Path(script).absolute().parent / "python").exists():
        return str(python)
    return sys.executable if importlib.util.find_spec(name) is not None else None


def make_client(name: str, tools: Path | None) -> Client:
    """A client by its name.

    Raises:
        ClientFailed: it is not installed.
    """
    if name in {"ours", "asyncio"}:
        return OwnClient(name, sys.executable, name)
    python = find_python(name, tools)
    if python is None:
        raise ClientFailed("it is not installed; see the head of this file for how to install it")
    if name == "uvloop":
        return OwnClient(name, python, "asyncio")
    kinds: dict[str, type[Tool]] = {"locust": Locust, "guidellm": GuideLLM, "aiperf": AIPerf}
    return kinds[name](name, python)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


@dataclass
class Round:
    """The figures of one client in one round; None where there is none."""

    failures: int
    cpu_us_per_token: float | None
    peak_rss_mb: float
    ttft_error_mean_ms: float | None = None
    ttft_error_p99_ms: float | None = None
    gap_error_mean_ms: float | None = None
    gap_error_p99_ms: float | None = None
    ktokens_per_second: float | None = None


FIGURES = tuple(name for name in Round.__dataclass_fields__ if name != "failures")


def judge(outcome: Outcome, truths: Sequence[TrueTimes], job: Job) -> Round:
    """Compare what a client says with what was."""
    known = {name: truth for truth in truths for name in (truth.id, truth.client_id) if name is not None}
    warming_up = {truth.id for truth in truths[: job.streams]}
    ttft_errors: list[float] = []
    gap_errors: list[float] = []
    good = tokens = 0
    for answer in outcome.answers:
        truth = known.get(answer.id or "")
        if truth is None or answer.ttft_ms is None or truth.ttft_seconds is None or answer.tokens != truth.written:
            continue
        good += 1
        tokens += truth.written
        if truth.id in warming_up:
            continue
        ttft_errors.append(answer.ttft_ms - 1e3 * truth.ttft_seconds)
        true_gaps = [gap / 1e6 for gap in truth.gaps_ns]
        if len(answer.gaps_ms) == len(true_gaps):
            gap_errors += [abs(gap - true) for gap, true in zip(answer.gaps_ms, true_gaps, strict=True)]
        elif answer.mean_gap_ms is not None and true_gaps:
            gap_errors.append(abs(answer.mean_gap_ms - fmean(true_gaps)))
    return round_of(outcome, job, (good, tokens), ttft_errors, gap_errors)


def round_of(
    outcome: Outcome, job: Job, counted: tuple[int, int], ttft_errors: Sequence[float], gap_errors: Sequence[float]
) -> Round:
    """The figures of a round in which so many requests, with so many tokens, went well."""
    good, tokens = counted
    return Round(
        failures=job.requests - good,
        cpu_us_per_token=1e6 * outcome.cpu_seconds / tokens if tokens and outcome.cpu_seconds is not None else None,
        peak_rss_mb=outcome.peak_rss_mb,
        ttft_error_mean_ms=fmean(ttft_errors) if ttft_errors else None,
        ttft_error_p99_ms=percentile([abs(error) for error in ttft_errors], 0.99) if ttft_errors else None,
        gap_error_mean_ms=fmean(gap_errors) if gap_errors else None,
        gap_error_p99_ms=percentile(gap_errors, 0.99) if gap_errors else None,
    )


def judge_hose(outcome: Outcome, truths: Sequence[TrueTimes], job: Job) -> Round:
    """How fast a fire-hose was drained."""
    known = {name: truth for truth in truths for name in (truth.id, truth.client_id) if name is not None}
    whole = [answer for answer in outcome.answers if answer.id in known and answer.tokens == job.tokens]
    # The whole load, where that is known: who stamps first and parses later has not understood the last token yet.
    seconds = [outcome.wall_seconds or answer.duration_seconds for answer in whole]
    rates = [job.tokens / one / 1e3 for one in seconds if one]
    judged = round_of(outcome, job, (len(whole), job.tokens * len(whole)), [], [])
    judged.ktokens_per_second = median(rates) if rates else None
    return judged


def judge_by_server(outcome: Outcome, job: Job) -> Round:
    """Compare what a client says with what the server told of itself."""
    good = [answer for answer in outcome.answers if answer.ttft_ms is not None and answer.tokens]
    warm = good[job.streams :]
    ttft_errors = [a.ttft_ms - a.server_ttft_ms for a in warm if a.ttft_ms is not None and a.server_ttft_ms is not None]
    gap_errors = [abs(fmean(a.gaps_ms) - a.server_gap_ms) for a in warm if a.gaps_ms and a.server_gap_ms is not None]
    return round_of(outcome, job, (len(good), sum(answer.tokens for answer in good)), ttft_errors, gap_errors)


@dataclass
class Session:
    """All clients, all rounds.

    Attributes:
        rounds: by client and number of streams; 0 streams stands for the fire-hose.
    """

    clients: list[Client]
    folder: Path
    timeout: float
    rounds: dict[tuple[str, int], list[Round]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def prepare(self, url: str) -> None:
        """Leave out clients that do not work."""
        for client in list(self.clients):
            folder = self.folder / client.name
            folder.mkdir()
            try:
                client.prepare(url, folder)
            except ClientFailed as exc:
                self.leave_out(client, str(exc))

    def leave_out(self, client: Client, why: str) -> None:
        self.clients.remove(client)
        self.notes[client.name] = f"left out: {why}"

    def play(self, job: Job, turn: int, key: int, server: ReplayServer | None, judged: Callable[..., Round]) -> None:
        """Let every client do a job, each round another one first."""
        shift = turn % max(1, len(self.clients))
        for client in self.clients[shift:] + self.clients[:shift]:
            with TemporaryDirectory(dir=self.folder) as folder:
                if server is not None:
                    server.reset()
                try:
                    outcome = client.run(job, Path(folder), self.timeout)
                except ClientFailed as exc:
                    self.leave_out(client, str(exc))
                    continue
            result = judged(outcome, server.truth(), job) if server is not None else judged(outcome, job)
            self.rounds.setdefault((client.name, key), []).append(result)
            self.notes.setdefault(client.name, outcome.note or client.note)
            errors = [answer.error for answer in outcome.answers if answer.error]
            if errors:
                self.notes.setdefault(f"{client.name} failed", errors[0])

    def row(self, name: str, key: int) -> dict[str, Any] | None:
        """Medians over the rounds."""
        rounds = self.rounds.get((name, key))
        if not rounds:
            return None
        values = {figure: median_of([getattr(one, figure) for one in rounds]) for figure in FIGURES}
        return {"client": name, "streams": key, **values, "failures": sum(one.failures for one in rounds)}

    def difference(self, key: int) -> dict[str, Any] | None:
        """Ours less asyncio: the median of the differences within the rounds."""
        ours, other = self.rounds.get(("ours", key)), self.rounds.get(("asyncio", key))
        if not ours or not other:
            return None
        pairs = list(zip(ours, other, strict=False))
        values = {}
        for figure in FIGURES:
            both = [(getattr(a, figure), getattr(b, figure)) for a, b in pairs]
            values[figure] = median_of([a - b for a, b in both if a is not None and b is not None])
        return {"client": "ours − asyncio", "streams": key, **values, "failures": None}


def median_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Against replay servers, whose times are known."""
    from pytest_llmbench.runtime.replay import ReplayServer

    expected = (arguments.requests + 1) * (arguments.ttft_ms + arguments.gap_ms * arguments.tokens) / 1e3
    with (
        TemporaryDirectory(prefix="llmbench-accuracy-") as temporary,
        ReplayServer(ttft_ms=arguments.ttft_ms, gap_ms=arguments.gap_ms, jitter=1.0) as server,
        ReplayServer(ttft_ms=0, gap_ms=0) as hose,
    ):
        session = Session([], Path(temporary), timeout=TOOL_START_SECONDS + 10 * expected)
        for name in ("ours", "asyncio", *arguments.against):
            try:
                session.clients.append(make_client(name, arguments.tools))
            except ClientFailed as exc:
                session.notes[name] = f"left out: {exc}"
        names = [client.name for client in session.clients]
        session.prepare(server.url)
        for turn in range(arguments.rounds):
            for streams in arguments.streams:
                job = Job(server.url, streams, streams * (arguments.requests + 1), arguments.tokens)
                session.play(job, turn, streams, server, judge)
            if arguments.hose_tokens:
                session.play(Job(hose.url, 1, 1, arguments.hose_tokens), turn, 0, hose, judge_hose)
    keys = [*arguments.streams, *([0] if arguments.hose_tokens else [])]
    return result_of(arguments, session, names, keys)


def measure_url(arguments: argparse.Namespace) -> dict[str, Any]:
    """Against a server of the user's: only ours, and only what the server tells of itself to compare with."""
    expected = 60.0 * arguments.requests
    with TemporaryDirectory(prefix="llmbench-accuracy-") as temporary:
        session = Session([make_client("ours", None)], Path(temporary), timeout=TOOL_START_SECONDS + 10 * expected)
        for turn in range(arguments.rounds):
            for streams in arguments.streams:
                requests = streams * (arguments.requests + 1)
                job = Job(arguments.url, streams, requests, arguments.tokens, arguments.protocol, arguments.model)
                session.play(job, turn, streams, None, judge_by_server)
    return result_of(arguments, session, ["ours"], list(arguments.streams))


def result_of(
    arguments: argparse.Namespace, session: Session, names: Sequence[str], keys: Sequence[int]
) -> dict[str, Any]:
    rows = [session.row(name, key) for key in keys for name in names]
    differences = [session.difference(key) for key in keys]
    return {
        "benchmark": "client_accuracy",
        "compared_with": "the server's own timings" if arguments.url else "the replay server's true times",
        "rounds": arguments.rounds,
        "requests_per_stream": arguments.requests,
        "tokens": arguments.tokens,
        "ttft_ms": None if arguments.url else arguments.ttft_ms,
        "gap_ms": None if arguments.url else arguments.gap_ms,
        "fire_hose_tokens": 0 if arguments.url else arguments.hose_tokens,
        "notes": {name: note for name, note in session.notes.items() if note},
        "rows": [row for row in rows if row is not None],
        "differences": [difference for difference in differences if difference is not None],
    }


COLUMNS = (
    ("TTFT error, ms", "mean", "ttft_error_mean_ms", 3),
    ("", "p99", "ttft_error_p99_ms", 3),
    ("gap error, ms", "mean", "gap_error_mean_ms", 3),
    ("", "p99", "gap_error_p99_ms", 3),
    ("cpu/token", "µs", "cpu_us_per_token", 1),
    ("peak", "MB", "peak_rss_mb", 0),
    ("failed", "", "failures", 0),
)


def print_table(result: dict[str, Any]) -> None:
    print(
        f"errors against {result['compared_with']}; medians of {result['rounds']} rounds of "
        f"{result['requests_per_stream']} requests a stream, {result['tokens']} tokens each"
    )
    print(f"{'':>7}  {'':<15}" + "".join(f"{top:>15}" for top, *_ in COLUMNS))
    print(f"{'streams':>7}  {'client':<15}" + "".join(f"{below:>15}" for _, below, *_ in COLUMNS))
    for streams in sorted({row["streams"] for row in result["rows"]} - {0}):
        for row in [*result["rows"], *result["differences"]]:
            if row["streams"] == streams:
                cells = "".join(f"{cell(row[name], digits):>15}" for *_, name, digits in COLUMNS)
                print(f"{streams:>7}  {row['client']:<15}{cells}")
    if result["fire_hose_tokens"]:
        print(f"\nfire-hose, {result['fire_hose_tokens']} tokens")
        for row in [*result["rows"], *result["differences"]]:
            if row["streams"] == 0:
                rate, cost = cell(row["ktokens_per_second"], 1), cell(row["cpu_us_per_token"], 2)
                failed = f"   failed: {row['failures']}" if row["failures"] else ""
                print(f"         {row['client']:<15}{rate:>10} thousand tokens/s{cost:>10} µs/token{failed}")
    for name, note in result["notes"].items():
        print(f"\n{name}: {note}")


def cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="a server of yours, to compare with its own timings")
    parser.add_argument("--protocol", default="openai_chat", help="what it speaks (default: openai_chat)")
    parser.add_argument("--model", default="replay", metavar="NAME", help="the model to ask it for")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64], metavar="N")
    parser.add_argument(
        "--requests", type=int, default=3, metavar="N", help="per stream and round, and one to warm up (default: 3)"
    )
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="per answer (default: 128)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--ttft-ms", type=float, default=50.0, metavar="MS", help="of the replay server (default: 50)")
    parser.add_argument("--gap-ms", type=float, default=10.0, metavar="MS", help="of the replay server (default: 10)")
    parser.add_argument("--hose-tokens", type=int, default=100_000, metavar="N", help="of the fire-hose; 0: none")
    parser.add_argument("--against", default="", metavar="TOOL,…", help=f"also {', '.join(TOOLS)}")
    parser.add_argument("--tools", type=Path, metavar="DIR", help="holds an environment for each tool, by its name")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    arguments = parser.parse_args()
    arguments.against = [name for name in arguments.against.split(",") if name]
    if unknown := set(arguments.against) - set(TOOLS):
        parser.error(f"--against knows {', '.join(TOOLS)}; not {', '.join(sorted(unknown))}")
    if min(arguments.rounds, arguments.requests, *arguments.streams) < 1 or arguments.tokens < 2:
        parser.error("there must be a round, a request and a stream, and two tokens for a gap")
    if arguments.gap_ms <= 0:
        parser.error("without a gap there is nothing to compare; the fire-hose is measured anyway")
    return arguments


def main() -> int:
    arguments = read_arguments()
    result = measure_url(arguments) if arguments.url else measure(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print_table(result)
    ours = [row for row in result["rows"] if row["client"] == "ours"]
    return 0 if ours and not any(row["failures"] for row in ours) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], Job(**json.loads(sys.argv[3])), Path(sys.argv[4]))
        sys.exit(0)
    sys.exit(main())
