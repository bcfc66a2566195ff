"""What the tests of the model store have in common."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.core.config import ModelEntry, Source
from pytest_llmbench.errors import ModelError
from pytest_llmbench.runtime.modelstore.store import ModelStore
from tests.servers.hub import small_gguf

CONTENT = small_gguf()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ZEROS = "0" * 64
REPO = "somebody/tiny-GGUF"


class Steps:
    """Progress that remembers what was going on, each word once per transfer."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def step(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        if what not in self.seen:
            self.seen.append(what)

    def did(self, word: str) -> bool:
        return any(what.startswith(word) for what in self.seen)


class Interrupts:
    """Progress under which somebody presses Ctrl-C once half of something has arrived."""

    def step(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        if total_bytes is not None and done_bytes >= total_bytes // 2:
            raise KeyboardInterrupt


def entry(source: Source | None = None, **changes: Any) -> ModelEntry:
    fields: dict[str, Any] = {"name": "tiny", "size": "135M", "files": {"Q4_1": "tiny.gguf"}}
    if source is not None:
        fields["source"] = {"Q4_1": source}
    return ModelEntry(**{**fields, **changes})


def from_hub(**changes: Any) -> ModelEntry:
    return entry(repo=REPO, **changes)


def refused(store: ModelStore, model: ModelEntry) -> ModelError:
    """The error of a fetch that must fail and leave nothing half-written."""
    with pytest.raises(ModelError) as caught:
        store.fetch(model, "Q4_1", Steps())
    assert half_written(store) == []
    return caught.value


def half_written(store: ModelStore) -> list[Path]:
    return [path for path in store.model_dir.rglob("*") if "partial" in path.name]


def target_of(store: ModelStore, name: str = "tiny.gguf") -> Path:
    """Where a model belongs; its folder exists."""
    path = store.model_dir / "135M" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def again(store: ModelStore, **changes: Any) -> ModelStore:
    """The store of a later run."""
    return ModelStore(store.model_dir, store.rootdir, **{"may_download": True, **changes})
