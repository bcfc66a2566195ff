"""What a run survives: killed, stopped, starved and doubled on the real embedded engine, it is looked at afterwards.

Each scenario works in a folder and with locks (``LLMBENCH_RUNTIME_DIR``) of its own, on the small model of
``configs/models.yaml`` below ``models/``, which is downloaded where it is missing; what needs a server that misbehaves
brings one. The table tells what was done and how often, how many records there had to be and were, how many cells have
two, how many none, and how many processes of ours were left. Below it stand what else was seen and what went wrong.
A process is ours when its environment names our locks, which everything started here inherits.

Moments are random but for ``--seed``, which is printed. Exit status: 0 when every scenario came out as promised, 1 when
one did not, 2 when there is no model. One that needs root, or a package that is missing, is shown as not run.

    python benchmarks/survival.py [--only NAME,…] [--seed N] [--cells 30] [--kills 10] [--stop-seconds 60] [--keep]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psutil
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL = REPOSITORY / "models" / "135M" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ENGINE = "pytest_llmbench.backends.embedded_child"
ASKED = 3  # requests of a cell, and cells of a server
PATIENCE_SECONDS = 600.0
LEAVING_SECONDS = 10.0
TAIL_LINES = 25
SWITCH = 'pytest_plugins = ["pytest_llmbench.suite"]\n'
CHATS = """
import pytest

def ask(llm):
    for number in range({asked}):
        assert llm.chat(f"Question {{number}}: say hello.", max_tokens=12).text
""" + "".join(
    f"""
@pytest.mark.llmbench(profile="interactive")
def test_{name}(llm):
    ask(llm)
"""
    for name in ("one", "two", "three")
)
MEASURES = """
import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm):
    llm.measure().check()
"""
# Speaks enough of the API to be measured. The model "hog" answers one request, the proof; from the second on it takes
# memory instead, and writes down how much it has.
SERVER = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL, PORT, EATEN_MOST = sys.argv[1], int(sys.argv[2]), int(float(sys.argv[3]))
STEP, held, seen = 16 << 20, [], 0

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args):
        pass
    def answer(self, body, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        if self.path == "/v1/models":
            return self.answer(json.dumps({"data": [{"id": MODEL}]}).encode())
        self.send_error(404)
    def do_POST(self):
        global seen
        seen += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked, read = body["max_tokens"], 20 + sum(len(message["content"].split()) for message in body["messages"])
        if MODEL == "hog" and seen > 1:
            self.eat()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.event({"model": MODEL, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for index in range(asked):
            time.sleep(0.003)
            self.event({"model": MODEL, "choices": [{"index": 0, "delta": {"content": f"word{index} "}}]})
        self.event({"model": MODEL, "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        usage = {"prompt_tokens": read, "completion_tokens": asked, "prompt_tokens_details": {"cached_tokens": 0}}
        self.event({"model": MODEL, "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\\n\\n")
        self.close_connection = True
    def event(self, event):
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
    def eat(self):
        while len(held) * STEP < EATEN_MOST:
            held.append(b"x" * STEP)
            with open(f"eaten-{os.getpid()}.txt", "w") as file:
                file.write(str(len(held) * STEP))
            time.sleep(0.02)

ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""


class NotRun(Exception):
    """A scenario can not be carried out on this machine; says why."""


@dataclass
class Row:
    """What one scenario did and found.

    Attributes:
        times: how often it was done.
        expected: records there have to be.
        found: cells that have one.
        twice: records beyond the first of a cell.
        lost: cells without one.
        left: processes of ours that still ran some seconds after all had ended.
        problems: what is not as promised.
        remarks: what else was seen.
    """

    done: str
    times: int = 0
    expected: int = 0
    found: int = 0
    twice: int = 0
    lost: int = 0
    left: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    not_run: str | None = None

    def must(self, holds: bool, otherwise: str) -> None:
        """Note a problem unless something is as promised."""
        if not holds:
            self.problems.append(otherwise)

    @property
    def verdict(self) -> str:
        return "not run" if self.not_run is not None else "MISSED" if self.problems else "ok"


@dataclass(frozen=True)
class Options:
    """Sizes, and where chance comes from."""

    cells: int
    kills: int
    stop_seconds: float
    random: random.Random


@dataclass
class Run:
    """A pytest that was started, and what it wrote."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def junit(self) -> list[ET.Element]:
        """Test cases of its JUnit file, none where it wrote none."""
        file = self.log.with_suffix(".xml")
        return list(ET.parse(file).iter("testcase")) if file.is_file() else []

    @property
    def tail(self) -> str:
        return "\n".join(f"    | {line}" for line in self.output.splitlines()[-TAIL_LINES:])

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def end(self, number: int) -> int:
        """Send a signal and wait; the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit status. Raises TimeoutExpired when it takes unreasonably long."""
        return self.process.wait(PATIENCE_SECONDS)

    def said(self, *patterns: str) -> str | None:
        """The first line that has all of these in it."""
        found = (line.strip() for line in self.output.splitlines() if all(re.search(p, line) for p in patterns))
        return next(found, None)


