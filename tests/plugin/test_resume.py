"""``--llmbench-resume``: exactly what was not finished is done again, and everything is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.plugin.bench import Bench, properties

INTERRUPTED = """
import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm):
    if llm.cell.model == "c":
        llm.complete("not to the end", max_tokens=4)
        pytest.exit("Ctrl-C would end it so, too")
    llm.measure().check()
"""


def nodeid(model: str) -> str:
    return f"suites/test_interactive.py::test_interactive[{model}-Q4_K_M]"


@pytest.fixture
def four(bench: Bench) -> Bench:
    bench.fake.models = names = ("a", "b", "c", "d")
    bench.models["models"] = [{"name": name, "size": "1B", "served": {"Q4_K_M": name}} for name in names]
    return bench


@pytest.fixture
def cut_short(four: Bench) -> Bench:
    """A run in which a passed and b failed before it was interrupted in c."""
    four.models["models"][1]["thresholds"] = {"interactive": {"min_tokens_per_sec": 1e7}}
    suite = (four.path / "suites/test_interactive.py").read_text()
    four.write("suites/test_interactive.py", INTERRUPTED)
    four.config["blocking"] = {"speed": False}
    assert four.run("suites/").ret == pytest.ExitCode.INTERRUPTED
    four.write("suites/test_interactive.py", suite)
    return four


def statuses(bench: Bench) -> dict[str, str]:
    cells = bench.cells()
    found = {cell["model"]: cell["status"] for cell in cells}
    assert len(found) == len(cells), "a cell has two records"
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "two workers"])
def test_what_was_not_finished_is_done_and_all_is_reported(cut_short: Bench, workers: tuple[str, ...]) -> None:
    before = cut_short.latest
    assert statuses(cut_short) == {"a": "passed", "b": "failed"}
    asked = len(cut_short.fake.requests)
    run = cut_short.run_subprocess if workers else cut_short.run
    result = run("suites/", "--llmbench-resume", "latest", *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED  # of b, in the first part
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines([f"llmbench: resuming run {before.name}: 2 finished, 2 to go"])
    assert cut_short.latest == before
    assert [path.name for path in before.parent.iterdir() if path.name != "latest"] == [before.name]
    assert statuses(cut_short) == {"a": "passed", "b": "failed", "c": "passed", "d": "passed"}
    assert len(cut_short.fake.requests) == asked + 2 * 7
    junit = cut_short.junit()
    assert len(junit) == 4
    assert "thresholds not met" in junit["test_interactive[b-Q4_K_M]"][-1].attrib["message"]
    assert properties(junit["test_interactive[a-Q4_K_M]"])["resumed_from_record"] == "True"
    assert "resumed_from_record" not in properties(junit["test_interactive[c-Q4_K_M]"])
    assert "Cells: 3 passed, 1 failed." in (before / "summary.md").read_text()
    assert len((before / "results.csv").read_text().splitlines()) == 5


def test_requests_of_an_interrupted_cell_are_set_aside(cut_short: Bench) -> None:
    assert [r["cell"] for r in cut_short.requests()].count(nodeid("c")) == 1
    cut_short.run("suites/", "--llmbench-resume", "latest")
    per_cell = [sum(r["cell"] == nodeid(name) for r in cut_short.requests()) for name in "abcd"]
    assert per_cell == [7, 7, 7, 7]
    (aside,) = lines(cut_short.latest / "superseded_requests.jsonl")
    assert aside["cell"] == nodeid("c")


def test_an_interrupted_cell_stays_in_last_failed(cut_short: Bench) -> None:
    result = cut_short.run("suites/", "--lf")
    result.assert_outcomes(passed=1, failed=1)
    assert statuses(cut_short) == {"b": "failed", "c": "passed"}


def test_errors_are_retried_and_verdicts_are_not(four: Bench) -> None:
    four.fake.fault["b"] = "truncated"
    four.models["models"][2]["thresholds"] = {"interactive": {"min_tokens_per_sec": 1e7}}
    four.config["blocking"] = {"speed": False}
    four.run("suites/")
    assert statuses(four) == {"a": "passed", "b": "error", "c": "failed", "d": "passed"}
    four.fake.fault.clear()
    asked = len(four.fake.requests)
    four.run("suites/", "--llmbench-resume", four.latest.name).assert_outcomes(passed=3, failed=1)
    assert statuses(four) == {"a": "passed", "b": "passed", "c": "failed", "d": "passed"}
    assert len(four.fake.requests) == asked + 7
    (error,) = lines(four.latest / "superseded.jsonl")
    assert (error["model"], error["status"]) == ("b", "error")
    assert json.loads((four.latest / "run.json").read_text())["resumed"][0]["differences"] == []


def test_records_of_cells_that_are_not_selected_stay(four: Bench) -> None:
    four.fake.fault.update(dict.fromkeys("abcd", "truncated"))
    four.run("suites/")
    four.fake.fault.clear()
    four.run("suites/", "--llmbench-resume", "latest", "-k", "b-Q4").assert_outcomes(passed=1, deselected=3)
    assert statuses(four) == {"a": "error", "b": "passed", "c": "error", "d": "error"}


def test_nothing_left_to_do_is_no_failure(bench: Bench) -> None:
    bench.run("suites/")
    asked = len(bench.fake.requests)
    result = bench.run("suites/", "--llmbench-resume", "latest")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1)
    assert len(bench.fake.requests) == asked


def test_stop_at_the_first_failure_means_the_first_new_one(cut_short: Bench) -> None:
    result = cut_short.run("suites/", "--llmbench-resume", "latest", "-x")
    result.assert_outcomes(passed=3, failed=1)
    assert set(statuses(cut_short)) == set("abcd")


def test_a_torn_line_is_cut_and_a_repeated_record_set_aside(four: Bench) -> None:
    four.run("suites/")
    cells = four.latest / "cells.jsonl"
    first, second, third, last = cells.read_text().splitlines(keepends=True)
    cells.write_text(first + second + third + first + last[:50])
    requests = four.latest / "requests.jsonl"
    requests.write_text(requests.read_text() + '{"schema_version":1,"cell":"torn')
    telemetry = four.latest / "telemetry.jsonl"
    sensed = {(sample["cell"], sample["t_ns"]) for sample in lines(telemetry)}
    telemetry.write_text(telemetry.read_text() + '{"schema_version":1,"cell":"torn')
    four.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=4)
    assert statuses(four) == dict.fromkeys("abcd", "passed")
    assert len(four.requests()) == 4 * 7
    kept = {(sample["cell"], sample["t_ns"]) for sample in four.lines("telemetry.jsonl")}
    assert {sample for sample in sensed if sample[0] != nodeid("d")} <= kept
    assert not {sample for sample in sensed if sample[0] == nodeid("d")} & kept  # a clock of another process


def test_what_the_sensors_told_stays_when_nothing_is_left_to_measure(four: Bench) -> None:
    four.run("suites/")
    before = json.loads((four.latest / "run.json").read_text())["sensors"]
    assert before
    four.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=4)
    assert json.loads((four.latest / "run.json").read_text())["sensors"] == before


def test_a_changed_configuration_is_refused_with_the_difference(cut_short: Bench) -> None:
    cut_short.config["limits"] = {"max_memory_gb": 12}
    cut_short.models["models"][0]["size"] = "2B"
    result = cut_short.run("suites/", "--llmbench-resume", "latest")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str()
    assert "limits.max_memory_gb: None → 12" in text
    assert "models[a].size: '1B' → '2B'" in text
    assert "--llmbench-resume-anyway" in text
    assert statuses(cut_short) == {"a": "passed", "b": "failed"}
    result = cut_short.run("suites/", "--llmbench-resume", "latest", "--llmbench-resume-anyway")
    result.assert_outcomes(passed=3, failed=1)
    (resumed,) = json.loads((cut_short.latest / "run.json").read_text())["resumed"]
    assert "limits.max_memory_gb: None → 12.0" in resumed["differences"]
    noted = {cell["model"]: any("None → 12.0" in note for note in cell["notes"]) for cell in cut_short.cells()}
    assert noted == {"a": False, "b": False, "c": True, "d": True}
    assert "limits.max\\_memory\\_gb: None → 12.0" in (cut_short.latest / "summary.md").read_text()


def test_what_has_no_effect_on_numbers_may_change(cut_short: Bench) -> None:
    cut_short.config["logging"] = {"level": "DEBUG"}
    cut_short.config["output"] = {"formats": ["csv"]}
    cut_short.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=3, failed=1)


def test_a_first_run_may_say_resume(bench: Bench) -> None:
    result = bench.run("suites/", "--llmbench-resume", "latest")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["llmbench: there is no run to resume yet; this one is new"])


@pytest.mark.parametrize("how", ["latest", "id", "folder", "file"])
def test_the_configuration_may_say_it(cut_short: Bench, how: str) -> None:
    run = cut_short.latest
    cut_short.config["resume_from"] = {
        "latest": "latest",
        "id": run.name,
        "folder": f"results/{run.name}",
        "file": f"results/{run.name}/run.json",
    }[how]
    cut_short.run("suites/").assert_outcomes(passed=3, failed=1)
    assert cut_short.latest == run


def test_a_run_that_is_not_there_is_a_usage_error(bench: Bench) -> None:
    result = bench.run("suites/", "--llmbench-resume", "20260101T000000Z-0000")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llmbench-resume: '20260101T000000Z-0000' is no run*"])


def test_a_run_that_still_goes_on_is_not_touched(cut_short: Bench) -> None:
    before = (cut_short.latest / "cells.jsonl").read_bytes()
    with FileLock(cut_short.latest / ".lock"):
        result = cut_short.run("suites/", "--llmbench-resume", "latest")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*goes on in another process*"])
    assert (cut_short.latest / "cells.jsonl").read_bytes() == before


@pytest.mark.parametrize("what", ["--collect-only", "--llmbench-dry-run"])
def test_looking_changes_nothing(cut_short: Bench, what: str) -> None:
    before = {path.name: path.read_bytes() for path in cut_short.latest.glob("*.json*")}
    assert cut_short.run("suites/", "--llmbench-resume", "latest", what).ret == pytest.ExitCode.OK
    assert {path.name: path.read_bytes() for path in cut_short.latest.glob("*.json*")} == before


def test_the_earlier_part_teaches_blocking(four: Bench) -> None:
    for index, size in enumerate(("1B", "3B", "7B", "13B")):
        four.models["models"][index]["size"] = size
    four.config["thresholds"]["interactive"]["min_tokens_per_sec"] = 1e7
    suite = (four.path / "suites/test_interactive.py").read_text()
    four.write("suites/test_interactive.py", INTERRUPTED.replace('== "c"', '== "b"'))
    four.run("suites/", "--llmbench-no-blocking")
    four.write("suites/test_interactive.py", suite)
    asked = len(four.fake.requests)
    four.run("suites/", "--llmbench-resume", "latest")
    assert statuses(four) == {"a": "failed", "b": "blocked", "c": "blocked", "d": "blocked"}
    assert len(four.fake.requests) == asked
