"""Shared by all tests: none may run long, and none may touch what other runs of this user share."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(450 if "/integration/" in item.nodeid else 120))


@pytest.fixture(autouse=True)
def own_runtime_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks of a test are its own, unless it measures (see ``tests/integration``)."""
    path = tmp_path_factory.mktemp("runtime")
    monkeypatch.setenv("LLMBENCH_RUNTIME_DIR", str(path))
    return path
