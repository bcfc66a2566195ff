"""Servers that the commands are pointed at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy  # noqa: F401, ICN001 -- see tests/plugin/conftest.py
import pytest
import requests  # noqa: F401
import rich.table  # noqa: F401
import scipy.special  # noqa: F401

from pytest_llmbench.runtime.replay import ReplayServer


@pytest.fixture(scope="module")
def replay() -> Iterator[ReplayServer]:
    """A server with known timing, for all tests of a module."""
    with ReplayServer(ttft_ms=10, gap_ms=2) as server:
        yield server


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
