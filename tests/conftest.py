"""Shared by all tests: none may run long, and none may touch what other runs of this user share."""

from __future__ import annotations

import compileall
import gc
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import pytest_llmbench

# The plugins that only plugin/test_neighbours.py is about, see addopts in pyproject.toml; and one that takes 150 ms to
# import in every process, for tests that no suite has.
WITHOUT_NEIGHBOURS = "-p no:randomly -p no:random_order -p no:pytest_order -p no:rerunfailures -p no:hypothesispytest"


# Half of Hypothesis' own number: some tests ask for more. The whole of tests/ has to take less than ten minutes.
settings.register_profile("llmbench", max_examples=50)
settings.load_profile("llmbench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(450 if "/integration/" in item.nodeid else 120))


def pytest_collection_finish() -> None:
    """What was imported and collected lives until the end: the collector need not look at all of it often.

    Freezing it costs more: each of our requests asks whether somebody has frozen anything, and then Python counts it.
    """
    gc.collect()
    gc.set_threshold(*gc.get_threshold()[:2], 100)


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Where Python is told to write no bytecode, each process that a test starts would compile all of ours again."""
    compileall.compile_dir(Path(pytest_llmbench.__file__).parent, quiet=2)


@pytest.fixture(scope="session")
def runtime_dirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Names of folders, of which none is there yet."""
    base = tmp_path_factory.mktemp("runtime")
    return (base / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_runtime_dir(runtime_dirs: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks of a test are its own, unless it measures (see ``tests/integration``)."""
    path = next(runtime_dirs)
    path.mkdir()
    monkeypatch.setenv("LLMBENCH_RUNTIME_DIR", str(path))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)  # of the job that runs these tests
    return path


@pytest.fixture
def pytester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Runs without the plugins that only ``plugin/test_neighbours.py`` is about."""
    monkeypatch.setenv("PYTEST_ADDOPTS", WITHOUT_NEIGHBOURS)
    return pytester
