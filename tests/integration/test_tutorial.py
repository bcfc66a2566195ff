"""The tutorial, command by command as it stands there, in a folder of its own; only the model is here already."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import WITHOUT_NEIGHBOURS
from tests.documents import ROOT, Block, blocks_of

TUTORIAL = ROOT / "docs" / "tutorial.md"
RUN_SECONDS = 1200  # for one command; a busy machine takes ten times what a quiet one does


class Reader:
    """Somebody who does what the tutorial says: writes its files, runs its commands in one shell after the other."""

    def __init__(self, folder: Path, model_path: Path) -> None:
        self.folder = folder
        self._model_path = model_path
        self.output = ""
        commands = Path(sys.executable).parent
        self._environment = {
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTEST_ADDOPTS": WITHOUT_NEIGHBOURS,
            "COLUMNS": "120",
        }

    def follow(self, block: Block) -> None:
        """Do what a block says. Raises AssertionError where a command ends otherwise than the block allows."""
        _, *what = block.words
        if block.language != "sh":
            (self.folder / what[0]).write_text(block.text)
            return
        allowed = {int(status) for status in (what or ["0"])[0].split("|")}
        # Every command has to end well, or with 1 where a verdict may; and the folder stays the one it went to.
        for line in block.text.strip().splitlines():
            script = f'{line}\nstatus=$?\npwd > "$PLACE"\nexit $status'
            place = self.folder / ".place"
            result = subprocess.run(
                ["bash", "-c", script],
                cwd=self.folder,
                env={**self._environment, "PLACE": str(place)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=RUN_SECONDS,
                check=False,
            )
            self.output = result.stdout + result.stderr
            assert result.returncode in allowed, f"{block.place}: {line}: {result.returncode}\n{self.output}"
            self.folder = Path(place.read_text().strip())
            place.unlink()
            if line.startswith("llmbench init"):
                self._lay_model(self.folder / line.split()[-1])

    def _lay_model(self, suite: Path) -> None:
        """The file that the first run would fetch, where it would put it."""
        target = suite / "models" / "135M" / self._model_path.name
        target.parent.mkdir(parents=True)
        shutil.copyfile(self._model_path, target)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_step_works(tmp_path: Path, model_path: Path) -> None:
    reader = Reader(tmp_path, model_path)
    steps = [block for block in blocks_of(TUTORIAL) if block.words[:1] == ("tutorial",)]
    said: dict[str, str] = {}
    for block in steps:
        reader.follow(block)
        said[block.text] = reader.output
    dry_run = next(output for text, output in said.items() if "--llmbench-dry-run" in text)
    assert "1 to run" in dry_run
    answer = next(output for text, output in said.items() if text == "pytest suites/\n")
    assert "Q8_0" in answer
    comparison = next(output for text, output in said.items() if "llmbench compare" in text)
    assert "default_threads" in comparison or "threads" in comparison
    assert "decode" in comparison
    for name in ("summary.md", "report.html", "report.json", "results.csv", "cells.jsonl"):
        assert (reader.folder / "results" / "latest" / name).is_file()
