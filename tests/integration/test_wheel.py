"""What is installed from the wheel is complete: ``llmbench init`` and ``pytest suites/`` in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from tests.integration.suite import PATIENCE_SECONDS


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The folder of commands of an environment that holds the wheel; its dependencies are those of this one."""
    base = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(base)]
    subprocess.run(build, cwd=pytestconfig.rootpath, check=True, capture_output=True)
    (wheel,) = base.glob("*.whl")
    venv.create(base / "venv", with_pip=False)
    commands = base / "venv" / "bin"
    (site,) = (base / "venv").glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True, capture_output=True)
    # Only what is not ours; .pth files of this environment are not read there, so an editable install stays out.
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return commands


def run(commands: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [str(commands / "python"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


def test_init_and_a_run_in_an_empty_folder(installed: Path, tmp_path: Path, model_path: Path) -> None:
    where = run(installed, tmp_path, "-c", "import pytest_llmbench; print(pytest_llmbench.__file__)")
    assert "/venv/lib/" in where.stdout
    init = run(installed, tmp_path, "-m", "pytest_llmbench.cli", "init")
    assert init.returncode == 0, init.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"conftest.py", "suites", "configs", "data"}
    assert {"config.yaml", "models.yaml", "catalogue.yaml"} <= {p.name for p in (tmp_path / "configs").iterdir()}
    (tmp_path / "models" / "135M").mkdir(parents=True)
    (tmp_path / "models" / "135M" / model_path.name).symlink_to(model_path)  # instead of fetching it again
    shipped = yaml.safe_load((tmp_path / "configs" / "config.yaml").read_text())
    shipped["profiles"] = ["interactive"]
    shipped["settings"] = {"interactive": {"output_tokens": 16, "short_answers": 0}}
    shipped["measurement"] |= {"max_samples": 6, "max_seconds": 0.001}
    shipped["embedded"]["default_threads"] = 1  # as in suite.py
    shipped["thresholds"]["interactive"]["max_variance"] = None
    (tmp_path / "configs" / "config.yaml").write_text(yaml.safe_dump(shipped))
    result = run(installed, tmp_path, "-m", "pytest", "suites/", "-p", "no:cacheprovider")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SmolLM2-135M-Instruct" in result.stdout
    assert (tmp_path / "results" / "latest" / "cells.jsonl").is_file()


def test_the_command_is_installed(installed: Path, tmp_path: Path) -> None:
    result = run(installed, tmp_path, "-c", "from importlib.metadata import entry_points as e\n"
        "(s,) = e(group='console_scripts', name='llmbench')\n"
        "(p,) = e(group='pytest11', name='llmbench')\nprint(s.value, p.value)")  # fmt: skip
    assert result.stdout.split() == ["pytest_llmbench.cli:main", "pytest_llmbench.plugin"]
