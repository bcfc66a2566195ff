"""Resuming, where it is least expected: folders that something was killed in, signals in pairs, plugins in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmbench.adapters.watching import Watches
from pytest_llmbench.runtime.run_folder import RunFolder
from pytest_llmbench.telemetry.clock import Disturbance
from tests.plugin.bench import SUITE, SWITCH, Bench
from tests.plugin.test_endings import wait_for
from tests.plugin.test_resume import INTERRUPTED, lines, nodeid, statuses

MODELS = ("a", "b", "c", "d")


@pytest.fixture
def four(bench: Bench) -> Bench:
    bench.fake.models = MODELS
    bench.models["models"] = [{"name": name, "size": "1B", "served": {"Q4_K_M": name}} for name in MODELS]
    return bench


@pytest.fixture
def cut_short(four: Bench) -> Bench:
    """A run in which a and b passed before it was interrupted in c."""
    four.write("suites/test_interactive.py", INTERRUPTED)
    assert four.run("suites/").ret == pytest.ExitCode.INTERRUPTED
    four.write("suites/test_interactive.py", SUITE)
    return four


def requests_per_cell(run: Path) -> list[int]:
    asked = [request["cell"] for request in lines(run / "requests.jsonl")]
    return [asked.count(nodeid(name)) for name in MODELS]


def leave_a_part(run: Path, text: str) -> Path:
    """What a worker has written of a run that was killed before it was joined."""
    part = run / "parts" / "requests-gw0.jsonl"
    part.parent.mkdir()
    part.write_text(text)
    return part


@pytest.mark.parametrize("what", ["--collect-only", "--llmbench-dry-run"])
def test_looking_leaves_the_workers_parts_alone(cut_short: Bench, what: str) -> None:
    run = cut_short.latest
    part = leave_a_part(run, (run / "requests.jsonl").read_text().splitlines(keepends=True)[-1])
    before = (run / "run.json").read_bytes()
    assert cut_short.run("suites/", "--llmbench-resume", "latest", what).ret == pytest.ExitCode.OK
    assert part.exists()
    assert (run / "run.json").read_bytes() == before


def test_the_workers_parts_of_a_killed_run_are_joined_first(cut_short: Bench) -> None:
    run = cut_short.latest
    requests = (run / "requests.jsonl").read_text().splitlines(keepends=True)
    (run / "requests.jsonl").write_text("".join(requests[:7]))
    leave_a_part(run, "".join(requests[7:]) + '{"torn')
    cut_short.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=4)
    assert requests_per_cell(run) == [7, 7, 7, 7]
    assert [request["cell"] for request in lines(run / "superseded_requests.jsonl")] == [nodeid("c")]


def test_a_run_killed_while_it_joined_its_parts_has_each_request_once(cut_short: Bench) -> None:
    run = cut_short.latest
    requests = (run / "requests.jsonl").read_text().splitlines(keepends=True)
    leave_a_part(run, "".join(requests[7:]))
    (run / "requests.jsonl").write_text("".join(requests[:10]) + requests[10][:30])
    cut_short.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=4)
    assert requests_per_cell(run) == [7, 7, 7, 7]


@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "1"), marks=pytest.mark.slow)], ids=["alone", "a worker"])
def test_a_run_of_another_folder_is_gone_on_with_there(cut_short: Bench, workers: tuple[str, ...]) -> None:
    moved = cut_short.path / "backup" / cut_short.latest.name
    shutil.copytree(cut_short.latest, moved)
    result = cut_short.run_subprocess("suites/", "--llmbench-resume", str(moved), *workers)
    result.assert_outcomes(passed=4)
    assert requests_per_cell(moved) == [7, 7, 7, 7]
    assert not (cut_short.latest / "parts").exists()


def test_a_run_of_a_later_version_is_refused_before_its_first_cell_too(cut_short: Bench) -> None:
    file = cut_short.latest / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 99}))
    (cut_short.latest / "cells.jsonl").unlink()
    result = cut_short.run("suites/", "--llmbench-resume", "latest")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert json.loads(file.read_text())["schema_version"] == 99


@pytest.mark.parametrize("damage", ["torn within", "blank line", "no record", "newer", "no run.json", "torn run.json"])
def test_what_can_not_be_understood_is_refused_and_left_alone(cut_short: Bench, damage: str) -> None:
    cells, description = cut_short.latest / "cells.jsonl", cut_short.latest / "run.json"
    first, second = cells.read_text().splitlines(keepends=True)
    match damage:
        case "torn within":
            cells.write_text(first[:50] + "\n" + second)
        case "blank line":
            cells.write_text(first + "\n" + second)
        case "no record":
            cells.write_text("[]\n" + second)
        case "newer":
            cells.write_text(first.replace('"schema_version":1', '"schema_version":7') + second)
        case "no run.json":
            description.unlink()
        case _:
            description.write_text('{"torn')
    before = cells.read_bytes()
    result = cut_short.run("suites/", "--llmbench-resume", "latest")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llmbench-resume: *"])
    assert cells.read_bytes() == before


def test_a_part_that_is_cut_short_as_well_tells_what_was_finished(four: Bench) -> None:
    four.fake.fault |= {"c": "truncated", "d": "truncated"}
    four.run("suites/")
    file = four.latest / "run.json"
    first = json.loads(file.read_text())
    four.fake.fault.clear()
    four.write("suites/test_interactive.py", INTERRUPTED)
    assert four.run("suites/", "--llmbench-resume", "latest").ret == pytest.ExitCode.INTERRUPTED
    junit = (four.path / "junit.xml").read_text()  # the cell that was cut short has no name there
    assert [f"test_interactive[{name}-Q4_K_M]" in junit for name in MODELS] == [True, True, False, False]
    assert (
        len((four.latest / "results.csv").read_text().splitlines()) == 1 + 2
    )  # errors that are retried are no results
    four.write("suites/test_interactive.py", SUITE)
    four.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=4)
    last = json.loads(file.read_text())
    assert (last["started_at"], last["command_line"]) == (first["started_at"], first["command_line"])
    assert len(last["resumed"]) == 2


def test_a_run_of_before_a_key_was_there_has_its_default(cut_short: Bench) -> None:
    file = cut_short.latest / "run.json"
    description = json.loads(file.read_text())
    del description["configuration"]["devices"], description["configuration"]["blocking"]
    file.write_text(json.dumps(description))
    cut_short.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=4)


def test_a_run_without_a_line_in_its_records_begins_with_the_first(cut_short: Bench) -> None:
    (cut_short.latest / "cells.jsonl").write_text("")
    cut_short.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=4)
    assert requests_per_cell(cut_short.latest) == [7, 7, 7, 7]


def test_latest_may_be_a_text_file(cut_short: Bench) -> None:
    run, pointer = cut_short.latest, cut_short.path / "results" / "latest"
    pointer.unlink()
    pointer.write_text(run.name + "\n")
    cut_short.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=4)
    assert len(lines(run / "cells.jsonl")) == 4


def test_a_cell_that_is_configured_no_more_keeps_its_record(cut_short: Bench) -> None:
    del cut_short.models["models"][0]
    result = cut_short.run("suites/", "--llmbench-resume", "latest", "--llmbench-resume-anyway")
    result.assert_outcomes(passed=3)
    assert statuses(cut_short) == dict.fromkeys("abcd", "passed")
    assert len((cut_short.latest / "results.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("run", ["x" * 300, "a\0b"], ids=["too long", "with a zero"])
def test_what_can_be_no_name_is_a_usage_error(bench: Bench, run: str) -> None:
    assert bench.run("suites/", "--llmbench-resume", run).ret == pytest.ExitCode.USAGE_ERROR


def test_a_record_that_came_while_the_run_still_ended_is_seen(
    cut_short: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process writes its last record, and lets go of the folder, while this one starts."""
    file, claim = cut_short.latest / "cells.jsonl", RunFolder.claim
    late = file.read_text().splitlines(keepends=True)[0].replace("[a-", "[c-").replace('"model":"a"', '"model":"c"')

    def claim_in_time(folder: RunFolder) -> None:
        with file.open("a") as cells:
            cells.write(late)
        monkeypatch.setattr(RunFolder, "claim", claim)
        claim(folder)

    monkeypatch.setattr(RunFolder, "claim", claim_in_time)
    cut_short.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=4)
    assert statuses(cut_short) == dict.fromkeys("abcd", "passed")


