"""What cells are measured on: leased from one pool per host, shown to the server, told in the record."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import pytest

from pytest_llmbench.runtime.devices import DevicePool
from tests.plugin.bench import Bench

LOOKING = """
import os

import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm):
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == {shown!r}
    llm.measure().check()
"""


def somebody_else(**changes: Any) -> DevicePool:
    return DevicePool(**{"configured": "cpu", "one_each": False, "run_id": "other", "when_busy": "wait", **changes})


def test_the_cpus_are_one_device(bench: Bench) -> None:
    bench.config["devices"] = "cpu"
    bench.run("suites/").assert_outcomes(passed=1)
    assert [cell["device"] for cell in bench.cells()] == ["cpu"]


def test_a_busy_machine_ends_the_run_where_that_is_wanted(bench: Bench) -> None:
    bench.models["models"] *= 2
    bench.models["models"] = [{**model, "name": name} for model, name in zip(bench.models["models"], "ab", strict=True)]
    lease = somebody_else().lease(uses_gpu=False, told=lambda _: None)
    try:
        result = bench.run("suites/", "--llmbench-when-busy", "fail")
    finally:
        lease.release()
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert len(list(bench.junit()["test_interactive[a-Q4_K_M]"].iter("error"))) == 1
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]["code"], cell["device"]) == ("error", "device_busy", None)
    result.stdout.fnmatch_lines(["*Exit: llmbench: another benchmark (run other, process *) measures on this machine*"])
    assert bench.fake.requests == []
    bench.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=2)


@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "1"), marks=pytest.mark.slow)], ids=["alone", "a worker"])
def test_a_run_waits_for_another_and_says_so(bench: Bench, workers: tuple[str, ...]) -> None:
    bench.write_configuration()
    output = bench.path / "pytest.log"
    lease = somebody_else().lease(uses_gpu=False, told=lambda _: None)
    with ExitStack() as stack, output.open("w") as log:
        stack.callback(lease.release)
        command = [sys.executable, "-m", "pytest", "suites/", *workers]
        process = subprocess.Popen(command, cwd=bench.path, stdout=log, stderr=subprocess.STDOUT)
        words = "llmbench: another benchmark (run other, process"
        deadline = time.monotonic() + 60
        while words not in output.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        freed = time.monotonic()
        lease.release()
        assert process.wait(60) == pytest.ExitCode.OK
    assert words in output.read_text()
    assert bench.fake.requests[0]["t_begin"] >= freed


def test_a_gpu_is_shown_to_what_is_started_and_to_nobody_afterwards(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    bench.config["devices"] = [7]
    bench.write("suites/test_interactive.py", LOOKING.format(shown="7"))
    bench.run("suites/").assert_outcomes(passed=1)
    assert [cell["device"] for cell in bench.cells()] == ["7"]
    bench.config["devices"] = "cpu"  # a server that may use a GPU is not kept from one that only it knows
    bench.write("suites/test_interactive.py", LOOKING.format(shown="5"))
    bench.run("suites/").assert_outcomes(passed=1)


# Measures once two have come as far as {what}; ends the wait by itself after {seconds} s.
WAITING_FOR_TWO = """
import time
from pathlib import Path

