"""Under ``-n``: one set of results, one measurement at a time, and a crash that is told."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.plugin.bench import SWITCH, Bench, properties


@pytest.fixture
def four_cells(bench: Bench) -> Bench:
    bench.fake.models = names = ("a", "b", "c", "d")  # four servers, as far as anybody can tell
    bench.models["models"] = [{"name": name, "size": "1B", "served": {"Q4_K_M": name}} for name in names]
    return bench


def test_two_workers_leave_one_set_of_results(four_cells: Bench) -> None:
    result = four_cells.run_subprocess("suites/", "-n", "2")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=4)
    cells = four_cells.cells()
    assert sorted(c["model"] for c in cells) == ["a", "b", "c", "d"]
    assert {c["run_id"] for c in cells} == {four_cells.latest.name}
    assert not (four_cells.latest / "parts").exists()
    requests = four_cells.requests()
    assert len(requests) == 4 * 7
    assert {r["cell"] for r in requests} == {c["nodeid"] for c in cells}
    case = four_cells.junit()["test_interactive[a-Q4_K_M]"]
    assert properties(case)["rating"] == "excellent"
    assert float(properties(case)["decode_tokens_per_second"]) > 0


@pytest.mark.slow
def test_cells_of_one_device_never_measure_at_once(four_cells: Bench) -> None:
    four_cells.run_subprocess("suites/", "-n", "2")
    spans = [(r["cell"], r["t_send_ns"], r["t_end_ns"]) for r in four_cells.requests()]
    by_cell = {
        cell: (min(s for c, s, _ in spans if c == cell), max(e for c, _, e in spans if c == cell))
        for cell in {cell for cell, _, _ in spans}
    }
    ordered = sorted(by_cell.values())  # the monotonic clock is one for all processes of a machine
    assert len(ordered) == 4
    assert all(end <= start for (_, end), (start, _) in pairwise(ordered))


@pytest.mark.slow
def test_errors_and_failures_keep_their_kind(four_cells: Bench) -> None:
    four_cells.fake.fault["b"] = "truncated"
    four_cells.models["models"][2]["thresholds"] = {"interactive": {"min_tokens_per_sec": 1e7}}
    result = four_cells.run_subprocess("suites/", "-n", "2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, failed=1, errors=1)
    junit = four_cells.junit()
    assert len(list(junit["test_interactive[b-Q4_K_M]"].iter("error"))) == 1
    assert len(list(junit["test_interactive[c-Q4_K_M]"].iter("failure"))) == 1
    again = four_cells.run_subprocess("suites/", "--lf", "-n", "2")
    again.assert_outcomes(failed=1, errors=1)


def test_crashed_worker_is_recorded_and_the_rest_is_measured(four_cells: Bench) -> None:
    four_cells.write(
        "suites/test_interactive.py",
        """
import os
from itertools import pairwise

import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm):
    if llm.cell.model == "b":
        os._exit(9)
    llm.measure().check()
""",
    )
    result = four_cells.run_subprocess("suites/", "-n", "2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    status = {c["model"]: c["status"] for c in four_cells.cells()}
    assert status == {"a": "passed", "b": "error", "c": "passed", "d": "passed"}
    (crashed,) = [c for c in four_cells.cells() if c["model"] == "b"]
    assert crashed["reason"]["code"] == "worker_crashed"
    assert crashed["profile"] == "interactive"
    assert len(list(four_cells.junit()["test_interactive[b-Q4_K_M]"].iter("error"))) == 1


@pytest.mark.slow
def test_the_run_is_there_before_its_first_cell_has_ended(four_cells: Bench) -> None:
    """Else nobody could resume one that is killed then."""
    four_cells.write(
        "suites/test_interactive.py",
        """
from pathlib import Path

import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm):
    assert Path("results/latest/run.json").exists()
    llm.measure().check()
""",
    )
    four_cells.run_subprocess("suites/", "-n", "2").assert_outcomes(passed=4)


@pytest.mark.slow
def test_nothing_measured_exits_5_under_xdist(four_cells: Bench) -> None:
    four_cells.config["openai"]["base_url"] = "http://127.0.0.1:9"
    assert four_cells.run_subprocess("suites/", "-n", "2").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert [c["status"] for c in four_cells.cells()] == ["error"] * 4


def test_controller_collects_nothing_and_leaves_nothing_without_cells(bench: Bench) -> None:
    bench.write("conftest.py", SWITCH)
    bench.write("test_ordinary.py", "def test_ordinary():\n    pass\n")
    bench.run_subprocess("test_ordinary.py", "-n", "2").assert_outcomes(passed=1)
    assert not (bench.path / "results").exists()
