"""Shared by all tests: none may run long, and none may touch what other runs of this user share."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

# The plugins that only plugin/test_neighbours.py is about; see addopts in pyproject.toml.
WITHOUT_NEIGHBOURS = "-p no:randomly -p no:random_order -p no:pytest_order -p no:rerunfailures"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(450 if "/integration/" in item.nodeid else 120))


def pytest_collection_finish() -> None:
    """What was imported and collected lives until the end: spare every collection of garbage a look at all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_runtime_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks of a test are its own, unless it measures (see ``tests/integration``)."""
    path = tmp_path_factory.mktemp("runtime")
    monkeypatch.setenv("LLMBENCH_RUNTIME_DIR", str(path))
    return path


@pytest.fixture
def pytester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Runs without the plugins that only ``plugin/test_neighbours.py`` is about."""
    monkeypatch.setenv("PYTEST_ADDOPTS", WITHOUT_NEIGHBOURS)
    return pytester
