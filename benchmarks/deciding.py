"""What deciding costs: to block cells, to leave finished ones out of a resumed run, to spread groups over devices.

blocking: 50 variants of four sizes on a fast fake server, the smallest of which is too slow by configuration, so that
150 of 200 cells are blocked. Beside it, 150 plain tests that are skipped, with ``-p no:llmbench``. In both, what counts
is the time within ``pytest_runtest_protocol`` (the outermost wrapper there), which includes all reporting.
Bound: 0.5 s for all 150.

resume: 10,000 cells of which all but ten are finished, with all requests that a measured cell sends. The time from the
start of the process to the first cell, with ``--llmbench-resume`` and without, in pairs in alternating order; what
counts is the median of the differences within the pairs. Bound: 2 s. CPU time and peak memory of both are shown.

devices: groups of equal cost, each with a fake server of its own that takes a known time per request, on eight fake
devices with ``-n 8``. The time from the first request to the last, by the servers' clock, against
``ceil(groups / 8)`` times that of one group alone. Bound: 1.10.

Exit status: 0 inside the bounds, 1 outside, 2 when a run did something else than it should.

    python benchmarks/deciding.py [--only NAME,…] [--pairs 3] [--cells 10000] [--rounds 3] [--request-seconds 0.5]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # the fake server lies with the tests

if TYPE_CHECKING:
    from tests.servers.fake_openai import FakeOpenAI

BLOCKED, SIZES, VARIANTS = 150, ("1B", "3B", "7B", "14B"), 50
MAX_BLOCKED_SECONDS = 0.5
UNFINISHED, VARIANTS_OF_RESUME = 10, 100
MAX_RESUME_SECONDS = 2.0
DEVICES, CELLS_OF_A_GROUP = 8, 3
MAX_MAKESPAN_RATIO = 1.10
TAIL_LINES = 25
# Linux counts kibibytes, macOS bytes.
RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024

SWITCH = 'pytest_plugins = ["pytest_llmbench.suite"]\n'
TIMING = """
import time
import pytest

TIMES = []

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    began = time.perf_counter()
    try:
        return (yield)
    finally:
        TIMES.append(f"{time.perf_counter() - began} {item.nodeid}\\n")

def pytest_unconfigure():
    with open("times.txt", "w") as file:
        file.writelines(TIMES)
"""
# Ends the process where the first cell would begin: how it ends is not what is measured.
FIRST_CELL = """
import os, resource, time
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    if "LLMBENCH_FIRST_CELL" in os.environ:
        now, used = time.perf_counter_ns(), resource.getrusage(resource.RUSAGE_SELF)
        with open("first.txt", "w") as file:
            file.write(f"{now} {used.ru_utime + used.ru_stime} {used.ru_maxrss} {item.nodeid}")
        os._exit(0)
"""
PLAIN_SUITE = """
import pytest

@pytest.mark.parametrize("number", range({count}))
@pytest.mark.skip(reason="a sentence about as long as those that tell why a cell is pointless, with some figures: 1.5")
def test_interactive(number):
    pass
"""
TEST = """
@pytest.mark.llmbench(profile="interactive")
def test_{name}(llm):
    llm.measure().check()
"""


class WrongRun(Exception):
    """A run did something else than what is to be timed; says what."""


@dataclass(frozen=True)
class Result:
    """A figure, what stands beside it, and the most it may be."""

    name: str
    figure: float
    unit: str
    bound: float
    beside: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return self.figure <= self.bound


@dataclass(frozen=True)
class Start:
    """What a process took from its start to its first cell."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


