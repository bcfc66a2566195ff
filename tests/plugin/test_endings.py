"""Each way a run can end leaves a record and a sentence: a closed terminal, a full disk."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.plugin.bench import ONE_CELL, Bench

TWO_CELLS = """
import pathlib
import time

import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm):
    if llm.cell.model == "b":
        pathlib.Path("b has begun").touch()
        time.sleep(60)
    llm.measure().check()
"""


def wait_for(path: Path, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return path.exists()


@pytest.mark.parametrize(
    "workers", [(), pytest.param(("-n", "2"), marks=pytest.mark.slow)], ids=["alone", "two workers"]
)
def test_a_closed_terminal_ends_the_run_in_order(bench: Bench, workers: tuple[str, ...]) -> None:
    bench.models["models"] = [{"name": n, "size": "1B", "served": {"Q4_K_M": "fake"}} for n in ("a", "b")]
    bench.write("suites/test_interactive.py", TWO_CELLS)
    bench.write_configuration()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pytest", "suites/", "--junitxml=junit.xml", "--llmbench-no-blocking", *workers]
    # Where these tests run under nohup, the signal would be ignored, and that is inherited.
    child = (
        "import fcntl, os, signal, sys, termios; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", child, *command],
        cwd=bench.path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    try:
        assert wait_for(bench.path / "b has begun")
    finally:
        os.close(ours)  # the kernel sends SIGHUP
        status = process.wait(100)
    assert status == 129
    assert {cell["model"] for cell in bench.cells()} <= {"a"}
    assert (bench.latest / "summary.md").exists()
    assert (bench.path / "junit.xml").exists()
    bench.write("suites/test_interactive.py", TWO_CELLS.replace("sleep(60)", "sleep(0)"))
    bench.run("suites/", "--llmbench-resume", "latest", "--llmbench-no-blocking").assert_outcomes(passed=2)


def test_a_disk_that_is_almost_full_ends_the_run_before_it_loses_anything(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_llmbench.runtime import run_folder

    bench.models["models"] = [{"name": n, "size": "1B", "served": {"Q4_K_M": "fake"}} for n in ("a", "b")]
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "LEAST_FREE_BYTES", 1 << 60)
        result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED  # none was measured
    (cell,) = bench.cells()  # the second would find the same
    assert (cell["status"], cell["reason"]["code"]) == ("error", "disk_full")
    assert "--llmbench-resume latest" in cell["reason"]["message"]
    assert len(list(bench.junit()["test_interactive[a-Q4_K_M]"].iter("error"))) == 1
    result.stdout.fnmatch_lines(["*Exit: llmbench: only * MB are free on the disk of *"])
    assert bench.fake.requests == []
    bench.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=2)


def test_a_disk_that_fills_up_in_a_cell_leaves_its_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from pytest_llmbench.runtime import run_folder

    write = run_folder._write_line
    written: list[str] = []

    def until_full(path: Path, line: str, *, durably: bool) -> None:
        full = written.count("requests.jsonl") >= 3 and (path.parent / ".reserve").exists()
        written.append(path.name)
        if full:
            with path.open("a") as file:
                file.write(line[:20])  # what still had room
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, line, durably=durably)

    monkeypatch.setattr(run_folder, "_write_line", until_full)
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED  # none was measured
    (cell,) = bench.cells()
    assert (cell["nodeid"], cell["status"], cell["reason"]["code"]) == (ONE_CELL, "error", "disk_full")
    assert len(bench.requests()) == 4  # the fourth did not fit at first
    assert not list(bench.latest.glob(".reserve"))
    result.stdout.fnmatch_lines(["*Exit: llmbench: *requests.jsonl can not be written: No space left on device*"])
