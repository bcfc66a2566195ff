"""JUnit as GitLab, Jenkins and GitHub's viewers read it: the elements they know, counts that add up, and properties."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace
from typing import cast

import pytest

from pytest_llmbench.adapters.junit import add_suite_properties, suite_properties
from pytest_llmbench.core.records import ServerInfo
from tests.plugin.bench import Bench, properties
from tests.unit.factories import cell_record
from tests.unit.reports.hostile import HOSTILE

SUITE = """
import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm):
    if llm.cell.model == "skip":
        pytest.skip("\\x1b[31mnot \\x00 today \\ud800")
    llm.measure().check()
"""
OUTCOMES = {"pass": None, "fail": "failure", "broken": "error", "doubt": "error", "skip": "skipped", "large": "skipped"}


@pytest.fixture
def of_every_kind(bench: Bench) -> Bench:
    """One cell of each outcome: passed, failed, error, invalid, skipped and blocked."""
    bench.fake.models = tuple(OUTCOMES)
    bench.models["models"] = [
        {"name": name, "size": "7B" if name == "large" else "1B", "served": {"Q4_K_M": name}} for name in OUTCOMES
    ]
    bench.models["models"][1]["thresholds"] = {"interactive": {"min_tokens_per_sec": 1e7}}
    bench.models["models"][5]["thresholds"] = {"interactive": {"min_tokens_per_sec": 1e7}}
    bench.fake.fault["broken"] = "truncated"
    bench.fake.fault["doubt"] = "cached"
    bench.write("suites/test_interactive.py", SUITE)
    return bench


def the_suite(bench: Bench) -> ET.Element:
    (suite,) = ET.parse(bench.path / "junit.xml").getroot().findall("testsuite")
    return suite


def of_the_suite(suite: ET.Element) -> dict[str, str]:
    (found,) = suite.findall("properties")
    return {p.attrib["name"]: p.attrib["value"] for p in found}


def check_structure(suite: ET.Element) -> None:
    """What all the schemas and readers agree on: names, times, counts, and what a case may hold."""
    assert [child.tag for child in suite] == ["properties", *["testcase"] * (len(suite) - 1)]
    counts = {"tests": len(suite) - 1, "failures": 0, "errors": 0, "skipped": 0}
    plurals = {"failure": "failures", "error": "errors", "skipped": "skipped"}
    for case in suite.findall("testcase"):
        assert set(case.attrib) == {"classname", "name", "time"}
        assert re.fullmatch(r"\d+\.\d{3}", case.attrib["time"])
        outcomes = [child for child in case if child.tag in plurals]
        assert {child.tag for child in case} <= {"properties", *plurals}
        assert len(outcomes) <= 1
        for outcome in outcomes:
            counts[plurals[outcome.tag]] += 1
            assert outcome.attrib["message"]
            assert (outcome.text or "").strip()  # GitLab shows the text, not the message
    assert {name: int(suite.attrib[name]) for name in counts} == counts
    names = [(case.attrib["classname"], case.attrib["name"]) for case in suite.findall("testcase")]
    assert len(set(names)) == len(names)  # GitLab ignores a second case of a name


def test_every_outcome_is_of_the_kind_that_readers_know(of_every_kind: Bench) -> None:
    of_every_kind.run("suites/")
    assert {cell["model"]: cell["status"] for cell in of_every_kind.cells()} == {
        "pass": "passed",
        "fail": "failed",
        "broken": "error",
        "doubt": "invalid",
        "skip": "skipped",
        "large": "blocked",
    }
    suite = the_suite(of_every_kind)
    check_structure(suite)
    for model, tag in OUTCOMES.items():
        (case,) = [case for case in suite.findall("testcase") if f"[{model}-" in case.attrib["name"]]
        assert [child.tag for child in case] == ["properties", *([tag] if tag else [])]
        assert properties(case)["model"] == model
    found = of_the_suite(suite)
    assert found["run_id"] == of_every_kind.latest.name
    assert found["mode"] == "full"
    assert found["cpu"]
    assert float(found["memory_gb"]) > 0
    assert found["pytest-llmbench"]
    assert found["pytest"] == pytest.__version__


@pytest.mark.slow
def test_workers_leave_the_same(of_every_kind: Bench) -> None:
    of_every_kind.run_subprocess("suites/", "-n", "2")
    suite = the_suite(of_every_kind)
    check_structure(suite)
    assert of_the_suite(suite)["run_id"] == of_every_kind.latest.name


def test_what_a_run_depends_on() -> None:
    engine = ServerInfo(kind="embedded", version="xllamacpp 1")
    records = [cell_record(server=engine, device="0"), cell_record(server=engine, device="1")]
    description = {
        "mode": "quick",
        "git_commit": None,
        "hardware": {"cpu": "AMD EPYC", "physical_cores": 2, "memory_bytes": 25_276_502_016},
        "software": {"python": "3.11.7", "numpy": "2"},
        "sensors": {"a": {"facts": {"gpu_names": "H200"}}, "b": {"facts": {"gpu_names": "H200"}}, "c": {}},
    }
    assert dict(suite_properties(description, records)) == {
        "run_id": "20260131T235959Z-1a2b",
        "mode": "quick",
        "cpu": "AMD EPYC",
        "physical_cores": "2",
        "memory_gb": "25.3",
        "gpu": "H200",
        "python": "3.11.7",
        "engine": "embedded xllamacpp 1",
        "device": "0, 1",
    }


@pytest.mark.parametrize("description", [{}, {"hardware": "none", "sensors": []}])
def test_a_description_that_tells_nothing_gives_nothing(description: dict[str, object]) -> None:
    assert not list(suite_properties(description, []))


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.strip()], ids=ascii)
def test_a_value_is_text_that_xml_allows(text: str) -> None:
    ((name, value),) = suite_properties({"hardware": {"cpu": text}}, [])
    element = ET.fromstring(ET.tostring(ET.Element("property", name=name, value=value), encoding="utf-8"))
    assert element.attrib["value"] == value
    assert value.isprintable()


def test_without_junit_nothing_happens() -> None:
    config = SimpleNamespace(pluginmanager=SimpleNamespace(get_plugins=lambda: {object()}))
    add_suite_properties(cast(pytest.Config, config), {"mode": "quick"}, [])
