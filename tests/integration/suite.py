"""A suite on the embedded engine, run in a process of its own so that it can be signalled and killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.plugin.bench import SUITE, SWITCH
from tests.run_files import RunFiles

# For what is not about measuring: one short answer instead of seven long ones.
SHORT_SUITE = """
import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm):
    assert llm.chat("Say hello.", max_tokens=8).text
"""
PATIENCE_SECONDS = 200  # machines of others are slow at times


def our_processes() -> set[int]:
    """Pids of running engine children, whoever started them; zombies are gone."""
    found = set()
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        running = process.info["status"] != psutil.STATUS_ZOMBIE
        if "pytest_llmbench.backends.embedded_child" in command and running:
            found.add(process.pid)
    return found


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll a condition; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


class EmbeddedSuite(RunFiles):
    """One cell on the embedded engine, with answers short enough for a test."""

    def __init__(self, path: Path, model_path: Path) -> None:
        self.path = path
        self.model_path = model_path
        self.output_tokens = 30
        self.settings: dict[str, dict[str, Any]] = {}
        self._started: list[subprocess.Popen[str]] = []
        self.config: dict[str, Any] = {
            "embedded": {"default_ctx_size": 512},
            "profiles": ["interactive"],
            "thresholds": {"interactive": {"max_variance": None}},
            "measurement": {"max_samples": 6, "calibrate": False},
            "limits": {"max_load_time": 60},
        }
        self.models: dict[str, Any] = {"models": [self.model("smol")], "full_mode_quants": ["Q4_1"]}
        self.write("conftest.py", SWITCH)
        self.write("suites/test_interactive.py", SUITE)

    def be_short(self) -> None:
        """Ask once instead of measuring."""
        self.write("suites/test_interactive.py", SHORT_SUITE)

    def model(self, name: str, path: Path | None = None, size: str = "135M") -> dict[str, Any]:
        source = {"path": str(path or self.model_path)}
        return {"name": name, "size": size, "files": {"Q4_1": f"{name}.gguf"}, "source": source}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start pytest; the caller waits."""
        interactive = {"output_tokens": self.output_tokens, "short_answers": 0}
        self.config["settings"] = self.settings or {"interactive": interactive}
        self.write("configs/config.yaml", yaml.safe_dump(self.config))
        self.write("configs/models.yaml", yaml.safe_dump(self.models))
        command = [sys.executable, "-m", "pytest", "suites/", "--junitxml=junit.xml", *arguments]
        # A background job of a shell ignores SIGINT and hands that on; a handler of ours is the default in the child.
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with (self.path / "pytest.log").open("w") as log:
                process = subprocess.Popen(
                    command, cwd=self.path, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
                )
        finally:
            signal.signal(signal.SIGINT, previous)
        self._started.append(process)
        return process

    def end(self) -> None:
        """Leave nothing behind, also where a test failed half way: killed, pytest takes its servers along."""
        for process in self._started:
            process.kill()
            process.wait()

    def run(self, *arguments: str) -> int:
        """Run pytest to its end; the exit status."""
        return self.start(*arguments).wait(PATIENCE_SECONDS)

    @property
    def output(self) -> str:
        return (self.path / "pytest.log").read_text()

    def requests_so_far(self) -> int:
        """Requests on disk, also while workers write to parts of their own."""
        return sum(
            path.read_text().count("\n") for path in (self.path / "results").rglob("requests*.jsonl") if path.is_file()
        )


def server_pids(parent: int) -> list[int]:
    """Engine children below a process."""
    try:
        below = {process.pid for process in psutil.Process(parent).children(recursive=True)}
    except psutil.NoSuchProcess:
        return []
    return sorted(below & our_processes())