class Bench:
    """A benchmark folder with locks of its own.

    Args:
        size: how many names the small model gets; each has three tests of three requests, on one server.
    """

    def __init__(self, folder: Path, size: int = 1) -> None:
        self.folder = folder
        self.runtime = folder / "runtime"
        self.runs: list[Run] = []
        self.config: dict[str, Any] = {
            # One thread: several of them wait for each other by turning, and the machine may be busy.
            "embedded": {"default_ctx_size": 512, "default_threads": 1},
            "profiles": ["interactive"],
            "thresholds": {"interactive": {"max_variance": None, "min_tokens_per_sec": 0.1}},
            "settings": {"interactive": {"output_tokens": 24, "short_answers": 0}},
            "measurement": {"max_samples": 6, "calibrate": False},
            "limits": {"max_load_time": 120},
            "output": {"formats": ["json"]},
        }
        self.models = [self.model(f"m{index:02}") for index in range(size)]
        self.quantizations = ["Q4_1"]
        self.write("conftest.py", SWITCH)
        self.write("pytest.ini", "[pytest]\n")
        self.write("suites/test_cells.py", CHATS.format(asked=ASKED))

    @staticmethod
    def model(name: str, size: str = "135M") -> dict[str, Any]:
        """The small model by another name: as another file, or it would be served by the same server."""
        return {"name": name, "size": size, "files": {"Q4_1": f"{name}.gguf"}, "source": {"path": str(MODEL)}}

    def serve(self, *models: dict[str, Any], command: list[str] | str, most_bytes: float = 0) -> None:
        """Have our own server instead of the engine. ``command`` may hold ``SERVER`` for the program's words."""
        self.write("server.py", SERVER)
        words = [sys.executable, str(self.folder / "server.py"), "{model}", "{port}", str(most_bytes)]
        given = [command] if isinstance(command, str) else command
        joined = [part.replace("SERVER", " ".join(words)) for part in given]
        self.config |= {"backend": "openai", "openai": {"command": joined if given else words}}
        self.models, self.quantizations = list(models), ["Q4_K_M", "Q8_0"]

    def measure(self) -> None:
        """Have one measured cell per model, instead of three that ask."""
        self.write("suites/test_cells.py", MEASURES)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def configure(self) -> None:
        """Write both files of the configuration."""
        self.write("configs/config.yaml", yaml.safe_dump(self.config))
        models = {"models": self.models, "full_mode_quants": self.quantizations}
        self.write("configs/models.yaml", yaml.safe_dump(models))

    def environment(self, **more: str) -> dict[str, str]:
        """Ours, without what would change a pytest run, and with locks of our own."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "LLMBENCH"))}
        return {**kept, "LLMBENCH_RUNTIME_DIR": str(self.runtime), **more}

    def start(self, *arguments: str) -> Run:
        """Start pytest with these arguments; who starts it waits for it."""
        self.configure()
        return self.launch("pytest", "suites/", f"--junitxml=output-{len(self.runs):02}.xml", *arguments)

    def launch(self, module: str, *arguments: str, **environment: str) -> Run:
        """Start a Python module in a session of its own, where no signal of a terminal reaches it."""
        # A background job of a shell ignores SIGINT and hands that on; a handler of ours is the default in the child.
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        log = self.folder / f"output-{len(self.runs):02}.log"
        try:
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    cwd=self.folder,
                    env=self.environment(**environment),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        finally:
            signal.signal(signal.SIGINT, previous)
        self.runs.append(Run(process, log))
        return self.runs[-1]

    @property
    def latest(self) -> Path:
        return (self.folder / "results" / "latest").resolve()

    def cells(self, run: Path | None = None) -> list[dict[str, Any]]:
        """Records on disk, whole lines only, also while the run goes on."""
        return read_lines((run or self.latest) / "cells.jsonl")[0]

    def requests_sent(self) -> int:
        """Requests on disk of the newest run, also while workers write to parts of their own."""
        return sum(path.read_bytes().count(b"\n") for path in self.latest.rglob("requests*.jsonl"))

    def processes(self) -> list[psutil.Process]:
        """Everything that was started from here and still runs."""
        wanted = str(self.runtime)
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                named = str(process.environ().get("LLMBENCH_RUNTIME_DIR", ""))
                if named.startswith(wanted) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def engines(self) -> list[psutil.Process]:
        """Servers of the embedded engine among them."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if ENGINE in process.cmdline():
                    found.append(process)
        return found

    def close(self, row: Row) -> None:
        """Count what is left after some seconds, and end it."""
        wait_until(lambda: not self.processes(), LEAVING_SECONDS)
        for process in self.processes():
            with suppress(psutil.Error):
                row.left += 1
                row.problems.append(f"process {process.pid} is left: {' '.join(process.cmdline())[:150]}")
                process.kill()
        for run in self.runs:
            if run.runs:
                run.end(signal.SIGKILL)


