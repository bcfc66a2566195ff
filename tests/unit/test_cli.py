"""The ``llmbench`` command: exit statuses, and what it writes where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmbench import __version__
from pytest_llmbench.cli import CONFTEST, main
from pytest_llmbench.core.records import SCHEMA_VERSION, RequestRecord
from pytest_llmbench.runtime.run_folder import RunFolder
from tests.unit.factories import broken_record, cell_record

COMMANDS = ["init", "plan", "estimate", "models", "measure", "doctor", "report"]
Output = pytest.CaptureFixture[str]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


class TestInit:
    def test_into_an_empty_folder(self, tmp_path: Path, capsys: Output) -> None:
        assert main(["init", str(tmp_path / "new" / "suite")]) == 0
        files = tree(tmp_path / "new" / "suite")
        assert files["conftest.py"] == CONFTEST.encode()
        assert {"configs/config.yaml", "configs/models.yaml", "suites/test_interactive.py"} <= set(files)
        assert any(name.startswith("data/prompts/") for name in files)
        assert not [name for name in files if "__pycache__" in name or name.endswith(".pyc")]
        assert {name.partition("/")[0] for name in files} == {"conftest.py", "configs", "suites", "data"}
        output = capsys.readouterr().out
        assert f"wrote {len(files)} files" in output
        assert output.endswith(f"cd {tmp_path}/new/suite && pytest suites/\n")

    def test_into_this_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["init"]) == 0
        assert "next: pytest suites/\n" in capsys.readouterr().out
        assert (tmp_path / "conftest.py").is_file()

    def test_the_next_step_can_be_pasted(self, tmp_path: Path, capsys: Output) -> None:
        assert main(["init", str(tmp_path / "my suite")]) == 0
        assert f"cd '{tmp_path}/my suite' && " in capsys.readouterr().out

    def test_twice(self, tmp_path: Path) -> None:
        assert main(["init", str(tmp_path)]) == 0
        first = tree(tmp_path)
        assert main(["init", str(tmp_path)]) == 0
        assert tree(tmp_path) == first

    def test_a_changed_file_stops_it(self, tmp_path: Path, capsys: Output) -> None:
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs" / "config.yaml").write_text("mine: 1\n")
        (tmp_path / "notes.txt").write_text("not in the way")
        assert main(["init", str(tmp_path)]) == 1
        assert set(tree(tmp_path)) == {"configs/config.yaml", "notes.txt"}
        assert (tmp_path / "configs" / "config.yaml").read_text() == "mine: 1\n"
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "nothing was written" in captured.err
        assert "config.yaml" in captured.err
        assert "notes.txt" not in captured.err

    def test_force_replaces_it(self, tmp_path: Path) -> None:
        assert main(["init", str(tmp_path)]) == 0
        first = tree(tmp_path)
        (tmp_path / "configs" / "config.yaml").write_text("mine: 1\n")
        (tmp_path / "notes.txt").write_text("mine")
        assert main(["init", str(tmp_path), "--force"]) == 0
        assert tree(tmp_path) == {**first, "notes.txt": b"mine"}

    @pytest.mark.parametrize("force", [[], ["--force"]])
    def test_a_folder_where_a_file_belongs(self, tmp_path: Path, force: list[str], capsys: Output) -> None:
        (tmp_path / "conftest.py").mkdir()
        assert main(["init", str(tmp_path), *force]) == 1
        error = capsys.readouterr().err
        assert "conftest.py" in error
        assert error.count("\n") == 1
        assert tree(tmp_path) == {}

    def test_a_file_where_the_folder_belongs(self, tmp_path: Path, capsys: Output) -> None:
        (tmp_path / "suite").write_text("mine")
        assert main(["init", str(tmp_path / "suite")]) == 1
        assert capsys.readouterr().err.count("\n") == 1
        assert (tmp_path / "suite").read_text() == "mine"


class TestReport:
    @pytest.fixture
    def run(self, tmp_path: Path) -> RunFolder:
        """A run that was killed while a worker wrote."""
        folder = RunFolder(tmp_path / "results", "run-1")
        folder.create({})
        folder.append_cell(cell_record())
        folder.append_cell(broken_record("no \ud800\n=cmd()", model="=cmd() \ud800"))
        worker = RunFolder(tmp_path / "results", "run-1", part="gw0")
        worker.append_to(
            "requests",
            RequestRecord(cell=None, index=0, phase="sample", ok=True, protocol="x", t_send_ns=0, t_end_ns=1),
        )
        with (folder.path / "cells.jsonl").open("a") as file:
            file.write('{"schema_version": 1, "run')
        folder.close()
        return folder

    def test_writes_what_can_be_derived(self, run: RunFolder, capsys: Output) -> None:
        assert main(["report", str(run.path)]) == 0
        derived = ["report.json", "results.csv", "summary.md", "report.html"]
        assert capsys.readouterr().out.splitlines() == [str(run.path / name) for name in derived]
        assert set(tree(run.path)) == {"run.json", "cells.jsonl", "parts/requests-gw0.jsonl", *derived}
        assert "tiny" in (run.path / "results.csv").read_text()
        assert "Cells: 1 passed, 1 error." in (run.path / "summary.md").read_text()

    def test_again_gives_the_same(self, run: RunFolder) -> None:
        assert main(["report", str(run.path)]) == 0
        first = tree(run.path)
        assert main(["report", str(run.path)]) == 0
        assert tree(run.path) == first

    @pytest.mark.parametrize("name", ["run-1", "latest"])
    def test_by_name(self, run: RunFolder, name: str) -> None:
        assert main(["report", name, "--output", str(run.output_dir)]) == 0
        assert (run.path / "summary.md").is_file()

    def test_below_the_default_folder(self, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(run.output_dir.parent)
        assert main(["report", "latest"]) == 0
        assert (run.path / "summary.md").is_file()

    def refusal(self, capsys: Output, *arguments: str) -> str:
        assert main(["report", *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("llmbench: ")
        assert captured.err.count("\n") == 1
        return captured.err

    def test_no_such_run(self, tmp_path: Path, capsys: Output) -> None:
        assert "'run-9' is no run" in self.refusal(capsys, "run-9", "--output", str(tmp_path))

    def test_a_run_without_cells(self, tmp_path: Path, capsys: Output) -> None:
        RunFolder(tmp_path, "run-1").create({})
        assert main(["report", str(tmp_path / "run-1")]) == 0  # killed before its first cell ended
        assert "none was finished" in (tmp_path / "run-1" / "summary.md").read_text()
        assert len(capsys.readouterr().out.splitlines()) == 4

    def test_a_corrupt_record(self, run: RunFolder, capsys: Output) -> None:
        file = run.path / "cells.jsonl"
        file.write_bytes(b"oops\n" + file.read_bytes())
        assert "cells.jsonl:1: not JSON" in self.refusal(capsys, str(run.path))
        assert not (run.path / "summary.md").exists()

    def test_a_later_schema(self, run: RunFolder, capsys: Output) -> None:
        later = cell_record().model_dump() | {"schema_version": SCHEMA_VERSION + 1}
        (run.path / "cells.jsonl").write_text(json.dumps(later) + "\n")
        assert "upgrade" in self.refusal(capsys, str(run.path))

    def test_a_place_that_can_not_be_written(self, run: RunFolder, capsys: Output) -> None:
        (run.path / "results.csv").mkdir()
        assert "results.csv" in self.refusal(capsys, str(run.path))


class TestUsage:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_shows_an_example(self, command: str, capsys: Output) -> None:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert f"example:\n  llmbench {command}" in capsys.readouterr().out

    def test_help_names_every_command(self, capsys: Output) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["--help"])
        assert ended.value.code == 0
        output = capsys.readouterr().out
        assert all(f"\n    {command} " in output for command in COMMANDS)

    def test_version(self, capsys: Output) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"llmbench {__version__}\n"

    @pytest.mark.parametrize(
        "arguments", [[], ["no-such-command"], ["report"], ["init", "--no-such-option"], ["init", "a", "b"]], ids=str
    )
    def test_bad_usage(self, arguments: list[str], capsys: Output) -> None:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "usage: llmbench" in capsys.readouterr().err

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_names_every_option_once(self, command: str, capsys: Output) -> None:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        lines = capsys.readouterr().out.splitlines()
        described = [line.split()[0] for line in lines if line.startswith("  --")]
        assert len(described) == len(set(described))

    @pytest.mark.parametrize("arguments", [["--help"], ["measure", "--help"], ["--version"]], ids=" ".join)
    def test_help_loads_nothing_heavy(self, arguments: list[str]) -> None:
        heavy = ("pydantic", "numpy", "requests", "rich", "pytest", "asyncio")
        code = (
            "import sys, atexit\n"
            f"atexit.register(lambda: print([m for m in {heavy} if m in sys.modules], file=sys.stderr))\n"
            f"from pytest_llmbench.cli import main\nmain({arguments})"
        )
        ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, "[]\n")

    def test_a_terminal_without_our_characters(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "pytest_llmbench.cli", "report", "nothing\u2713"]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
        ended = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, env=environment)
        assert ended.returncode == 1
        assert ended.stderr.startswith(b"llmbench: ")

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("pytest_llmbench.runtime.run_folder.find_run", interrupted)
        assert main(["report", "latest"]) == 130
        assert capsys.readouterr().err == "llmbench: stopped\n"

    def test_as_a_process(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "pytest_llmbench.cli", "report", "nothing"]
        ended = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("llmbench: 'nothing' is no run")
        assert ended.stderr.count("\n") == 1