def test_records_that_another_tool_has_written_again_are_replaced_too(four: Bench) -> None:
    four.fake.fault["b"] = "truncated"
    four.run("suites/")
    cells = four.latest / "cells.jsonl"
    cells.write_text("".join(json.dumps(record) + "\n" for record in lines(cells)))  # with blanks after the commas
    four.fake.fault.clear()
    four.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=4)
    assert statuses(four) == dict.fromkeys("abcd", "passed")


def test_a_torn_line_of_superseded_records_stays_alone(four: Bench) -> None:
    four.fake.fault["b"] = "truncated"
    four.run("suites/")
    (four.latest / "superseded.jsonl").write_text('{"torn":')
    four.fake.fault.clear()
    four.run("suites/", "--llmbench-resume", "latest")
    assert [record["model"] for record in lines(four.latest / "superseded.jsonl")] == ["b"]


def test_a_failure_that_was_expected_is_so_in_the_next_part(bench: Bench) -> None:
    bench.config["thresholds"]["interactive"]["min_tokens_per_sec"] = 1e7
    bench.write("suites/test_interactive.py", SUITE.replace("@pytest.mark.ll", "@pytest.mark.xfail\n@pytest.mark.ll"))
    result = bench.run("suites/")
    assert (result.ret, result.parseoutcomes()) == (pytest.ExitCode.OK, {"xfailed": 1})
    assert bench.run("suites/", "--llmbench-resume", "latest").ret == pytest.ExitCode.OK


