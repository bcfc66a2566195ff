"""``docs/ci.md``: what can be copied from it parses, and uses only what exists."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_llmbench import cli
from pytest_llmbench.adapters.options import add_options
from pytest_llmbench.adapters.signals import ENDED_BY_SIGNAL
from pytest_llmbench.core.config import Config

TEXT = (Path(__file__).parents[2] / "docs" / "ci.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def yaml_of(title: str) -> dict[Any, Any]:
    section = TEXT.partition(f"## {title}\n")[2]
    found = yaml.safe_load(section.partition("```yaml\n")[2].partition("\n```")[0])
    assert isinstance(found, dict)
    return found


def commands(program: str) -> list[list[str]]:
    """The words after a program, wherever it is run: in blocks, and quoted in a sentence."""
    text = TEXT.replace("\\\n", " ")
    text = re.sub(r">-\n((?: {6}.*\n)+)", lambda folded: " ".join(folded[1].split()) + "\n", text)
    found = re.findall(rf"(?:\.venv/bin/|`){program} ([^`\n]*?)(?=`|\n|$| >>| \|\|)", text)
    return [shlex.split(arguments) for arguments in found]


def known_options() -> set[str]:
    known: set[str] = set()

    class Group:
        def addoption(self, name: str, **_: Any) -> None:
            known.add(name)

    class Parser:
        def getgroup(self, *_: str) -> Group:
            return Group()

        def addini(self, *_: Any, **__: Any) -> None: ...

    add_options(Parser())  # type: ignore[arg-type]
    return known


def test_github_measures_one_job_at_a_time_and_never_the_code_of_strangers() -> None:
    workflow = yaml_of("GitHub Actions")
    assert set(workflow[True]) == {"pull_request", "schedule", "workflow_dispatch"}  # YAML reads `on` as true
    assert workflow["concurrency"] == {"group": "gpu-1", "cancel-in-progress": False}
    assert workflow["permissions"] == {"contents": "read"}
    job = workflow["jobs"]["benchmark"]
    assert "head.repo.full_name == github.repository" in job["if"]
    assert "self-hosted" in job["runs-on"]
    assert job["steps"][0]["with"] == {"clean": False}
    assert job["steps"][-1]["if"] == "always()"


def test_gitlab_keeps_junit_and_the_small_files() -> None:
    job = yaml_of("GitLab")["benchmark"]
    assert job["resource_group"] == "gpu-1"
    assert job["artifacts"]["reports"] == {"junit": "junit.xml"}
    assert not [path for path in job["artifacts"]["paths"] if "requests" in path or "telemetry" in path]


def test_every_job_runs_the_same() -> None:
    runs = [words for words in commands("pytest") if "suites/" in words]
    assert len(runs) == 3
    assert len({tuple(words) for words in runs}) == 1


@pytest.mark.parametrize("option", sorted(set(re.findall(r"--llmbench-[a-z-]+", TEXT))))
def test_an_option_exists(option: str) -> None:
    assert option in known_options()


@pytest.mark.parametrize("words", [words for words in commands("llmbench") if len(words) > 1], ids=" ".join)
def test_a_command_is_understood(words: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    {name: arguments for name, _, _, arguments, _ in cli._COMMANDS}[words[0]](parser)
    parser.parse_args(words[1:])


def test_keys_of_the_configuration_exist() -> None:
    written = Config.model_validate({"measurement": {"loads": 3}, "output": {"include_logs": False}})
    assert (written.measurement.loads, written.output.include_logs) == (3, False)
    assert "`measurement.loads: 3`" in TEXT
    assert "`output: {include_logs: false}`" in TEXT


def test_every_exit_status_is_told() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\|.*\|$", TEXT, re.MULTILINE)
    known = {int(code) for code in pytest.ExitCode if code <= pytest.ExitCode.NO_TESTS_COLLECTED} | ENDED_BY_SIGNAL
    assert {int(row) for row in rows} >= known