def read_lines(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file of lines, and how many lines are torn."""
    if not file.is_file():
        return [], 0
    objects, torn = [], 0
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            objects.append(json.loads(line))
            torn += not line.endswith(b"\n")
        except ValueError:
            torn += 1
    return objects, torn


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll a condition; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not (is_true := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return is_true


def count(row: Row, bench: Bench, expected: int, run: Path | None = None) -> dict[str, dict[str, Any]]:
    """Compare a run's records with how many there have to be; returns them by node id."""
    folder = run or bench.latest
    cells, torn = read_lines(folder / "cells.jsonl")
    by_nodeid = {cell["nodeid"]: cell for cell in cells}
    row.expected += expected
    row.found += len(by_nodeid)
    row.twice += len(cells) - len(by_nodeid)
    row.lost += max(0, expected - len(by_nodeid))
    row.must(len(by_nodeid) == expected, f"{len(by_nodeid)} cells have a record, {expected} should")
    row.must(len(cells) == len(by_nodeid), f"{len(cells) - len(by_nodeid)} cells have two records")
    row.must(not torn, f"{torn} torn lines in cells.jsonl")
    row.must(not (folder / "parts").exists(), "requests of workers were not joined")
    return by_nodeid


def check_requests(row: Row, bench: Bench, cells: dict[str, dict[str, Any]], asked: int = ASKED) -> None:
    """Each cell's requests have to be those of one attempt: all of them, within the time that this attempt took."""
    requests, torn = read_lines(bench.latest / "requests.jsonl")
    row.must(not torn, f"{torn} torn lines in requests.jsonl")
    of: dict[str, list[dict[str, Any]]] = {}
    for request in requests:
        of.setdefault(request["cell"], []).append(request)
    wrong = {nodeid: len(of.get(nodeid, [])) for nodeid in cells if len(of.get(nodeid, [])) != asked}
    row.must(not wrong, f"not {asked} requests: {wrong}")
    row.must(not of.keys() - cells.keys(), f"requests of cells without a record: {sorted(of.keys() - cells.keys())}")
    for nodeid, found in of.items():
        span = (max(r["t_end_ns"] for r in found) - min(r["t_send_ns"] for r in found)) / 1e9
        if nodeid in cells and span > cells[nodeid]["duration_seconds"]:
            row.problems.append(f"{nodeid}: its requests span {span:.1f} s, more than the cell took")


def expect(row: Row, run: Run, status: int, *patterns: str) -> None:
    """A run has to end with this status and to have said something; what it wrote is shown otherwise."""
    if run.process.returncode != status:
        row.problems.append(f"pytest ended with {run.process.returncode} instead of {status}:\n{run.tail}")
    if patterns:
        line = run.said(*patterns)
        row.must(line is not None, f"nothing was said of {' … '.join(patterns)}:\n{run.tail}")
        if line is not None:
            row.remarks.append(f"said: {line[:230]}")


def expect_in_junit(row: Row, run: Run, errors: int) -> None:
    """As many test cases have to be errors in JUnit as there are records of errors."""
    found = sum(case.find("error") is not None for case in run.junit)
    row.must(found == errors, f"JUnit has {found} errors, the records {errors}")


def kill_pytest(bench: Bench, row: Row, options: Options, *workers: str) -> None:
    """kill -9 at random moments, each followed by a resume that is killed in turn, but for the last one."""
    chance, expected = options.random, options.cells
    moments: list[str] = []
    gone_after: list[float] = []
    for number in range(options.kills):
        before = len(bench.cells())
        run = bench.start("--llmbench-resume", "latest", *workers)
        if chance.random() < 0.25:  # while it starts
            time.sleep(chance.uniform(0.1, 2.5))
        else:
            more = int(chance.uniform(0, 2 * (expected - before) / (options.kills - number + 1)))
            at = min(before + more, expected - 1)
            wait_until(lambda run=run, at=at: not run.runs or len(bench.cells()) >= at, PATIENCE_SECONDS)  # type: ignore[misc]
            time.sleep(chance.uniform(0, 1.5))
        if not run.runs:
            row.must(run.process.returncode == 0, f"before its kill, it had ended:\n{run.tail}")
        row.times += run.runs
        run.end(signal.SIGKILL)
        moments.append(f"{before}→{len(bench.cells())}")
        if chance.random() < 0.5:  # else the next one begins while servers and workers of this one may still end
            began = time.monotonic()
            all_gone = wait_until(lambda: not bench.processes(), LEAVING_SECONDS)
            gone_after.append(time.monotonic() - began)
            row.must(all_gone, f"left after a kill: {[process.name() for process in bench.processes()]}")
    row.remarks.append(f"finished cells when started → when killed: {', '.join(moments)}")
    if gone_after:
        row.remarks.append(f"all processes were gone {max(gone_after):.2f} s after a kill, at most")
    last = bench.start("--llmbench-resume", "latest", *workers)
    last.wait()
    expect(row, last, 0)
    cells = count(row, bench, expected)
    statuses = Counter(cell["status"] for cell in cells.values())
    row.must(set(statuses) == {"passed"}, f"not all passed: {dict(statuses)}\n{last.tail}")
    row.must(f"{expected} passed" in last.output, f"the last report does not cover all cells:\n{last.tail}")
    check_requests(row, bench, cells)
    runs = [entry for entry in (bench.folder / "results").iterdir() if entry.is_dir() and not entry.is_symlink()]
    row.must(len(runs) == 1, f"{len(runs)} runs instead of one")
    notes = list((bench.runtime / "servers").glob("*.json"))
    row.must(not notes, f"{len(notes)} notes of servers are left")


def kill_9(bench: Bench, row: Row, options: Options) -> None:
    kill_pytest(bench, row, options)


def kill_9_workers(bench: Bench, row: Row, options: Options) -> None:
    require_xdist()
    kill_pytest(bench, row, options, "-n", "2")


def kill_server(bench: Bench, row: Row, options: Options) -> None:
    """The engine is killed in the middle of an answer: that cell is an error, the next one is fine."""
    kills = max(1, min(options.kills, (options.cells - 1) // 3))
    targets = sorted(options.random.sample(range(1, options.cells - 1, 3), kills))
    run = bench.start()
    killed: list[int] = []
    for target in targets:
        sent = target * ASKED - len(killed) * ASKED  # at least so many are on disk when that cell runs
        wait_until(
            lambda target=target: not run.runs or len(bench.cells()) >= target,  # type: ignore[misc]
            PATIENCE_SECONDS,
        )
        before = max(sent, bench.requests_sent())
        wait_until(lambda before=before: not run.runs or bench.requests_sent() > before, 30.0)  # type: ignore[misc]
        time.sleep(options.random.uniform(0, 0.1))
        for engine in bench.engines():
            with suppress(psutil.Error):
                engine.kill()
                killed.append(len(bench.cells()))
    row.times = len(killed)
    run.wait()
    cells = list(count(row, bench, options.cells).values())
    expect(row, run, 1)
    errors = [index for index, cell in enumerate(cells) if cell["status"] == "error"]
    codes = Counter(cells[index]["reason"]["code"] for index in errors)
    row.remarks.append(f"{len(errors)} errors: {dict(codes)}; all others: {statuses_of(cells, but=errors)}")
    row.must(len(errors) == len(killed) > 0, f"{len(killed)} servers were killed, {len(errors)} cells are errors")
    row.must(set(statuses_of(cells, but=errors)) == {"passed"}, f"another cell suffered:\n{run.tail}")
    row.must(not any(b - a == 1 for a, b in pairwise(errors)), "a next cell was no better")
    if errors:
        row.remarks.append(f"e.g.: {cells[errors[0]]['reason']['message'][:200]}")


def statuses_of(cells: list[dict[str, Any]], but: list[int]) -> dict[str, int]:
    """How many cells have which status, some left out."""
    return dict(Counter(cell["status"] for index, cell in enumerate(cells) if index not in but))


def ask_to_end(bench: Bench, row: Row, options: Options) -> None:
    """Ctrl-C and SIGTERM in the middle of a cell, then resume."""
    expected = len(bench.models) * 3
    for number, status in ((signal.SIGINT, 2), (signal.SIGTERM, 143)):
        run = bench.start("--llmbench-resume", "latest")
        before = bench.requests_sent()
        moment = before + 1 + options.random.randrange(2 * ASKED)
        wait_until(lambda run=run, moment=moment: not run.runs or bench.requests_sent() >= moment, 60.0)  # type: ignore[misc]
        row.must(run.runs, f"it ended before it was asked to:\n{run.tail}")
        began = time.monotonic()
        run.end(number)
        row.times += 1
        row.remarks.append(f"{number.name}: ended after {time.monotonic() - began:.1f} s")
        expect(row, run, status, "the run was cut short")
        row.must(not bench.processes(), f"{number.name}: {len(bench.processes())} processes when pytest had ended")
    last = bench.start("--llmbench-resume", "latest")
    last.wait()
    expect(row, last, 0, "resuming run")
    check_requests(row, bench, count(row, bench, expected))


def ladder(bench: Bench, row: Row, _options: Options) -> None:
    """Three sizes, the smallest of which is too slow by configuration."""
    bench.measure()
    bench.models = [bench.model(name, size) for name, size in (("a", "135M"), ("b", "360M"), ("c", "1.7B"))]
    bench.config["thresholds"]["interactive"]["min_tokens_per_sec"] = 100_000
    run = bench.start()
    run.wait()
    row.times = 1
    expect(row, run, 1, r"\bblocked")
    cells = count(row, bench, 3)
    statuses = {cell["model"]: cell["status"] for cell in cells.values()}
    row.must(statuses == {"a": "failed", "b": "blocked", "c": "blocked"}, f"{statuses}\n{run.tail}")
    for case in run.junit:
        found = {entry.attrib["name"]: entry.attrib["value"] for entry in case.iter("property")}
        skipped = next(case.iter("skipped"), None)
        if skipped is not None:
            row.remarks.append(f"JUnit, {case.attrib['name']}: {skipped.attrib['message']}")
            row.remarks.append(f"JUnit, {case.attrib['name']}: {found}")
            row.must(found.get("reason") == "blocked_by_speed", f"JUnit gives another reason: {found}")
    again = bench.start("--lf", "--collect-only", "-q")
    again.wait()
    chosen = sorted(line for line in again.output.splitlines() if "::" in line)
    row.remarks.append(f"--lf selects {', '.join(chosen)}")
    row.must(chosen == sorted(cells), f"--lf selects otherwise:\n{again.tail}")


def all_memory(bench: Bench, row: Row, _options: Options) -> None:
    """A server that takes memory while it answers, against ``limits.max_memory_gb``."""
    limit_gb, most_gb = 0.5, 6.0
    if psutil.virtual_memory().available < 8e9:
        raise NotRun("less than 8 GB of memory are available, and the server may take 6 if nobody stops it")
    bench.measure()
    hog = {"name": "hog", "size": "1B", "served": {"Q4_K_M": "hog", "Q8_0": "hog"}}
    bench.serve(
        hog, {"name": "modest", "size": "1B", "served": {"Q4_K_M": "modest"}}, command=[], most_bytes=most_gb * 1e9
    )
    bench.config["limits"]["max_memory_gb"] = limit_gb
    swapped = swapped_out_pages()
    run = bench.start()
    run.wait()
    row.times = 1
    swapped = swapped_out_pages() - swapped
    expect(row, run, 1)
    cells = count(row, bench, 3)
    found = {(cell["model"], cell["quantization"]): cell for cell in cells.values()}
    statuses = {" ".join(key): cell["status"] for key, cell in found.items()}
    wanted = {"hog Q4_K_M": "error", "hog Q8_0": "blocked", "modest Q4_K_M": "passed"}
    row.must(statuses == wanted, f"{statuses}, not {wanted}\n{run.tail}")
    for cell in found.values():
        if cell["reason"] is not None:
            row.remarks.append(f"{cell['nodeid']}: {cell['reason']['code']}: {cell['reason']['message'][:300]}")
    codes = [cell["reason"]["code"] for cell in found.values() if cell["status"] == "error"]
    row.must(codes == ["memory_exhausted"], f"errors: {codes}")
    eaten = [int(path.read_text() or 0) for path in bench.folder.glob("eaten-*.txt")]
    beyond = max(eaten, default=0) / 1e9 - limit_gb
    row.remarks.append(
        f"taken until it was stopped: {', '.join(f'{one / 1e9:.3f}' for one in eaten)} GB of {limit_gb} "
        f"({beyond:+.3f}); the machine swapped out {swapped} pages"
    )
    row.must(len(eaten) == 1 and beyond < 0.5 * limit_gb, "it went more than half beyond the limit")
    row.must(not swapped, f"the machine swapped out {swapped} pages")


def swapped_out_pages() -> int:
    """Since this machine started, of whatever process."""
    text = Path("/proc/vmstat").read_text(encoding="ascii") if Path("/proc/vmstat").exists() else ""
    found = re.search(r"^pswpout (\d+)", text, re.MULTILINE)
    if found is None:
        raise NotRun("this system does not tell how much it swaps out (/proc/vmstat)")
    return int(found[1])


def two_at_once(bench: Bench, row: Row, _options: Options) -> None:
    """Two runs that wait for each other, and a third one that does not want to."""
    per_run = len(bench.models) * 3
    both = [bench.start(f"--llmbench-output={name}", "-o", f"cache_dir=.cache-{name}") for name in ("first", "second")]
    folders = [bench.folder / name for name in ("first", "second")]
    wait_until(lambda: any(read_lines(folder / "latest" / "requests.jsonl")[0] for folder in folders), 60.0)
    third = bench.start("--llmbench-output=third", "-o", "cache_dir=.cache-third", "--llmbench-when-busy=fail")
    third.wait()
    row.times = 3
    expect(row, third, 5, "another benchmark", "measures on this machine")
    refused = bench.cells((bench.folder / "third" / "latest").resolve())
    codes = [(cell["status"], (cell["reason"] or {}).get("code")) for cell in refused]
    row.must(codes[:1] == [("error", "device_busy")], f"its records: {codes}\n{third.tail}")
    row.must(len(codes) == 1, f"it went on after it was refused: {codes}")
    expect_in_junit(row, third, len(codes))
    spans = []
    for run, folder in zip(both, folders, strict=True):
        run.wait()
        expect(row, run, 0)
        count(row, bench, per_run, (folder / "latest").resolve())
        of: dict[str, list[int]] = {}
        for request in read_lines(folder / "latest" / "requests.jsonl")[0]:
            of.setdefault(request["cell"], []).extend([request["t_send_ns"], request["t_end_ns"]])
        spans += [(min(times), max(times), folder.name) for times in of.values()]
    spans.sort()
    overlapping = sum(after[0] < before[1] for before, after in pairwise(spans))
    turns = sum(a[2] != b[2] for a, b in pairwise(spans))
    row.remarks.append(f"{len(spans)} cells, {overlapping} overlap; the runs took turns {turns} times")
    row.must(not overlapping, f"{overlapping} cells were measured while another one was")
    row.must(any(run.said("waiting for it") for run in both), f"nobody said that it waits:\n{both[1].tail}")


def orphan(bench: Bench, row: Row, _options: Options) -> None:
    """A server that leaves a child behind when its run is killed; the next run ends it."""
    bench.serve({"name": "modest", "size": "1B", "served": {"Q4_K_M": "modest"}}, command=["sh", "-c", "SERVER & wait"])
    run = bench.start()
    wait_until(lambda: not run.runs or bench.requests_sent() > 0, 60.0)
    row.must(run.runs, f"it ended before it was killed:\n{run.tail}")
    run.end(signal.SIGKILL)
    row.times = 1
    time.sleep(1.0)
    orphans = bench.processes()
    row.remarks.append(f"left by the killed run: {', '.join(f'{p.pid} ({p.name()})' for p in orphans) or 'nothing'}")
    row.must(bool(orphans), "the child did not outlive its run, so nothing was tested")
    again = bench.start("--llmbench-resume=latest")
    again.wait()
    expect(row, again, 0, "ended what a killed run had left")
    still = [process.pid for process in orphans if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    row.must(not still, f"orphans still run: {still}")
    check_requests(row, bench, count(row, bench, 3))


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of this size in memory."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "llmbench", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotRun(f"needs root, to mount a small disk ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(disk: Path, leave_bytes: int) -> Path:
    """Take all space of a disk but this much; what has to be removed to have it again."""
    filler = disk / "filler"
    with filler.open("ab") as file, suppress(OSError):
        while (free := shutil.disk_usage(disk).free - leave_bytes) > 0:
            file.write(b"x" * min(free, 1 << 20))
            file.flush()
    return filler


def full_disk(bench: Bench, row: Row, _options: Options) -> None:
    """A disk that is full before the run, then one that becomes so while it runs; each is resumed with room again."""
    expected = len(bench.models) * 3
    if shutil.which("mount") is None or not sys.platform.startswith("linux"):
        raise NotRun("needs Linux and root, to mount a small disk")
    for when in ("before", "meanwhile"):
        with small_disk(bench.folder / f"disk-{when}", 48) as disk:
            arguments = (f"--llmbench-output={disk / 'results'}", "--llmbench-resume=latest")
            filler = fill(disk, 4 << 20) if when == "before" else None
            run = bench.start(*arguments)
            if filler is None:
                found = disk / "results" / "latest"
                wait_until(lambda run=run, found=found: not run.runs or len(bench.cells(found)) >= 2, 120.0)  # type: ignore[misc]
                filler = fill(disk, 0)
            run.wait()
            row.times += 1
            row.remarks.append(f"{when}: exit status {run.process.returncode}")
            row.must(run.process.returncode not in {0, 3}, f"{when}: exit status {run.process.returncode}\n{run.tail}")
            line = run.said("free some space|No space left")
            row.must(line is not None, f"{when}: no sentence about the disk:\n{run.tail}")
            row.remarks.append(f"{when}: {(line or '')[:230]}")
            row.must("Traceback" not in run.output and "INTERNALERROR" not in run.output, f"{when}:\n{run.tail}")
            latest = (disk / "results" / "latest").resolve()
            cells = bench.cells(latest)
            told = Counter((cell["status"], (cell["reason"] or {}).get("code")) for cell in cells)
            row.remarks.append(f"{when}: records {dict(told)}")
            row.must(any(code == "disk_full" for _, code in told), f"{when}: no record says that the disk was full")
            expect_in_junit(row, run, sum(cell["status"] == "error" for cell in cells))
            filler.unlink()
            again = bench.start(*arguments)
            again.wait()
            expect(row, again, 0)
            count(row, bench, expected, (disk / "results" / "latest").resolve())


def stopped(bench: Bench, row: Row, options: Options) -> None:
    """SIGSTOP of pytest, then of the server, each in the middle of a sample, beside a run that nobody stops."""
    bench.measure()
    bench.config["settings"]["interactive"]["output_tokens"] = 60
    bench.config["measurement"]["max_samples"] = 12
    rates = {}
    for who in ("nobody", "pytest", "server"):
        results = bench.folder / f"results-{who}"
        run = bench.start(f"--llmbench-output={results}")
        latest = results / "latest"
        span = stop(bench, run, latest, who, options) if who != "nobody" else None
        status = run.wait()
        row.times += who != "nobody"
        cells = count(row, bench, 1, latest.resolve())
        cell = next(iter(cells.values()), None)
        if cell is None or not cell["metrics"]:
            row.problems.append(f"{who} stopped: nothing was measured ({cell and cell['reason']})\n{run.tail}")
            continue
        rates[who] = cell["metrics"]["decode_tokens_per_second"]["value"]
        requests = read_lines(latest / "requests.jsonl")[0]
        samples = [request for request in requests if request["phase"] == "sample"]
        discarded = sum("stood_still" in request["flags"] for request in samples)
        row.remarks.append(
            f"{who} stopped: {cell['status']}, exit status {status}, {rates[who]:.1f} tokens/s, {len(samples)} "
            f"samples, {discarded} stood still; flags {cell['flags']}, notes {cell['notes']}"
        )
        if span is None:
            row.must("stood_still" not in cell["flags"], "the undisturbed run is said to have stood still")
            continue
        row.must("stood_still" in cell["flags"], f"{who} stopped: no flag says so")
        row.must(any("stood still" in note or "stopped" in note for note in cell["notes"]), f"{who} stopped: no note")
        within = [s for s in samples if s["usable"] and s["t_send_ns"] < span[1] and s["t_end_ns"] > span[0]]
        row.must(not within, f"{who} stopped: {len(within)} samples of that time are used")
        row.must(discarded > 0, f"{who} stopped: no sample was discarded")
    for who in rates.keys() - {"nobody"}:
        ratio = rates[who] / rates.get("nobody", float("nan"))
        row.remarks.append(f"tokens/s with {who} stopped / undisturbed: {ratio:.3f}")
        row.must(0.5 < ratio < 2.0, f"{who} stopped: the rate is another one, {ratio:.3f} times the undisturbed one")


def stop(bench: Bench, run: Run, latest: Path, who: str, options: Options) -> tuple[int, int]:
    """Stop a process in the middle of a sample; when it did not run, by the clock that times requests too, in ns."""
    wait_until(lambda: not run.runs or len(read_lines(latest / "requests.jsonl")[0]) >= 3, 120.0)
    time.sleep(0.1)
    pids = [run.process.pid] if who == "pytest" else [engine.pid for engine in bench.engines()]
    began = time.perf_counter_ns()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(options.stop_seconds)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return began, time.perf_counter_ns()


def two_hosts(bench: Bench, row: Row, _options: Options) -> None:
    """Two socket workers, each with locks and a label of its own, as two machines would have them."""
    require_xdist()
    expected = len(bench.models) * 3
    bench.configure()
    servers, arguments = [], []
    for label in ("left", "right"):
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        shutil.copytree(bench.folder / "suites", bench.folder / label / "suites")
        shutil.copytree(bench.folder / "configs", bench.folder / label / "configs")
        for name in ("conftest.py", "pytest.ini"):
            shutil.copy(bench.folder / name, bench.folder / label / name)
        servers.append(
            bench.launch(
                "execnet.script.socketserver",
                address,
                LLMBENCH_RUNTIME_DIR=f"{bench.runtime}-{label}",
                LLMBENCH_HOST_LABEL=label,
            )
        )
        arguments += ["--tx", f"socket={address}//chdir={bench.folder / label}"]
        port = int(address.rpartition(":")[2])
        wait_until(lambda port=port: is_listening(port), 20.0)  # type: ignore[misc]
    run = bench.launch("pytest", "-d", "--max-worker-restart=0", *arguments, "-o", "testpaths=suites")
    run.wait()
    for server in servers:
        row.must(server.runs, f"a host has ended:\n{server.tail}")
        server.end(signal.SIGTERM)
    row.times = 1
    expect(row, run, 0)
    cells = count(row, bench, expected)
    hosts = Counter(cell["host"] for cell in cells.values())
    row.remarks.append(f"cells by host: {dict(hosts)}")
    row.must(len(hosts) == 2, f"{len(hosts)} hosts in the records, not 2:\n{run.tail}")
    locks = [name for name in ("left", "right") if any(Path(f"{bench.runtime}-{name}").glob("*.lock"))]
    row.must(locks == ["left", "right"], f"leases were kept for {locks} only")
    check_requests(row, bench, cells)


def is_listening(port: int) -> bool:
    """Whether a port of this machine is in use, without connecting: the server would take us for its controller."""
    return any(one.laddr and one.laddr.port == port for one in psutil.net_connections("tcp4") if one.status == "LISTEN")


def require_xdist() -> None:
    """Raises NotRun where pytest-xdist is missing."""
    try:
        import xdist  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as exc:
        raise NotRun("needs pytest-xdist") from exc


# What is done, and how many names of the model it takes; None: as many as --cells asks for.
Scenario = tuple[str, Callable[[Bench, Row, Options], None], int | None]
SCENARIOS: dict[str, Scenario] = {
    "kill": ("kill -9 of pytest, resume", kill_9, None),
    "kill-n2": ("kill -9 of pytest -n 2, resume", kill_9_workers, None),
    "server": ("kill -9 of the server", kill_server, None),
    "signals": ("Ctrl-C, SIGTERM, resume", ask_to_end, 4),
    "ladder": ("too slow a smallest model", ladder, 1),
    "memory": ("a server takes all memory", all_memory, 1),
    "two": ("two runs at once, a third", two_at_once, 2),
    "orphan": ("an orphan of a killed run", orphan, 1),
    "disk": ("a full disk, resume", full_disk, 2),
    "stop": ("SIGSTOP of pytest, of server", stopped, 1),
    "hosts": ("two socket workers as hosts", two_hosts, 4),
}


def carry_out(name: str, folder: Path, options: Options) -> Row:
    """Run one scenario to its end, whatever happens in it."""
    what, scenario, size = SCENARIOS[name]
    row = Row(what)
    bench = Bench(folder / name, options.cells // 3 if size is None else size)
    began = time.monotonic()
    try:
        scenario(bench, row, options)
    except NotRun as exc:
        row.not_run = str(exc)
    except (OSError, ValueError, LookupError, ET.ParseError, subprocess.SubprocessError, psutil.Error) as exc:
        tail = f"\n{bench.runs[-1].tail}" if bench.runs else ""
        row.problems.append(f"an unexpected state: {type(exc).__name__}: {exc}{tail}")
    finally:
        bench.close(row)
        row.seconds = time.monotonic() - began
    return row


def print_row(name: str, row: Row) -> None:
    numbers = "".join(f"{n:>7}" for n in (row.times, row.expected, row.found, row.twice, row.lost, row.left))
    print(f"{name:<9}{row.done:<32}{numbers}{row.seconds:>9.0f}   {row.verdict}", flush=True)


def print_table(rows: dict[str, Row]) -> None:
    heads = "".join(f"{head:>7}" for head in ("times", "expect", "found", "twice", "lost", "left"))
    print(f"\n{'name':<9}{'what was done':<32}{heads}{'seconds':>9}   verdict")
    for name, row in rows.items():
        print_row(name, row)
    for name, row in rows.items():
        print(f"\n{name}: {row.done}")
        for line in [f"not run: {row.not_run}"] if row.not_run is not None else []:
            print(f"  {line}")
        for line in row.remarks:
            print(f"  {line}")
        for line in row.problems:
            print(f"  MISSED: {line}")


def have_model() -> None:
    """Fetch the model where it is missing."""
    if MODEL.is_file():
        return
    print(f"fetching {MODEL.name}", flush=True)
    subprocess.run([sys.executable, "-m", "pytest_llmbench.cli", "models", "download"], cwd=REPOSITORY, check=False)
    if not MODEL.is_file():
        print(f"{MODEL.relative_to(REPOSITORY)} could not be fetched; see the lines above", file=sys.stderr)
        sys.exit(2)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="NAME,…", help=f"of {', '.join(SCENARIOS)} (default: all)")
    parser.add_argument("--seed", type=int, help="of what happens when (default: another one each time)")
    parser.add_argument("--cells", type=int, default=30, metavar="N", help="of the kill tests (default: 30)")
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="of each kill test (default: 10)")
    parser.add_argument("--stop-seconds", type=float, default=60, metavar="S", help="of a stop (default: 60)")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder, and say where it is")
    arguments = parser.parse_args()
    arguments.names = arguments.only.split(",") if arguments.only else list(SCENARIOS)
    unknown = sorted(set(arguments.names) - SCENARIOS.keys())
    if unknown:
        parser.error(f"--only: there is no {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    if arguments.cells < 6 or arguments.cells % 3:
        parser.error("--cells must be a multiple of 3, and at least 6: a server has three")
    if arguments.kills < 1 or arguments.stop_seconds < 2:
        parser.error("--kills must be at least 1, --stop-seconds at least 2")
    return arguments


def main() -> int:
    arguments = parse()
    have_model()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1_000_000)
    folder = Path(mkdtemp(prefix="llmbench-survival-"))
    print(f"seed {seed}, {arguments.cells} cells, {arguments.kills} kills", flush=True)
    rows = {}
    try:
        for name in arguments.names:
            # Each has its own sequence of chances, so that --only and --seed repeat it.
            options = Options(arguments.cells, arguments.kills, arguments.stop_seconds, random.Random(f"{seed} {name}"))
            rows[name] = carry_out(name, folder, options)
            print_row(name, rows[name])
    finally:
        if arguments.keep:
            print(f"everything is kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print_table(rows)
    return int(any(row.problems for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
