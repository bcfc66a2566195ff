"""Files that are here already: found where they lie, and what is noted of them."""

from __future__ import annotations

import json
import logging
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.core.gguf import GgufHeader, read_model
from pytest_llmbench.runtime.modelstore import store as store_module
from pytest_llmbench.runtime.modelstore.metadata import Metadata
from pytest_llmbench.runtime.modelstore.store import ModelStore
from tests.servers.hub import COMMIT, Hub, small_gguf
from tests.unit.runtime.models_shared import CONTENT, REPO, SHA256, Steps, entry, from_hub, refused, target_of


def put(store: ModelStore, name: str, content: bytes = CONTENT) -> Path:
    path = store.model_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class TestDiscovery:
    @pytest.mark.parametrize("name", ["tiny.gguf", "elsewhere/deep/tiny.gguf"])
    def test_of_the_wanted_name(self, store: ModelStore, name: str) -> None:
        path = put(store, name)
        assert store.locate(entry(), "Q4_1") == [path]
        assert store.fetch(entry(), "Q4_1", Steps())[0] == path

    @pytest.mark.parametrize(
        "name", ["Tiny-Instruct.Q4_1.gguf", "mine/tiny-instruct-q4_1.gguf", "TINY-INSTRUCT_Q4_1.GGUF"]
    )
    def test_by_the_beginning_of_the_name(self, store: ModelStore, name: str) -> None:
        path = put(store, name)
        assert store.locate(entry(base_filename="tiny-instruct"), "Q4_1") == [path]
        assert store.locate(entry(), "Q4_1") is None

    @pytest.mark.parametrize(
        "name", ["tiny-instruct-q4_1_1.gguf", "tiny-instruct2-q4_1.gguf", "tiny-instruct-q4_0.gguf"]
    )
    def test_not_of_a_name_that_only_looks_alike(self, store: ModelStore, name: str) -> None:
        put(store, name)
        assert store.locate(entry(base_filename="tiny-instruct"), "Q4_1") is None

    def test_prefers_the_place_then_the_name(self, store: ModelStore) -> None:
        model = entry(base_filename="a")
        by_beginning = put(store, "a-q4_1.gguf")
        assert store.locate(model, "Q4_1") == [by_beginning]
        by_name = put(store, "z/tiny.gguf")
        assert store.locate(model, "Q4_1") == [by_name]
        in_place = put(store, "135M/tiny.gguf")
        assert store.locate(model, "Q4_1") == [in_place]

    @pytest.mark.parametrize("content", [small_gguf(file_type=15), b"GGUF", b"", CONTENT[:-100]])
    def test_not_of_another_content(self, store: ModelStore, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
        path = put(store, "elsewhere/tiny.gguf", content)
        with caplog.at_level(logging.WARNING):
            assert store.locate(entry(), "Q4_1") is None
        assert f"{path} is not used for tiny Q4_1" in caplog.text
        assert refused(store, entry()).code == "model_missing"

    def test_goes_on_behind_one_of_another_content(self, store: ModelStore) -> None:
        put(store, "a/tiny.gguf", small_gguf(file_type=15))
        path = put(store, "b/tiny.gguf")
        assert store.locate(entry(), "Q4_1") == [path]

    def test_of_several_files_when_all_are_there(self, store: ModelStore) -> None:
        names = ["tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf"]
        model = entry(files={"Q4_1": names[0]}, base_filename="tiny")
        first = put(store, f"a/{names[0]}", small_gguf(split=(0, 2)))
        assert store.locate(model, "Q4_1") is None
        second = put(store, f"a/{names[1]}", small_gguf(split=(1, 2)))
        assert store.locate(model, "Q4_1") == [first, second]

    def test_of_several_files_by_the_beginning_of_the_name(self, store: ModelStore) -> None:
        paths = [put(store, f"Tiny-q4_1-0000{n + 1}-of-00002.gguf", small_gguf(split=(n, 2))) for n in range(2)]
        assert store.locate(entry(base_filename="tiny"), "Q4_1") == paths

    def test_leaves_unfinished_downloads_alone(self, store: ModelStore) -> None:
        put(store, "135M/.other.gguf.partial/tiny.gguf")
        put(store, ".tiny.gguf")
        assert store.locate(entry(), "Q4_1") is None

    def test_without_a_folder(self, store: ModelStore) -> None:
        assert store.locate(entry(), "Q4_1") is None

    def test_saves_a_download(self, store: ModelStore, hub: Hub) -> None:
        path = put(store, "mine/tiny.gguf")
        assert store.fetch(from_hub(), "Q4_1", Steps())[0] == path
        assert not hub.requests


class TestMetadata:
    def of(self, store: ModelStore, key: str = "135M/tiny.gguf") -> dict[str, Any]:
        data = json.loads((store.model_dir / "metadata.json").read_text())
        assert data["schema_version"] == 1
        found: dict[str, Any] = data["files"][key]
        return found

    def test_of_a_download(self, store: ModelStore, hub: Hub) -> None:
        before = datetime.now(timezone.utc)
        store.fetch(from_hub(), "Q4_1", Steps())
        noted = self.of(store)
        when = datetime.fromisoformat(noted.pop("downloaded_at"))
        assert abs((when - before).total_seconds()) < 10
        assert noted == {
            "path": "135M/tiny.gguf",
            "size_bytes": len(CONTENT),
            "sha256": SHA256,
            "model": "tiny",
            "model_size": "135M",
            "family": "llama",
            "quantization": "Q4_1",
            "origin": f"{REPO} on Hugging Face",
            "revision": COMMIT,
        }

    def test_of_a_test(self, store: ModelStore, hub: Hub) -> None:
        store.fetch(from_hub(), "Q4_1", Steps())
        store.note_tested(from_hub(), "Q4_1", 123_456)
        noted = self.of(store)
        assert noted["estimated_memory_bytes"] == 123_456
        assert noted["sha256"] == SHA256
        assert datetime.fromisoformat(noted["last_tested_at"]).tzinfo is not None

    def test_of_a_test_of_a_file_that_was_here(self, store: ModelStore) -> None:
        target_of(store).write_bytes(CONTENT)
        store.note_tested(entry(), "Q4_1", None)
        noted = self.of(store)
        assert noted["quantization"] == "Q4_1"
        assert "estimated_memory_bytes" not in noted

    def test_of_a_file_elsewhere(self, store: ModelStore, tmp_path: Path) -> None:
        path = tmp_path / "mine.gguf"
        path.write_bytes(CONTENT)
        Metadata(store.model_dir).update(path, {"model": "mine"})
        assert self.of(store, str(path))["model"] == "mine"

    def test_of_a_file_that_was_replaced_is_forgotten(self, store: ModelStore, hub: Hub) -> None:
        store.fetch(from_hub(), "Q4_1", Steps())
        target_of(store).write_bytes(small_gguf(data_bytes=64))
        store.note_tested(from_hub(), "Q4_1", None)
        assert "sha256" not in self.of(store)

    @pytest.mark.parametrize("text", ["", "{", "\xff"])
    def test_that_is_broken_is_begun_anew(self, store: ModelStore, text: str) -> None:
        target_of(store).write_bytes(CONTENT)
        (store.model_dir / "metadata.json").write_text(text)
        store.note_tested(entry(), "Q4_1", 1)
        assert self.of(store)["estimated_memory_bytes"] == 1

    @pytest.mark.parametrize("text", ["[]", '{"files": {}}', '{"schema_version": 2, "files": {}}'])
    def test_that_is_not_ours_is_left_alone(self, store: ModelStore, text: str) -> None:
        target_of(store).write_bytes(CONTENT)
        (store.model_dir / "metadata.json").write_text(text)
        store.note_tested(entry(), "Q4_1", 1)
        assert (store.model_dir / "metadata.json").read_text() == text

    def test_that_can_not_be_written_stops_nothing(self, store: ModelStore) -> None:
        target_of(store).write_bytes(CONTENT)
        (store.model_dir / "metadata.json").mkdir()
        store.note_tested(entry(), "Q4_1", 1)
        store.note_tested(entry(files={"Q4_1": "none.gguf"}), "Q4_1", 1)
        assert [path for path in store.model_dir.iterdir() if "metadata" in path.name and path.is_file()] in (
            [],
            [store.model_dir / ".metadata.lock"],
        )

    def test_by_many_at_once(self, store: ModelStore) -> None:
        paths = [put(store, f"{number}.gguf") for number in range(8)]
        notes = Metadata(store.model_dir)
        threads = [threading.Thread(target=notes.update, args=(path, {"model": path.name})) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert {key: noted["model"] for key, noted in notes.read().items()} == {path.name: path.name for path in paths}
        assert not list(store.model_dir.glob(".metadata.*.json"))


def test_a_header_is_read_once_until_its_file_changes(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def counted(paths: list[Path]) -> GgufHeader:
        reads.append(paths[0].name)
        return read_model(paths)

    monkeypatch.setattr(store_module, "read_model", counted)
    model, path = from_hub(), target_of(store)
    path.write_bytes(small_gguf())
    first, again = store.header(model, "Q4_1"), store.header(model, "Q4_1")
    assert first is not None
    assert first == again
    assert len(reads) == 1
    path.write_bytes(small_gguf(data_bytes=400))
    changed = store.header(model, "Q4_1")
    assert changed is not None
    assert changed.header.size_bytes == path.stat().st_size != first.header.size_bytes
    assert len(reads) == 2
