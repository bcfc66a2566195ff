"""What earlier cells taught spares later ones: the record says why, JUnit too, and ``--lf`` does not forget them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.plugin.bench import Bench, properties

IMPOSSIBLE = {"interactive": {"min_tokens_per_sec": 1e7}}


def skip_of(case: ET.Element) -> ET.Element:
    (skipped,) = case.iter("skipped")
    return skipped


@pytest.fixture
def ladder(bench: Bench) -> Bench:
    """Three sizes of one family, the smallest of which is far too slow."""
    bench.models["models"] = [
        {"name": name, "size": size, "served": {"Q4_K_M": "fake"}}
        for name, size in (("small", "1B"), ("middle", "3B"), ("large", "7B"))
    ]
    bench.config["thresholds"] = {"interactive": {"min_tokens_per_sec": 1e7, "max_variance": None}}
    return bench


def statuses(bench: Bench) -> dict[str, str]:
    return {cell["model"]: cell["status"] for cell in bench.cells()}


@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "1"), marks=pytest.mark.slow)], ids=["alone", "a worker"])
def test_too_slow_spares_larger_models(ladder: Bench, workers: tuple[str, ...]) -> None:
    run = ladder.run_subprocess if workers else ladder.run
    result = run("suites/", *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert statuses(ladder) == {"small": "failed", "middle": "blocked", "large": "blocked"}
    assert len(ladder.fake.requests) == 7
    cells = {cell["model"]: cell for cell in ladder.cells()}
    reason = cells["large"]["reason"]
    assert reason["code"] == "blocked_by_speed"
    assert reason["evidence"]["cell"] == cells["small"]["nodeid"]
    assert cells["large"]["metrics"] == {}
    case = ladder.junit()["test_interactive[large-Q4_K_M]"]
    assert reason["message"] in skip_of(case).attrib["message"]
    assert properties(case)["llmbench_status"] == "blocked"
    assert properties(case)["reason"] == "blocked_by_speed"
    assert "2 blocked" in result.stdout.lines[-1]


def test_blocked_cells_stay_in_last_failed(ladder: Bench) -> None:
    ladder.run("suites/")
    ladder.config["thresholds"]["interactive"]["min_tokens_per_sec"] = 2
    ladder.run("suites/", "--lf").assert_outcomes(passed=3)
    assert statuses(ladder) == dict.fromkeys(("small", "middle", "large"), "passed")
    ladder.run("suites/", "--lf").assert_outcomes(passed=3)  # nothing is left, so pytest runs all


def test_without_pytests_cache_nothing_breaks(ladder: Bench) -> None:
    result = ladder.run("suites/", "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert statuses(ladder)["large"] == "blocked"


@pytest.mark.parametrize("how", ["option", "rule"])
def test_it_can_be_switched_off(ladder: Bench, how: str) -> None:
    if how == "rule":
        ladder.config["blocking"] = {"speed": False}
    ladder.run("suites/", *(["--llmbench-no-blocking"] if how == "option" else [])).assert_outcomes(failed=3)
    assert len(ladder.fake.requests) == 3 * 7


def test_a_model_with_a_limit_of_its_own_is_judged_by_that(ladder: Bench) -> None:
    ladder.models["models"][2]["thresholds"] = {"interactive": {"min_tokens_per_sec": 1}}
    ladder.run("suites/")
    assert statuses(ladder) == {"small": "failed", "middle": "blocked", "large": "passed"}


def test_an_error_is_no_evidence_of_slowness(ladder: Bench) -> None:
    ladder.fake.fault["fake"] = "truncated"
    ladder.run("suites/")
    assert statuses(ladder) == dict.fromkeys(("small", "middle", "large"), "error")


def test_another_quantization_is_run(ladder: Bench) -> None:
    for model in ladder.models["models"]:
        model["served"]["Q8_0"] = "fake"
    ladder.run("suites/")
    found = {(cell["model"], cell["quantization"]): cell["status"] for cell in ladder.cells()}
    assert found["small", "Q8_0"] == "failed"
    assert found["large", "Q8_0"] == "blocked"


STRESS_SUITE = """
import pytest

@pytest.mark.llmbench(profile="stress")
def test_stress(llm):
    llm.measure().check()
"""


def test_stress_is_for_the_next_to_last_that_is_acceptable(bench: Bench, tmp_path: Path) -> None:
    bench.write("suites/test_stress.py", STRESS_SUITE)
    bench.config["profiles"] = ["interactive", "stress"]
    bench.config["settings"]["stress"] = {"duration": 0.005, "sample_interval": 0.1, "output_tokens": 8}
    sizes = (("a", "1B"), ("b", "3B"), ("c", "7B"))
    bench.models["models"] = [{"name": name, "size": size, "served": {"Q4_K_M": "fake"}} for name, size in sizes]
    bench.run("suites/")
    stress = {cell["model"]: cell for cell in bench.cells() if cell["profile"] == "stress"}
    assert {name: cell["status"] for name, cell in stress.items()} == {"a": "blocked", "b": "passed", "c": "blocked"}
    assert stress["a"]["reason"]["code"] == "not_selected_for_stress"


def test_two_workers_learn_from_each_other(bench: Bench) -> None:
    """Whichever worker measured the smallest, the last cells are decided by the controller."""
    names = [f"m{index:02}" for index in range(12)]
    bench.fake.models = tuple(names)
    bench.models["models"] = [
        {"name": name, "size": f"{2**index}B", "served": {"Q4_K_M": name}} for index, name in enumerate(names)
    ]
    bench.config["thresholds"] = {"interactive": {"min_tokens_per_sec": 1e7, "max_variance": None}}
    bench.run_subprocess("suites/", "-n", "2")
    found = statuses(bench)
    assert set(found) == set(names)
    assert list(found.values()).count("failed") <= 3  # the smallest, and what had begun before it had ended
    assert found["m00"] == "failed"
    assert found["m11"] == "blocked"