class Bench:
    """A benchmark folder with locks of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = {
            "backend": "openai",
            "profiles": ["interactive"],
            "settings": {"interactive": {"output_tokens": 60, "short_answers": 0}},
            "thresholds": {"interactive": {"max_variance": None}},
            "measurement": {"max_samples": 6, "calibrate": False},
            "output": {"formats": ["json"]},
        }
        self.models: list[dict[str, Any]] = []

    def write(self, conftest: str, *tests: str) -> None:
        """Write everything; ``tests`` are names."""
        configs, suites = self.folder / "configs", self.folder / "suites"
        configs.mkdir(parents=True, exist_ok=True)
        suites.mkdir(exist_ok=True)
        models = {"models": self.models, "full_mode_quants": ["Q4_K_M"]}
        (configs / "config.yaml").write_text(yaml.safe_dump(self.config), encoding="utf-8")
        (configs / "models.yaml").write_text(yaml.safe_dump(models), encoding="utf-8")
        (self.folder / "conftest.py").write_text(SWITCH + conftest, encoding="utf-8")
        (self.folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")  # settles the rootdir
        suite = "import pytest\n" + "".join(TEST.format(name=name) for name in tests)
        (suites / "test_interactive.py").write_text(suite, encoding="utf-8")

    def run(self, *arguments: str, status: int = 0, **environment: str) -> str:
        """Run pytest; what it wrote. Raises WrongRun when it ends with another exit status."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "LLMBENCH"))}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=self.folder,
            env={**kept, "LLMBENCH_RUNTIME_DIR": str(self.folder / "runtime"), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != status:
            raise WrongRun(f"pytest ended with {done.returncode} instead of {status}:\n{tail_of(done.stdout)}")
        return done.stdout

    @property
    def latest(self) -> Path:
        return (self.folder / "results" / "latest").resolve()

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The objects of a file of the newest run."""
        with (self.latest / name).open("rb") as file:
            yield from map(json.loads, file)


def tail_of(output: str) -> str:
    return "\n".join(f"    | {line}" for line in output.splitlines()[-TAIL_LINES:])


def served(name: str, size: str = "1B") -> dict[str, Any]:
    return {"name": name, "size": size, "served": {"Q4_K_M": "fake"}}


def times_of(folder: Path) -> dict[str, float]:
    """Seconds by node id, as TIMING left them."""
    split = (line.split(" ", 1) for line in (folder / "times.txt").read_text(encoding="utf-8").splitlines())
    return {nodeid: float(seconds) for seconds, nodeid in split}


def blocking(root: Path, arguments: argparse.Namespace) -> Result:
    """Time all blocked cells of a run, beside as many skipped tests; the median of several runs."""
    from tests.servers.fake_openai import FakeOpenAI

    ours, plain = Bench(root / "ours"), Bench(root / "plain")
    plain.write("")
    (plain.folder / "conftest.py").write_text(TIMING, encoding="utf-8")
    (plain.folder / "suites" / "test_interactive.py").write_text(PLAIN_SUITE.format(count=BLOCKED), encoding="utf-8")
    ours.models = [served(f"model-{size}", size) for size in SIZES]
    ours.config["thresholds"]["interactive"]["min_tokens_per_sec"] = 1e7
    ours.config["variants"] = [{"id": f"v{index:02}", "ctx_size": 1024 + index} for index in range(VARIANTS)]
    seconds: list[float] = []
    beside: list[float] = []
    with FakeOpenAI() as fake:
        ours.config["openai"] = {"base_url": fake.url}
        ours.write(TIMING, "interactive")
        for _ in range(arguments.pairs):
            output = ours.run("suites/", status=1)
            blocked = [cell["nodeid"] for cell in ours.lines("cells.jsonl") if cell["status"] == "blocked"]
            if len(blocked) != BLOCKED:
                raise WrongRun(f"{len(blocked)} cells were blocked instead of {BLOCKED}:\n{tail_of(output)}")
            times = times_of(ours.folder)
            seconds.append(sum(times[nodeid] for nodeid in blocked))
            plain.run("suites/", "-p", "no:llmbench")
            beside.append(sum(times_of(plain.folder).values()))
    ratio = median(a / b for a, b in zip(seconds, beside, strict=True))
    return Result(
        f"{BLOCKED} blocked cells",
        median(seconds),
        "s",
        MAX_BLOCKED_SECONDS,
        (
            f"{range_of(seconds)} in {len(seconds)} runs",
            f"{BLOCKED} skipped tests of a plain suite: median {median(beside):.3f} s ({range_of(beside)})",
            f"blocked / skipped: median ratio {ratio:.2f}",
        ),
    )


def range_of(seconds: list[float]) -> str:
    return f"{min(seconds):.3f} to {max(seconds):.3f} s"


def resume(root: Path, arguments: argparse.Namespace) -> Result:
    """Time the way to the first cell of a resumed run, beside that of a new one."""
    from tests.servers.fake_openai import FakeOpenAI

    bench = Bench(root)
    model_count = arguments.cells // VARIANTS_OF_RESUME
    bench.models = [served(f"model-{index:03}") for index in range(model_count)]
    bench.config["variants"] = [{"id": f"v{i:03}", "ctx_size": 1024 + i} for i in range(VARIANTS_OF_RESUME)]
    with FakeOpenAI() as fake:
        bench.config["openai"] = {"base_url": fake.url}
        bench.write(FIRST_CELL, "interactive")
        bench.run("suites/", "-k", cell_name(0, 0))
        finish(bench, model_count)
        new: list[Start] = []
        resumed: list[Start] = []
        left = cell_name(*places_of(model_count)[-UNFINISHED])
        ways = [
            (new, (cell_name(0, 0), "--llmbench-output=new")),
            (resumed, (left, "--llmbench-resume=latest")),
        ]
        for index in range(arguments.pairs):
            for found, options in ways if index % 2 == 0 else reversed(ways):
                found.append(until_first_cell(bench, *options))
    size_mb = sum((bench.latest / name).stat().st_size for name in ("cells.jsonl", "requests.jsonl")) / 1e6
    return Result(
        f"resume of {arguments.cells:,} cells",
        median(b.seconds - a.seconds for a, b in zip(new, resumed, strict=True)),
        "s",
        MAX_RESUME_SECONDS,
        (
            f"until the first cell of a new run: {in_words(new)}",
            f"until the first cell of a resumed run: {in_words(resumed)}",
            f"{arguments.cells - UNFINISHED:,} finished cells and their requests: {size_mb:.0f} MB of records",
        ),
    )


def places_of(model_count: int) -> list[tuple[int, int]]:
    """Model and variant of each cell, in the order of the suite."""
    return [(model, variant) for model in range(model_count) for variant in range(VARIANTS_OF_RESUME)]


def cell_name(model: int, variant: int) -> str:
    return f"model-{model:03}-Q4_K_M-v{variant:03}"


def in_words(starts: list[Start]) -> str:
    seconds = range_of([start.seconds for start in starts])
    cpu, peak = (median(getattr(start, name) for start in starts) for name in ("cpu_seconds", "peak_mib"))
    return f"{seconds} in {len(starts)} runs, medians: CPU time {cpu:.2f} s, peak memory {peak:.0f} MiB"


def finish(bench: Bench, model_count: int) -> None:
    """Make a run of one cell into one of all but the last few, in the order of the suite, line by line."""
    (cell,) = bench.lines("cells.jsonl")
    requests = list(bench.lines("requests.jsonl"))
    with (
        (bench.latest / "cells.jsonl").open("w", encoding="ascii") as cells_file,
        (bench.latest / "requests.jsonl").open("w", encoding="ascii") as requests_file,
    ):
        for model, variant in places_of(model_count)[:-UNFINISHED]:
            names = {"model": f"model-{model:03}", "variant": f"v{variant:03}"}
            nodeid = cell["nodeid"].replace(cell_name(0, 0), cell_name(model, variant))
            settings = {**cell["settings"], "context_size": 1024 + variant}
            cells_file.write(line_of({**cell, **names, "nodeid": nodeid, "settings": settings}))
            for request in requests:
                requests_file.write(line_of({**request, "cell": nodeid}))


def line_of(record: dict[str, Any]) -> str:
    """As records are written: without spaces."""
    return json.dumps(record, separators=(",", ":")) + "\n"


def until_first_cell(bench: Bench, cell: str, *options: str) -> Start:
    """Start a process and see what it takes to its first cell, which has to be this one."""
    first = bench.folder / "first.txt"
    first.unlink(missing_ok=True)
    began = time.perf_counter_ns()
    output = bench.run("suites/", *options, LLMBENCH_FIRST_CELL="1")
    written = first.read_text(encoding="utf-8") if first.exists() else "0 0 0 none"
    at_ns, cpu, peak, nodeid = written.split(" ", 3)
    if not nodeid.endswith(f"[{cell}]"):
        raise WrongRun(f"the first cell was {nodeid} instead of {cell}:\n{tail_of(output)}")
    return Start((int(at_ns) - began) / 1e9, float(cpu), int(peak) * RSS_UNIT_BYTES / 2**20)


def devices(root: Path, arguments: argparse.Namespace) -> Result:
    """Time groups of equal cost on eight devices, against one of them alone."""
    from tests.servers.fake_openai import FakeOpenAI

    bench = Bench(root)
    groups = DEVICES * arguments.rounds
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeOpenAI(first_text_seconds=arguments.request_seconds)) for _ in range(groups)]
        bench.models = [served("tiny")]
        bench.config["variants"] = [{"id": f"v{i:02}", "base_url": fake.url} for i, fake in enumerate(fakes)]
        bench.config["devices"] = list("abcdefgh")
        # Few, so that the servers, which all live in this process, have little to do.
        bench.config["settings"]["interactive"]["output_tokens"] = 8
        bench.write("", *(f"part_{number}" for number in range(CELLS_OF_A_GROUP)))
        alone = []
        for _ in range(2):  # the second time, everything has been read from disk before
            forget(fakes)
            bench.run("suites/", "-n", "1", "-k", "v00")
            alone.append(span_of(fakes[:1]))
        forget(fakes)
        output = bench.run("suites/", "-n", str(DEVICES))
        makespan = span_of(fakes)
    cells = list(bench.lines("cells.jsonl"))
    used = Counter(cell["device"] for cell in cells)
    if len(cells) != groups * CELLS_OF_A_GROUP or set(used) != set("abcdefgh"):
        raise WrongRun(f"{len(cells)} cells on {dict(used)}:\n{tail_of(output)}")
    ideal = arguments.rounds * alone[-1]
    spans = spans_by_device(bench, {cell["nodeid"]: cell["device"] for cell in cells})
    shared = sum(after[0] < before[1] for of in spans for before, after in pairwise(of))
    if shared:
        raise WrongRun(f"{shared} cells were measured on a device that another one was measured on")
    return Result(
        f"{groups} groups on {DEVICES} devices",
        makespan / ideal,
        "×",
        MAX_MAKESPAN_RATIO,
        (
            f"makespan {makespan:.2f} s, ideal {ideal:.2f} s; a group alone {alone[-1]:.2f} s (before: {alone[0]:.2f})",
            f"cells by device: {dict(sorted(used.items()))}; no two at once on one",
            f"the first cells of the devices began within {apart([of[0][0] for of in spans]):.2f} s",
            f"the last cells of the devices ended within {apart([of[-1][1] for of in spans]):.2f} s",
            f"from a cell's last request to the next one's first: {pauses(spans)}",
        ),
    )


def forget(fakes: list[FakeOpenAI]) -> None:
    """Begin anew with what servers were asked."""
    for fake in fakes:
        fake.requests.clear()
        fake.proofs.clear()


def span_of(fakes: list[FakeOpenAI]) -> float:
    """Seconds from the first request to the end of the last, proofs included."""
    asked = [body for fake in fakes for body in [*fake.requests, *fake.proofs]]
    return float(max(body["t_end"] for body in asked) - min(body["t_begin"] for body in asked))


def spans_by_device(bench: Bench, device_of: dict[str, str]) -> list[list[tuple[int, int]]]:
    """For each device, begin and end of the requests of each cell, in order, in ns."""
    times: dict[str, list[int]] = {}
    for request in bench.lines("requests.jsonl"):
        times.setdefault(request["cell"], []).extend((request["t_send_ns"], request["t_end_ns"]))
    spans: dict[str, list[tuple[int, int]]] = {}
    for nodeid, found in times.items():
        spans.setdefault(device_of[nodeid], []).append((min(found), max(found)))
    return [sorted(of) for of in spans.values()]


def pauses(spans: list[list[tuple[int, int]]]) -> str:
    """What lies between two cells of a device; in the first of these, libraries are read."""
    found = [[(after[0] - before[1]) / 1e9 for before, after in pairwise(of)] for of in spans]
    later = [pause for of in found for pause in of[1:]] or [float("nan")]
    return f"median {median(of[0] for of in found):.2f} s the first time, {median(later):.2f} s later"


def apart(times_ns: list[int]) -> float:
    """Seconds between the first and the last of these times."""
    return (max(times_ns) - min(times_ns)) / 1e9


BENCHMARKS: dict[str, Callable[[Path, argparse.Namespace], Result]] = {
    "blocking": blocking,
    "resume": resume,
    "devices": devices,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="NAME,…", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--pairs", type=int, default=3, metavar="N", help="runs, and as many beside (default: 3)")
    parser.add_argument("--cells", type=int, default=10_000, metavar="N", help="of the resumed run (default: 10000)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="groups per device (default: 3)")
    parser.add_argument("--request-seconds", type=float, default=0.5, metavar="S", help="of a fake server (0.5)")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(BENCHMARKS)
    unknown = sorted(set(names) - BENCHMARKS.keys())
    if unknown:
        parser.error(f"--only: there is no {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if arguments.pairs < 1 or arguments.rounds < 1 or arguments.request_seconds <= 0:
        parser.error("--pairs, --rounds and --request-seconds must be positive")
    if arguments.cells < VARIANTS_OF_RESUME or arguments.cells % VARIANTS_OF_RESUME:
        parser.error(f"--cells must be a multiple of {VARIANTS_OF_RESUME}")
    return report(names, arguments)


def report(names: list[str], arguments: argparse.Namespace) -> int:
    """Run what is wanted and print it; the exit status."""
    status = 0
    print(f"{'what':<28}{'figure':>10}   {'at most':>8}", flush=True)
    for name in names:
        with TemporaryDirectory(prefix=f"llmbench-{name}-") as folder:
            try:
                result = BENCHMARKS[name](Path(folder), arguments)
            except WrongRun as exc:
                print(f"{name}: {exc}", flush=True)
                status = 2
                continue
        verdict = "ok" if result.holds else "MISSED"
        print(f"{result.name:<28}{result.figure:>8.3f} {result.unit}   {result.bound:>6.2f} {result.unit}   {verdict}")
        for line in result.beside:
            print(f"    {line}", flush=True)
        status = max(status, int(not result.holds))
    return status


if __name__ == "__main__":
    sys.exit(main())
