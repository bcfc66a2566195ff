"""What plugin tests share: a suite on disk, and its records and JUnit as data."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
import yaml

from tests.run_files import RunFiles
from tests.servers.fake_openai import FakeOpenAI

ONE_CELL = "suites/test_interactive.py::test_interactive[tiny-Q4_K_M]"
SUITE = """
import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm):
    llm.measure().check()
"""
SWITCH = 'pytest_plugins = ["pytest_llmbench.suite"]\n'


class Bench(RunFiles):
    """One model at one quantization on the fake server; tests change what they are about."""

    def __init__(self, pytester: pytest.Pytester, fake: FakeOpenAI) -> None:
        self.pytester = pytester
        self.fake = fake
        self.path = pytester.path
        self.config: dict[str, Any] = {
            "backend": "openai",
            "openai": {"base_url": fake.url},
            "profiles": ["interactive"],
            "settings": {"interactive": {"output_tokens": 30, "short_answers": 0}},
            # Whether a thread of the same process streams evenly is not what these tests are about.
            "thresholds": {"interactive": {"max_variance": None}},
            # No time is left to measure again what a noisy machine has put far off.
            "measurement": {"max_samples": 6, "max_seconds": 0.001, "calibrate": False},
            "output": {"formats": ["csv", "markdown"]},  # charts take their time, and are not what most tests are about
        }
        self.models: dict[str, Any] = {
            "models": [{"name": "tiny", "size": "1B", "served": {"Q4_K_M": "fake"}}],
            "full_mode_quants": ["Q4_K_M", "Q8_0"],
            "quick_mode_quants": ["Q4_K_M"],
        }
        self.write("conftest.py", SWITCH)
        self.write("suites/test_interactive.py", SUITE)

    def write_configuration(self) -> None:
        """Write both files; ``run`` does it by itself."""
        self.write("configs/config.yaml", yaml.safe_dump(self.config))
        self.write("configs/models.yaml", yaml.safe_dump(self.models))

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in this process."""
        self.write_configuration()
        return self.pytester.runpytest_inprocess("--junitxml=junit.xml", *arguments)

    def run_subprocess(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in a process of its own, as xdist needs."""
        self.write_configuration()
        return self.pytester.runpytest_subprocess("--junitxml=junit.xml", *arguments)


def properties(case: ET.Element) -> dict[str, str]:
    """The properties of a JUnit test case."""
    return {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