import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm):
    Path(f"{{llm.cell.model}}.begun").touch()
    deadline = time.monotonic() + {seconds}
    while len(list(Path().glob("*.{what}"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    llm.measure().check()
"""


@pytest.mark.slow
def test_two_devices_are_used_at_once_and_each_by_one(bench: Bench) -> None:
    bench.config["devices"] = ["left", "right"]
    bench.fake.token_seconds = 0.004
    bench.write("suites/test_interactive.py", WAITING_FOR_TWO.format(what="begun", seconds=60))
    bench.fake.models = tuple("abcd")  # four servers, as far as anybody can tell
    bench.models["models"] = [{"name": name, "size": "1B", "served": {"Q4_K_M": name}} for name in "abcd"]
    bench.run_subprocess("suites/", "-n", "2").assert_outcomes(passed=4)
    device = {cell["nodeid"]: cell["device"] for cell in bench.cells()}
    spans: dict[str, tuple[int, int]] = {}
    for nodeid in device:
        sent = [(r["t_send_ns"], r["t_end_ns"]) for r in bench.requests() if r["cell"] == nodeid]
        spans[nodeid] = (min(begin for begin, _ in sent), max(end for _, end in sent))
    assert set(device.values()) == {"left", "right"}
    pairs = [(a, b) for a in spans for b in spans if a < b and spans[a][0] < spans[b][1] and spans[b][0] < spans[a][1]]
    assert pairs
    assert all(device[a] != device[b] for a, b in pairs)


@pytest.mark.slow
def test_auto_means_a_worker_per_device(bench: Bench) -> None:
    bench.config["devices"] = ["left", "right", "middle"]
    result = bench.run_subprocess("suites/", "-n", "auto", "-v")
    result.stdout.fnmatch_lines(["created: 3/3 workers"])


def test_each_worker_running_everything_is_refused(bench: Bench) -> None:
    result = bench.run_subprocess("suites/", "-n", "2", "--dist", "each")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--dist each runs every cell several times*"])
    assert not (bench.path / "results").exists()


WITHOUT_GPU = """
from pytest_llmbench.backends.openai import OpenAIBackend

pytest_plugins = ["pytest_llmbench.suite"]


class WithoutGpu(OpenAIBackend):
    def start(self, request):
        server = super().start(request)
        server.flags = ("partial_gpu_offload",)
        return server


def pytest_llmbench_register_backends(registry):
    registry.add("without_gpu", WithoutGpu())
"""


@pytest.mark.slow
def test_a_server_that_computes_on_the_cpus_has_these_to_itself(bench: Bench) -> None:
    """Else two of them, each with a GPU of its own, would share the cores that both compute on."""
    bench.write("conftest.py", WITHOUT_GPU)
    bench.config |= {"backend": "without_gpu", "devices": ["left", "right"]}
    bench.fake.models = ("a", "b")
    bench.fake.token_seconds = 0.004
    bench.models["models"] = [{"name": name, "size": "1B", "served": {"Q4_K_M": name}} for name in "ab"]
    bench.run_subprocess("suites/", "-n", "2").assert_outcomes(passed=2)
    assert [cell["device"] for cell in bench.cells()] == ["cpu", "cpu"]
    spans = []
    for cell in bench.cells():
        sent = [(r["t_send_ns"], r["t_end_ns"]) for r in bench.requests() if r["cell"] == cell["nodeid"]]
        spans.append((min(begin for begin, _ in sent), max(end for _, end in sent)))
    (_, first_end), (second_begin, _) = sorted(spans)
    assert first_end <= second_begin


LOGGING_STARTS = """
import time
from pathlib import Path

from pytest_llmbench.backends.openai import OpenAIBackend

pytest_plugins = ["pytest_llmbench.suite"]


class Started(OpenAIBackend):
    def start(self, request):
        Path(f"{request.spec.model_name}.started").write_text(str(time.perf_counter_ns()))
        return super().start(request)


def pytest_llmbench_register_backends(registry):
    registry.add("started", Started())
"""


@pytest.mark.parametrize(
    "overlap", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("none", "downloads")), "starts"]
)
def test_what_may_begin_beside_a_measurement_is_configured(bench: Bench, overlap: str) -> None:
    bench.write("conftest.py", LOGGING_STARTS)
    bench.config |= {"backend": "started", "devices": "cpu"}
    bench.config["measurement"]["overlap"] = overlap
    seconds = 60 if overlap == "starts" else 0.5  # else in vain: the other starts once this one is through
    bench.write("suites/test_interactive.py", WAITING_FOR_TWO.format(what="started", seconds=seconds))
    bench.fake.models = ("a", "b")
    bench.models["models"] = [{"name": name, "size": "1B", "served": {"Q4_K_M": name}} for name in "ab"]
    bench.run_subprocess("suites/", "-n", "2").assert_outcomes(passed=2)
    first, second = sorted(("a", "b"), key=lambda name: int((bench.path / f"{name}.started").read_text()))
    ends = [r["t_end_ns"] for r in bench.requests() if f"[{first}-" in r["cell"]]
    started_ns = int((bench.path / f"{second}.started").read_text())
    assert (started_ns < max(ends)) == (overlap == "starts")
    assert all(any("measurement.overlap" in n for n in c["notes"]) == (overlap != "none") for c in bench.cells())


@pytest.mark.parametrize(
    "arguments",
    [("--tx", "popen"), ("-d", "--tx", "2*socket=127.0.0.1:9"), ("-d", *["--tx=socket=127.0.0.1:9"] * 2)],
    ids=["not distributed", "one socket for two", "one socket twice"],
)
def test_what_xdist_would_not_do_as_meant_is_refused(bench: Bench, arguments: tuple[str, ...]) -> None:
    assert bench.run_subprocess("suites/", *arguments).ret == pytest.ExitCode.USAGE_ERROR