def test_tests_without_cells_are_no_measurement_that_failed(bench: Bench) -> None:
    bench.fake.fault["*"] = "truncated"
    bench.run("suites/")
    bench.write("suites/test_ordinary.py", "def test_ordinary():\n    pass\n")
    result = bench.run("suites/test_ordinary.py", "--llmbench-resume", "latest")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*none was measured*")


def test_a_plan_tells_what_is_left_to_do(cut_short: Bench) -> None:
    plan = cut_short.path / "plan.json"
    options = ("--llmbench-resume", "latest", "--llmbench-dry-run", "--llmbench-plan-file", str(plan))
    assert cut_short.run("suites/", *options).ret == pytest.ExitCode.OK
    planned = json.loads(plan.read_text())["cells"]
    to_run = [cell for cell in planned if cell["expected"] == "run"]
    assert len(to_run) == 2


def test_a_cell_that_another_plugin_skips_has_a_record(bench: Bench) -> None:
    bench.write(
        "suites/conftest.py",
        "import pytest\n\n@pytest.hookimpl(tryfirst=True)\ndef pytest_runtest_setup(item):\n    pytest.skip('today')\n",
    )
    bench.run("suites/")
    assert (bench.latest / "cells.jsonl").exists()
    assert [cell["status"] for cell in bench.cells()] == ["skipped"]


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "a worker"])
def test_words_that_utf8_can_not_hold_cost_no_record(bench: Bench, workers: tuple[str, ...]) -> None:
    """A model may well answer half a surrogate pair, and a test show it in its message."""
    bench.write("suites/test_interactive.py", SUITE.replace("llm.measure().check()", "pytest.fail('said \\ud83d')"))
    result = bench.run_subprocess("suites/", *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [cell["status"] for cell in bench.cells()] == ["failed"]


def test_a_cell_that_is_selected_twice_has_one_record(bench: Bench) -> None:
    file = "suites/test_interactive.py"
    bench.run("--keep-duplicates", file, file).assert_outcomes(passed=2)
    assert len(bench.cells()) == 1
    assert len(lines(bench.latest / "superseded.jsonl")) == 1


DIES_AFTER_ITS_REPORTS = """
import os

def pytest_runtest_logfinish(nodeid):
    if "PYTEST_XDIST_WORKER" in os.environ and "[a-" in nodeid:
        os._exit(9)
"""


@pytest.mark.slow
def test_a_worker_that_dies_between_two_cells_costs_no_verdict(four: Bench) -> None:
    four.write("conftest.py", SWITCH + DIES_AFTER_ITS_REPORTS)
    assert four.run_subprocess("suites/", "-n", "1").ret == pytest.ExitCode.TESTS_FAILED
    assert statuses(four) == dict.fromkeys("abcd", "passed")


IN_TROUBLE = """
import pytest
from pytest_llmbench.adapters.state import SUITE_KEY
from pytest_llmbench.errors import RecordError

def pytest_runtest_call(item):
    item.config.stash[SUITE_KEY].trouble = RecordError("what a worker sent can not be written")
"""


def test_what_another_thread_could_not_write_ends_the_run(four: Bench) -> None:
    four.write("conftest.py", SWITCH + IN_TROUBLE)
    result = four.run("suites/")
    result.stdout.fnmatch_lines(["*Exit: llmbench: what a worker sent can not be written*"])
    assert len(four.fake.requests) == 7


FULL = """
from pytest_llmbench.runtime import run_folder

run_folder.LEAST_FREE_BYTES = 1 << 60
"""


@pytest.mark.slow
def test_a_full_disk_ends_the_run_of_several_workers(four: Bench) -> None:
    four.write("conftest.py", SWITCH + FULL)
    assert four.run_subprocess("suites/", "-n", "2").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert {cell["reason"]["code"] for cell in four.cells()} == {"disk_full"}
    assert len(four.cells()) < 4
    four.write("conftest.py", SWITCH)
    four.run("suites/", "--llmbench-resume", "latest").assert_outcomes(passed=4)


SLOW_TEARDOWN = """
import pathlib
import signal
import time

import pytest

@pytest.fixture
def slow():
    yield
    pathlib.Path("tearing down").touch()
    deadline = time.monotonic() + 60
    while not pathlib.Path("go on").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    pathlib.Path("torn down").touch()

@pytest.mark.llmbench(profile="interactive")
def test_interactive(slow, llm):
    pathlib.Path("begun").touch()
    time.sleep(60)
"""


@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "1"), marks=pytest.mark.slow)], ids=["alone", "a worker"])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_break_the_teardown(
    bench: Bench, second: signal.Signals, workers: tuple[str, ...]
) -> None:
    """A service manager sends both, one after the other; so does a closed terminal, to workers, with our help."""
    bench.write("suites/test_interactive.py", SLOW_TEARDOWN)
    bench.write_configuration()
    command = [sys.executable, "-m", "pytest", "suites/", *workers]
    process = subprocess.Popen(
        command, cwd=bench.path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert wait_for(bench.path / "begun")
        os.killpg(process.pid, signal.SIGTERM)
        assert wait_for(bench.path / "tearing down")
        os.killpg(process.pid, second)
        (bench.path / "go on").touch()
        assert process.wait(100) == 128 + signal.SIGTERM
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert (bench.path / "torn down").exists()


OWN_PROFILE = """
from pydantic import BaseModel

from pytest_llmbench.client.generation import Generation
from pytest_llmbench.profiles.base import Measurement

pytest_plugins = ["pytest_llmbench.suite"]


class NoSettings(BaseModel):
    pass


class Own:
    name = "own"
    emits = ("ttft_seconds",)
    settings_model = NoSettings

    def run(self, context):
        record = context.request(Generation(max_tokens=5, prompt="hello"), "sample")
        context.file(record)
        measurement = Measurement()
        measurement.add_median("ttft_seconds", [record.ttft_seconds])
        return measurement


def pytest_llmbench_register_profiles(registry):
    registry.add(Own())
"""


@pytest.fixture
def standing_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request is one during which something stood still."""
    monkeypatch.setattr(Watches, "disturbance", lambda _, begin, end: Disturbance("stopped", 3.0, begin, end))


@pytest.mark.usefixtures("standing_still")
def test_a_users_own_profile_makes_no_sample_of_a_request_that_failed_standing_still(bench: Bench) -> None:
    bench.write("conftest.py", OWN_PROFILE)
    bench.config["profiles"] = ["own"]
    bench.write("suites/test_interactive.py", SUITE.replace('"interactive"', '"own"'))
    bench.fake.fault["*"] = "truncated"
    bench.run("suites/")
    (cell,) = bench.cells()
    assert cell["status"] in {"error", "invalid"}


@pytest.mark.usefixtures("standing_still")
@pytest.mark.parametrize(("fault", "status"), [("truncated", "error"), (None, "invalid")])
def test_a_record_without_measurement_says_what_stood_still(bench: Bench, fault: str | None, status: str) -> None:
    bench.fake.fault.update({"*": fault} if fault is not None else {})  # type: ignore[dict-item]
    bench.run("suites/")
    (cell,) = bench.cells()
    assert cell["status"] == status
    assert any("3.0 s" in note for note in cell["notes"])
