"""A store of models, and a hub to fill it from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_llmbench.runtime.modelstore import transfer
from pytest_llmbench.runtime.modelstore.store import ModelStore
from tests.servers.hub import Hub, HubFile, HubRepo
from tests.unit.runtime.models_shared import CONTENT, REPO


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", tmp_path, may_download=True)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces, and no waiting before another try."""
    monkeypatch.setattr(transfer, "_CHUNK_BYTES", 500)
    monkeypatch.setattr(transfer, "_LONGEST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, quickly: None) -> Iterator[Hub]:
    """A hub with one repository of one file; nobody is logged in, and nobody else is asked anything."""
    from huggingface_hub import close_session, constants

    with Hub({REPO: HubRepo({"tiny.gguf": HubFile(CONTENT)})}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # it asks the real hub for a list once a day
        close_session()
        yield server
        close_session()
