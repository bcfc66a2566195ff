"""``llmbench plan``: pytest's dry run as a command, for people and for scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.cli import CONFTEST, main

Output = pytest.CaptureFixture[str]
SUITE = """
import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm):
    llm.measure().check()
"""
MODELS = """
models:
- {name: tiny, size: 1B, served: {Q4_K_M: tiny}}
- {name: other, size: 1B, served: {Q4_K_M: other}}
"""


@pytest.fixture
def suite(here: Path) -> Path:
    """Two cells on a server that would have to be started first."""
    for folder in ("suites", "configs"):
        (here / folder).mkdir()
    (here / "conftest.py").write_text(CONFTEST)
    (here / "suites" / "test_interactive.py").write_text(SUITE)
    (here / "configs" / "models.yaml").write_text(MODELS)
    (here / "configs" / "config.yaml").write_text('backend: openai\nopenai: {command: "no-server {port}"}\n')
    return here


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is passed to pytest, which is not run."""
    seen: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        seen.append(command[1:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    return seen


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], ["suites/"]),
        (["suites/", "-k", "a or b", "-m", "x", "-n", "2"], ["suites/", "-k", "a or b", "-m", "x", "-n", "2"]),
        (["-k", "a", "suites/"], ["-k", "a", "suites/"]),
        (["--llmbench-mode=quick", "-vv"], ["--llmbench-mode=quick", "-vv", "suites/"]),
        (["suites/test_x.py::test[a-Q4]"], ["suites/test_x.py::test[a-Q4]"]),
    ],
)
def test_the_rest_goes_to_pytest_as_it_is(
    here: Path, commands: list[list[str]], given: list[str], passed: list[str]
) -> None:
    (here / "suites").mkdir()
    (here / "suites" / "test_x.py").touch()
    assert main(["plan", *given]) == 0
    assert commands == [["-m", "pytest", "--llmbench-dry-run", *passed]]


def test_for_people(suite: Path, capfd: Output) -> None:
    assert main(["plan"]) == 0
    text = capfd.readouterr().out
    assert "llmbench plan" in text
    assert "2 cells: 2 to run (2 server starts)" in text
    assert not (suite / "results").exists()


def test_for_scripts(suite: Path, capfd: Output) -> None:
    assert main(["plan", "suites/", "--json", "-k", "other"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    answer = json.loads(captured.out)
    assert answer["schema_version"] == 1
    assert [cell["nodeid"] for cell in answer["cells"]] == [
        "suites/test_interactive.py::test_interactive[other-Q4_K_M]"
    ]
    assert answer["totals"]["to_run"] == 1


def test_nothing_selected(suite: Path, capfd: Output) -> None:
    assert main(["plan", "--json", "-k", "nothing"]) == 1
    assert json.loads(capfd.readouterr().out)["cells"] == []


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_mistake_in_the_configuration(suite: Path, capfd: Output, arguments: list[str]) -> None:
    (suite / "configs" / "config.yaml").write_text("backend: nonsense\n")
    assert main(["plan", *arguments]) == 2
    captured = capfd.readouterr()
    assert "'nonsense' is no backend" in captured.err
    assert "backend" not in captured.out


def test_what_can_not_be_collected(suite: Path, capfd: Output) -> None:
    (suite / "suites" / "test_broken.py").write_text("import nothing_of_that_name\n")
    assert main(["plan", "--json"]) == 1
    captured = capfd.readouterr()
    assert "nothing_of_that_name" in captured.err
    assert captured.out == ""


def test_a_folder_that_is_no_suite(here: Path, capfd: Output) -> None:
    (here / "test_ordinary.py").write_text("def test_ordinary(): pass\n")
    assert main(["plan", "--json", "."]) == 2
    captured = capfd.readouterr()
    assert "no benchmark suite is switched on here" in captured.err
    assert captured.out == ""


def test_help(capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "usage: llmbench plan [-h] [--json] [PYTEST ARGUMENT ...]" in text
    assert "example:\n  llmbench plan suites/ -k Q4_K_M" in text


def test_needs_no_pytest_itself() -> None:
    code = (
        "import sys\nimport pytest_llmbench.cli\nimport pytest_llmbench.commands.plan\n"
        "assert not {'pytest', '_pytest', 'pluggy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
