"""``--llmbench-baseline``: a cell that became worse fails, and what can not be told is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.bench import ONE_CELL, Bench

NAME = "test_interactive[tiny-Q4_K_M]"
# Beyond what any noise of a test's machine makes of the fake server's times.
FACTOR = 1000.0


# Between which no test of a few samples can tell, however the fake server's own times vary.
NOISE = tuple(10.0**power for power in range(-4, 5))


def save_baseline(bench: Bench, *, factor: float = 1.0, noise: Sequence[float] = (), **changes: Any) -> str:
    """Run once, and write a baseline of it.

    Args:
        factor: how many times as fast the model was then.
        noise: samples of every metric around its value, instead of those that were measured.
        changes: of the baseline's cell.
    """
    from pytest_llmbench.core.baseline import baseline_text
    from pytest_llmbench.runtime.baselines import run_baseline

    assert bench.run("suites/").ret == pytest.ExitCode.OK
    baseline = run_baseline(bench.latest)
    (cell,) = baseline.cells
    rate = cell.metrics["decode_tokens_per_second"]
    faster = rate.model_copy(
        update={"value": rate.value * factor, "samples": [[s * factor for s in load] for load in rate.samples]}
    )
    metrics = {**cell.metrics, "decode_tokens_per_second": faster}
    for name, metric in metrics.items() if noise else ():
        if metric.samples:
            metrics[name] = metric.model_copy(update={"samples": [[metric.value * times for times in noise]]})
    cell = cell.model_copy(update={"metrics": metrics, **changes})
    bench.write("baseline.json", baseline_text(baseline.model_copy(update={"cells": [cell]})))
    return "baseline.json"


def verdicts(bench: Bench) -> dict[str, str]:
    (cell,) = bench.cells()
    return {one["metric"]: one["verdict"] for one in cell["comparisons"]}


def test_a_regressed_cell_fails_though_its_thresholds_are_met(bench: Bench) -> None:
    path = save_baseline(bench, factor=FACTOR)
    assert bench.run("suites/", "--llmbench-baseline", path).ret == pytest.ExitCode.TESTS_FAILED
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]["code"], cell["rating"]) == ("failed", "regressed", "excellent")
    assert {one["verdict"] for one in cell["thresholds"]} == {"pass"}
    (worse,) = (one for one in cell["comparisons"] if one["verdict"] == "regressed")
    assert (worse["metric"], worse["limit_percent"]) == ("decode_tokens_per_second", 5)
    assert worse["ci_low"] <= worse["ratio"] <= worse["ci_high"] < 0.1
    assert worse["p_value"] < 0.05
    (failure,) = bench.junit()[NAME].iter("failure")
    assert worse["message"] in failure.attrib["message"]
    described = json.loads((bench.latest / "run.json").read_text())["baseline"]
    assert described["run_id"] != bench.latest.name
    assert (described["max_regression_percent"], described["comparisons"]) == (5, 2)  # rate and time to first token


def test_lf_comes_back_to_a_regressed_cell(bench: Bench) -> None:
    path = save_baseline(bench, factor=FACTOR)
    bench.run("suites/", "--llmbench-baseline", path)
    assert bench.run("suites/", "--lf").ret == pytest.ExitCode.OK
    assert [cell["nodeid"] for cell in bench.cells()] == [ONE_CELL]


def test_one_load_each_is_too_little_for_a_verdict_and_that_is_said(bench: Bench) -> None:
    path = save_baseline(bench, noise=NOISE)
    assert bench.run("suites/", "--llmbench-baseline", path, "--llmbench-max-regression", "0.5").ret == 0
    (one,) = (o for o in bench.cells()[0]["comparisons"] if o["metric"] == "decode_tokens_per_second")
    assert (one["verdict"], one["limit_percent"]) == ("inconclusive", 0.5)
    assert "measurement.loads" in one["message"]


def test_what_can_not_be_told_fails_by_configuration(bench: Bench) -> None:
    path = save_baseline(bench, noise=NOISE)
    bench.config["measurement"]["inconclusive"] = "fail"
    assert bench.run("suites/", "--llmbench-baseline", path, "--llmbench-max-regression", "0.5").ret == 1
    assert bench.cells()[0]["reason"]["code"] == "regressed"


def test_a_limit_that_is_large_enough_lets_it_pass(bench: Bench) -> None:
    path = save_baseline(bench, factor=1.5)
    assert bench.run("suites/", "--llmbench-baseline", path, "--llmbench-max-regression", "999").ret == 0
    assert verdicts(bench)["decode_tokens_per_second"] != "regressed"


def test_another_machine_is_no_baseline(bench: Bench) -> None:
    path = save_baseline(bench, factor=FACTOR, host="another")
    assert bench.run("suites/", "--llmbench-baseline", path).ret == pytest.ExitCode.OK
    assert set(verdicts(bench).values()) == {"not_comparable"}


def test_a_cell_that_the_baseline_lacks_is_judged_by_its_thresholds_alone(bench: Bench) -> None:
    path = save_baseline(bench, factor=FACTOR, nodeid="suites/test_interactive.py::test_interactive[other-Q4_K_M]")
    assert bench.run("suites/", "--llmbench-baseline", path).ret == pytest.ExitCode.OK
    assert bench.cells()[0]["comparisons"] == []


def test_a_cell_whose_file_was_moved_is_still_the_same(bench: Bench) -> None:
    path = save_baseline(bench, factor=FACTOR, nodeid=f"old/test_chat.py::{NAME}")
    assert bench.run("suites/", "--llmbench-baseline", path).ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(bench)["decode_tokens_per_second"] == "regressed"
    assert json.loads((bench.latest / "run.json").read_text())["baseline"]["comparisons"] == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--llmbench-baseline", "nowhere.json"), "*--llmbench-baseline: *nowhere.json*"),
        (("--llmbench-baseline", "broken.json"), "*--llmbench-baseline: *broken.json*"),
        (("--llmbench-baseline", "latest"), "*--llmbench-baseline: *latest*"),
        (("--llmbench-max-regression", "much"), "*--llmbench-max-regression: 'much' is not allowed*"),
        (("--llmbench-max-regression", "-1"), "*--llmbench-max-regression: '-1' is not allowed*"),
    ],
)
def test_what_is_no_baseline_is_a_usage_error(bench: Bench, arguments: tuple[str, ...], told: str) -> None:
    bench.write("broken.json", '{"cells": 3')
    result = bench.run("suites/", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([told])
    assert not bench.fake.requests


def test_the_ini_file_may_name_it(bench: Bench) -> None:
    path = save_baseline(bench, factor=FACTOR)
    bench.write("pytest.ini", f"[pytest]\nllmbench_baseline = {path}\nllmbench_max_regression = 7\n")
    assert bench.run("suites/").ret == pytest.ExitCode.TESTS_FAILED
    assert {one["limit_percent"] for one in bench.cells()[0]["comparisons"]} == {7}


@pytest.mark.slow
def test_workers_compare_too(bench: Bench) -> None:
    path = save_baseline(bench, factor=FACTOR)
    assert bench.run_subprocess("suites/", "-n", "1", "--llmbench-baseline", path).ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(bench)["decode_tokens_per_second"] == "regressed"
    assert Path(bench.latest / "results.csv").exists()


@pytest.mark.slow
def test_the_controller_of_workers_knows_how_many_tests_they_make(bench: Bench) -> None:
    path = save_baseline(bench)
    bench.run_subprocess("suites/", "-n", "1", "--llmbench-baseline", path, "--llmbench-max-regression", "999")
    assert json.loads((bench.latest / "run.json").read_text())["baseline"]["comparisons"] == 2


@pytest.fixture
def cut_short(bench: Bench) -> tuple[Bench, str]:
    """A run of two cells, compared with a baseline, that was interrupted in the second; and that baseline."""
    bench.fake.models = ("a", "b")
    bench.models["models"] = [{"name": name, "size": "1B", "served": {"Q4_K_M": name}} for name in "ab"]
    assert bench.run("suites/").ret == pytest.ExitCode.OK
    baseline, suite = bench.latest.name, (bench.path / "suites/test_interactive.py").read_text()
    stop = "    if llm.cell.model == 'b':\n        pytest.exit('Ctrl-C would end it so, too')\n"
    bench.write("suites/test_interactive.py", suite.replace("    llm.measure", f"{stop}    llm.measure"))
    run = bench.run("suites/", "--llmbench-baseline", "latest", "--llmbench-max-regression", "999")
    assert run.ret == pytest.ExitCode.INTERRUPTED
    bench.write("suites/test_interactive.py", suite)
    return bench, baseline


def compared_with(bench: Bench) -> Any:
    return json.loads((bench.latest / "run.json").read_text()).get("baseline")


RESUME = ("suites/", "--llmbench-resume", "latest")


def test_a_run_with_a_baseline_is_finished_with_it(cut_short: tuple[Bench, str]) -> None:
    bench, baseline = cut_short
    result = bench.run(*RESUME, "--llmbench-baseline", baseline, "--llmbench-max-regression", "999")
    assert result.ret == pytest.ExitCode.OK
    assert [bool(cell["comparisons"]) for cell in bench.cells()] == [True, True]
    assert (compared_with(bench)["run_id"], compared_with(bench)["comparisons"]) == (baseline, 4)


def test_no_run_is_its_own_baseline(cut_short: tuple[Bench, str]) -> None:
    bench, baseline = cut_short
    result = bench.run(*RESUME, "--llmbench-baseline", "latest")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*can not be its own --llmbench-baseline; it was begun with *{baseline}"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [((), "*baseline.run_id: * → (absent)*"), (("--llmbench-baseline", "LATER"), "*baseline.run_id: * → *")],
    ids=["none", "another"],
)
def test_a_run_goes_on_without_its_baseline_only_if_that_is_wanted(
    cut_short: tuple[Bench, str], arguments: tuple[str, ...], told: str
) -> None:
    bench, baseline = cut_short
    first = bench.latest
    assert bench.run("suites/").ret == pytest.ExitCode.OK
    arguments = tuple(bench.latest.name if word == "LATER" else word for word in arguments)
    resumed = ("suites/", "--llmbench-resume", first.name, *arguments, "--llmbench-max-regression", "999")
    result = bench.run(*resumed)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([told])
    assert bench.run(*resumed, "--llmbench-resume-anyway").ret == pytest.ExitCode.OK
    assert compared_with(bench)["run_id"] == (arguments[-1] if arguments else baseline)
    first_cell, second_cell = bench.cells()
    assert first_cell["comparisons"]
    assert bool(second_cell["comparisons"]) == bool(arguments)
    assert "resumed at" in (bench.latest / "summary.md").read_text()


def test_an_expected_regression_is_recorded(bench: Bench) -> None:
    path = save_baseline(bench, factor=FACTOR)
    suite = (bench.path / "suites/test_interactive.py").read_text()
    bench.write("suites/test_interactive.py", suite.replace("@pytest", "@pytest.mark.xfail\n@pytest", 1))
    assert bench.run("suites/", "--llmbench-baseline", path).ret == pytest.ExitCode.OK
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]["code"]) == ("failed", "regressed")


def test_what_a_baseline_file_is_called_is_shown_as_text(bench: Bench) -> None:
    path = save_baseline(bench)
    text = (bench.path / path).read_text()
    run_id = json.loads(text)["run_id"]
    bench.write(path, text.replace(json.dumps(run_id), json.dumps("\x1b[31mred\nllmbench: all is well")))
    bench.run("suites/", "--llmbench-baseline", path, "--llmbench-max-regression", "999")
    bench.write(path, text.replace(json.dumps(run_id), json.dumps("\x1b[31mred")).replace("tiny-Q4", "other-Q4"))
    result = bench.run("suites/", "--llmbench-baseline", path)
    result.stdout.fnmatch_lines(["llmbench: the baseline, run \\x1b?31mred, has none of the cells*"])
    assert "\x1b[31m" not in result.stdout.str()
