"""The real engine on the real small model. The model is fetched once, the way a user's is, and then found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy  # noqa: F401, ICN001 -- see tests/plugin/conftest.py
import pytest
import requests  # noqa: F401
import rich.table  # noqa: F401
import scipy.stats  # noqa: F401

from pytest_llmbench.core.config import Models
from pytest_llmbench.core.validation import validate
from pytest_llmbench.core.yaml_source import load_yaml
from pytest_llmbench.runtime.modelstore.store import ModelStore
from pytest_llmbench.runtime.share import share_dir
from tests.integration.suite import GONE_SECONDS, MARK, EmbeddedSuite, our_processes, wait_until


class _Silent:
    def step(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        pass


@pytest.fixture(scope="session")
def model_path(pytestconfig: pytest.Config) -> Path:
    """SmolLM2-135M-Instruct Q4_1, below ``models/`` of the checkout."""
    models = validate(Models, load_yaml(share_dir("configs") / "models.yaml", "models.yaml"))
    root = pytestconfig.rootpath
    path, _ = ModelStore(root / "models", root, may_download=True).fetch(models.models[0], "Q4_1", _Silent())
    return path


@pytest.fixture(scope="session", autouse=True)
def marked() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(MARK, str(os.getpid()))
        yield


@pytest.fixture
def suite(pytester: pytest.Pytester, model_path: Path) -> Iterator[EmbeddedSuite]:
    suite = EmbeddedSuite(pytester.path, model_path)
    yield suite
    suite.end()


@pytest.fixture(autouse=True)
def leaves_no_process() -> Iterator[None]:
    before = our_processes()
    yield
    assert wait_until(lambda: our_processes() <= before, GONE_SECONDS), f"left behind: {our_processes() - before}"
