"""A suite on the embedded engine, run in a process of its own so that it can be signalled and killed."""

from __future__ import annotations

import os
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
# Other models answer once; that of this name is measured without end: whoever ends the run does it in the middle of a
# measurement, however late.
ENDLESS = "endless"
ENDLESS_SUITE = f"""
import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm):
    if llm.cell.model == "{ENDLESS}":
        llm.measure()
    else:
        assert llm.chat("Say hello.", max_tokens=8).text
"""
MARK = "LLMBENCH_TESTS"  # in the environment of all that these tests start
PATIENCE_SECONDS = 200  # machines of others are slow at times
GONE_SECONDS = 60  # for a process to go that nothing keeps


def closest_to_1(ratio: Callable[[], float], *, within: float) -> float:
    """What two clocks say of the same span, as a ratio: the first that is near enough, or of ten the nearest.

    On a busy machine this process is late at times, and not always; what is wrong by design is so every time.
    """
    found: list[float] = []
    while len(found) < 10 and not (found and abs(found[-1] - 1) < within):
        found.append(ratio())
    return min(found, key=lambda one: abs(one - 1))


def our_processes() -> set[int]:
    """Pids of running engine children that these tests, or what they have started, have started; zombies are gone."""
    found = set()
    for process in psutil.process_iter(["cmdline", "status", "environ"]):
        command, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        running = process.info["status"] != psutil.STATUS_ZOMBIE
        ours = environment.get(MARK) == os.environ[MARK]  # others may run the same tests on this machine
        if "pytest_llmbench.backends.embedded_child" in command and running and ours:
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
    """One cell on the embedded engine, with prompts and answers short enough for a test."""

    def __init__(self, path: Path, model_path: Path) -> None:
        self.path = path
        self.model_path = model_path
        self.output_tokens = 30
        self.settings: dict[str, dict[str, Any]] = {}
        self._started: list[subprocess.Popen[str]] = []
        self.config: dict[str, Any] = {
            # On a busy machine several threads wait for each other most of the time.
            "embedded": {"default_ctx_size": 512, "default_threads": 1},
            "profiles": ["interactive"],
            "thresholds": {"interactive": {"max_variance": None}},
            # No time is left to measure again what a noisy machine has put far off.
            "measurement": {"max_samples": 6, "max_seconds": 0.001, "calibrate": False},
            "limits": {"max_load_time": 60},
        }
        self.models: dict[str, Any] = {"models": [self.model("smol")], "full_mode_quants": ["Q4_1"]}
        self.write("data/prompts/story.txt", "On an island in the north there lived a keeper of a lighthouse.\n")
        self.write("conftest.py", SWITCH)
        self.write("suites/test_interactive.py", SUITE)

    def be_short(self) -> None:
        """Ask once instead of measuring."""
        self.write("suites/test_interactive.py", SHORT_SUITE)

    def be_endless(self) -> None:
        """Ask the first model once, and measure a second one until somebody ends that."""
        self.write("suites/test_interactive.py", ENDLESS_SUITE)
        self.config["measurement"] |= {"max_samples": 1000, "max_seconds": 1800, "target_half_width_percent": 1e-6}
        self.models["models"].append(self.model(ENDLESS, size="200M"))

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

    def requests_so_far(self, model: str) -> int:
        """Requests of a model on disk, also while workers write to parts of their own."""
        files = [path for path in (self.path / "results").rglob("requests*.jsonl") if path.is_file()]
        return sum(f"[{model}-" in line for path in files for line in path.read_text().splitlines())


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def server_pids(parent: int) -> list[int]:
    """Engine children below a process."""
    try:
        below = {process.pid for process in psutil.Process(parent).children(recursive=True)}
    except psutil.NoSuchProcess:
        return []
    return sorted(below & our_processes())
