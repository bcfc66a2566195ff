"""Models from Hugging Face: what arrives, what does not, and what is left of it. The hub is a test server."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.errors import ModelError, ModelNotDownloaded
from pytest_llmbench.runtime.modelstore import transfer
from pytest_llmbench.runtime.modelstore.store import ModelStore
from tests.servers.hub import COMMIT, Hub, HubFile, HubRepo, small_gguf
from tests.unit.runtime.models_shared import (
    CONTENT,
    REPO,
    SHA256,
    ZEROS,
    Interrupts,
    Steps,
    again,
    entry,
    from_hub,
    half_written,
    refused,
    target_of,
)

TOKEN = "hf_secretSECRETsecret"
SHARDS = ["tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf"]
GIGABYTES_40 = 40_000_000_000


def only_file(hub: Hub) -> HubFile:
    return hub.repos[REPO].files["tiny.gguf"]


@pytest.fixture
def shards(hub: Hub) -> list[bytes]:
    """Two files instead of one, and their contents."""
    contents = [small_gguf(split=(0, 2)), small_gguf(split=(1, 2), data_bytes=4096)]
    files = {name: HubFile(content) for name, content in zip(SHARDS, contents, strict=True)}
    hub.repos[REPO] = HubRepo(files)
    return contents


def fill_disk(monkeypatch: pytest.MonkeyPatch, after_bytes: int) -> None:
    """Whoever writes a download finds the disk full after so many bytes."""
    opened, written = Path.open, 0

    def write(file: Any, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > after_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return io.BufferedRandom.write(file, data)

    def opens(path: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        file: Any = opened(path, mode, *arguments, **keywords)
        return FullDisk(file.detach()) if mode == "r+b" else file

    FullDisk = type("FullDisk", (io.BufferedRandom,), {"write": write})  # noqa: N806 -- a class
    monkeypatch.setattr(Path, "open", opens)


class TestADownload:
    def test_arrives_where_it_belongs(self, store: ModelStore, hub: Hub) -> None:
        steps = Steps()
        path, described = store.fetch(from_hub(), "Q4_1", steps)
        assert path == target_of(store)
        assert not path.is_symlink()
        assert path.read_bytes() == CONTENT
        assert (described.size_bytes, described.sha256) == (len(CONTENT), SHA256)
        assert steps.seen == ["downloading tiny.gguf", "checking tiny.gguf"]
        assert half_written(store) == []
        assert hub.requests == {"info": 1, "redirect": 1, "bytes": 1}

    def test_happens_once(self, store: ModelStore, hub: Hub) -> None:
        first = store.fetch(from_hub(), "Q4_1", Steps())
        hub.requests.clear()
        steps = Steps()
        assert again(store).fetch(from_hub(), "Q4_1", steps) == first
        assert steps.seen == []
        assert not hub.requests

    def test_by_two_at_once_happens_once(self, store: ModelStore, hub: Hub) -> None:
        only_file(hub).seconds_per_piece = 0.2
        stores = [again(store), again(store)]
        threads = [threading.Thread(target=one.fetch, args=(from_hub(), "Q4_1", Steps())) for one in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert target_of(store).read_bytes() == CONTENT
        assert hub.requests["bytes"] == 1

    def test_of_a_revision(self, store: ModelStore, hub: Hub) -> None:
        hub.repos[REPO].revisions["v2"] = "beef" + "0" * 36
        store.fetch(from_hub(revision="v2"), "Q4_1", Steps())
        assert store.remote(from_hub(revision="v2"), "Q4_1").revision == "beef" + "0" * 36

    def test_in_a_folder_of_the_repository(self, store: ModelStore, hub: Hub) -> None:
        hub.repos[REPO].files["Q4_1/big one.gguf"] = HubFile(CONTENT)
        path, _ = store.fetch(from_hub(files={"Q4_1": "Q4_1/big one.gguf"}), "Q4_1", Steps())
        assert path == store.model_dir / "135M" / "Q4_1" / "big one.gguf"

    def test_of_a_file_without_a_known_checksum(self, store: ModelStore, hub: Hub) -> None:
        only_file(hub).in_lfs = False
        assert store.fetch(from_hub(), "Q4_1", Steps())[1].sha256 == SHA256

    @pytest.mark.parametrize("files", [SHARDS, SHARDS[0]])
    def test_of_several_files(self, store: ModelStore, hub: Hub, shards: list[bytes], files: Any) -> None:
        path, described = store.fetch(from_hub(files={"Q4_1": files}), "Q4_1", Steps())
        assert path == target_of(store, SHARDS[0])
        assert [target_of(store, name).read_bytes() for name in SHARDS] == shards
        assert described.size_bytes == sum(map(len, shards))
        sums = "".join(f"{hashlib.sha256(one).hexdigest()}  {name}\n" for one, name in zip(shards, SHARDS, strict=True))
        assert described.sha256 == hashlib.sha256(sums.encode()).hexdigest()

    def test_of_the_one_file_that_is_missing(self, store: ModelStore, hub: Hub, shards: list[bytes]) -> None:
        target_of(store, SHARDS[0]).write_bytes(shards[0])
        assert store.missing_bytes(from_hub(files={"Q4_1": SHARDS}), "Q4_1") == len(shards[1])
        store.fetch(from_hub(files={"Q4_1": SHARDS}), "Q4_1", Steps())
        assert hub.requests["bytes"] == 1

    def test_of_a_very_large_file_comes_in_pieces(
        self, store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transfer, "_PIECE_BYTES", 3000)
        file = only_file(hub)
        file.cut_after_bytes, file.cuts = 1000, 1
        assert store.fetch(from_hub(), "Q4_1", Steps())[0].read_bytes() == CONTENT
        assert hub.ranges[0] == "bytes=0-2999"
        assert len(hub.ranges) == 4
        assert hub.bytes_sent < len(CONTENT) + 500

    def test_is_not_begun_when_downloads_are_off(self, store: ModelStore, hub: Hub) -> None:
        closed = again(store, may_download=False)
        assert isinstance(refused(closed, from_hub()), ModelNotDownloaded)
        with pytest.raises(ModelNotDownloaded):
            closed.remote(from_hub(), "Q4_1")
        assert closed.header(from_hub(), "Q4_1") is None
        assert not hub.requests


class TestACutConnection:
    def test_is_continued_where_it_was_cut(self, store: ModelStore, hub: Hub) -> None:
        file = only_file(hub)
        file.cut_after_bytes, file.cuts = 3000, 2
        path, _ = store.fetch(from_hub(), "Q4_1", Steps())
        assert path.read_bytes() == CONTENT
        assert hub.requests["bytes"] == 3
        assert hub.ranges[0] is None
        assert all(str(one).startswith("bytes=") for one in hub.ranges[1:])
        assert hub.bytes_sent < len(CONTENT) + 2 * 500 + 1  # a piece that was not complete is asked for again

    def test_that_stays_cut_is_given_up_and_continued_by_the_next_run(self, store: ModelStore, hub: Hub) -> None:
        file = only_file(hub)
        with pytest.raises(KeyboardInterrupt):
            store.fetch(from_hub(), "Q4_1", Interrupts())
        file.cut_after_bytes = 0
        with pytest.raises(ModelError, match="could not be downloaded: the connection was cut, 5 times in a row") as e:
            again(store).fetch(from_hub(), "Q4_1", Steps())
        assert e.value.code == "download_failed"
        assert not target_of(store).exists()
        file.cut_after_bytes = None
        hub.ranges.clear()
        assert again(store).fetch(from_hub(), "Q4_1", Steps())[0].read_bytes() == CONTENT
        (asked,) = hub.ranges
        assert int(str(asked).removeprefix("bytes=").removesuffix("-")) >= len(CONTENT) // 2
        assert half_written(store) == []

    def test_is_not_tried_again_in_the_same_run(self, store: ModelStore, hub: Hub) -> None:
        only_file(hub).cut_after_bytes = 0
        assert refused(store, from_hub()).code == "download_failed"
        hub.requests.clear()
        error = refused(store, from_hub())
        assert error.message.startswith("not tried again: ")
        assert not hub.requests

    def test_before_another_commit_is_not_continued(self, store: ModelStore, hub: Hub) -> None:
        with pytest.raises(KeyboardInterrupt):
            store.fetch(from_hub(), "Q4_1", Interrupts())
        assert half_written(store)
        newer = small_gguf(data_bytes=16384)
        hub.repos[REPO] = HubRepo({"tiny.gguf": HubFile(newer)}, {"main": "beef" + "0" * 36})
        hub.ranges.clear()
        assert again(store).fetch(from_hub(), "Q4_1", Steps())[0].read_bytes() == newer
        assert hub.ranges == [None]

    def test_by_a_server_that_ignores_ranges(self, store: ModelStore, hub: Hub) -> None:
        file = only_file(hub)
        file.cut_after_bytes, file.cuts, file.ignores_ranges = 3000, 1, True
        assert store.fetch(from_hub(), "Q4_1", Steps())[0].read_bytes() == CONTENT

    def test_is_no_reason_to_keep_nothing(self, store: ModelStore, hub: Hub) -> None:
        only_file(hub).cut_after_bytes = 0
        refused(store, from_hub())  # asserts that no empty folder is left

    @pytest.mark.parametrize("status", [429, 503])
    def test_or_a_busy_hub(self, store: ModelStore, hub: Hub, status: int) -> None:
        only_file(hub).status = status
        error = refused(store, from_hub())
        assert error.code == "download_failed"
        assert f"HTTP {status}, 5 times in a row" in error.message

    def test_from_the_beginning(self, store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        with Hub({}) as gone:
            url = gone.url
        monkeypatch.setenv("HF_ENDPOINT", url)
        error = refused(store, from_hub())
        assert error.code == "download_failed"
        assert f"{url} could not be asked (ConnectError)" in error.message


class TestAFileThatIsNotAsPromised:
    def test_in_size(self, store: ModelStore, hub: Hub) -> None:
        only_file(hub).claimed_size_bytes = len(CONTENT) + 1
        error = refused(store, from_hub())
        assert error.code == "wrong_size"
        assert error.evidence == {"size_bytes": len(CONTENT), "expected_size_bytes": len(CONTENT) + 1}
        assert not target_of(store).exists()

    def test_in_content(self, store: ModelStore, hub: Hub) -> None:
        only_file(hub).sha256 = ZEROS
        error = refused(store, from_hub())
        assert error.code == "checksum_mismatch"
        assert error.evidence == {"sha256": SHA256, "expected_sha256": ZEROS}
        assert "somebody/tiny-GGUF on Hugging Face promises" in error.message
        assert not target_of(store).exists()

    def test_in_quantization(self, store: ModelStore, hub: Hub) -> None:
        hub.repos[REPO].files["tiny.gguf"] = HubFile(small_gguf(file_type=15))
        error = refused(store, from_hub())
        assert error.code == "wrong_quantization"
        assert "tiny.gguf from somebody/tiny-GGUF on Hugging Face" in error.message
        assert "Q4_K_M" in error.message
        assert not target_of(store).exists()

    def test_in_kind(self, store: ModelStore, hub: Hub) -> None:
        hub.repos[REPO].files["tiny.gguf"] = HubFile(b"<html>" * 100)
        error = refused(store, from_hub())
        assert error.code == "bad_model_file"
        assert "partial" not in error.message
        assert not target_of(store).exists()


class TestAccess:
    def test_to_a_gated_repository_without_a_token(self, store: ModelStore, hub: Hub) -> None:
        hub.repos[REPO].gated = True
        error = refused(store, from_hub())
        assert error.code == "model_access_denied"
        assert f"no token is set: accept its licence at {hub.url}/{REPO}, and set HF_TOKEN" in error.message

    def test_to_a_gated_repository_with_another_token(
        self, store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        hub.repos[REPO].gated = True
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        with caplog.at_level(logging.DEBUG, "pytest_llmbench"):
            error = refused(store, from_hub())
        assert error.code == "model_access_denied"
        assert "the token in use has no access" in error.message
        assert f"Bearer {TOKEN}" in hub.tokens
        known = repr(error) + str(error.__dict__) + repr(error.__cause__) + repr(error.__context__) + caplog.text
        assert TOKEN not in known

    def test_with_the_right_token(self, store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.repos[REPO] = HubRepo({"tiny.gguf": HubFile(CONTENT)}, gated=True, private=True, token=TOKEN)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        store.fetch(from_hub(), "Q4_1", Steps())
        assert set(hub.leaked) == {None}  # the token went to the hub, and not to where it redirected to
        written = [path for path in store.model_dir.rglob("*") if path.is_file()]
        assert not [path for path in written if TOKEN.encode() in path.read_bytes()]

    def test_with_a_netrc_that_knows_the_host(
        self, store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1\nlogin me\npassword mine\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        store.header(from_hub(), "Q4_1")
        store.fetch(from_hub(), "Q4_1", Steps())
        assert set(hub.tokens) == {f"Bearer {TOKEN}"}

    def test_to_a_private_repository(self, store: ModelStore, hub: Hub) -> None:
        hub.repos[REPO].private = True
        error = refused(store, from_hub())
        assert error.code == "model_not_found"
        assert "if it is private, set HF_TOKEN" in error.message

    def test_is_not_asked_for_offline(self, store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        error = refused(store, from_hub())
        assert error.code == "hub_offline"
        assert "HF_HUB_OFFLINE" in error.message
        assert not hub.requests


class TestWhatIsNotThere:
    def test_the_repository(self, store: ModelStore, hub: Hub) -> None:
        error = refused(store, from_hub().model_copy(update={"repo": "somebody/tinny"}))
        assert error.code == "model_not_found"
        assert "there is no repository 'somebody/tinny'" in error.message

    def test_the_revision(self, store: ModelStore, hub: Hub) -> None:
        error = refused(store, from_hub(revision="v9"))
        assert error.code == "model_not_found"
        assert "has no revision 'v9'; correct `revision`" in error.message

    def test_the_file(self, store: ModelStore, hub: Hub) -> None:
        error = refused(store, from_hub(files={"Q4_1": "tinny.gguf"}))
        assert error.code == "model_not_found"
        assert "holds no file 'tinny.gguf' (did you mean 'tiny.gguf'?)" in error.message
        assert COMMIT[:12] in error.message

    def test_the_bytes_of_the_file(self, store: ModelStore, hub: Hub) -> None:
        only_file(hub).status = 404
        error = refused(store, from_hub())
        assert error.code == "model_not_found"
        assert "lists tiny.gguf but does not hold it" in error.message

    def test_is_asked_for_once(self, store: ModelStore, hub: Hub) -> None:
        model = from_hub(files={"Q4_1": "tinny.gguf", "Q8_0": "tinnny.gguf"}).model_copy(update={"repo": "a/b"})
        for quantization in model.files:
            with pytest.raises(ModelError, match="there is no repository"):
                store.remote(model, quantization)
        assert hub.requests == {"info": 1}

    def test_a_hub(self, store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", hub.store_url)
        assert "there is no repository" in refused(store, from_hub()).message


class TestDiskSpace:
    def test_is_looked_at_before(self, store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        only_file(hub).size_bytes = GIGABYTES_40
        only_file(hub).sha256 = ZEROS
        usage = shutil.disk_usage(store.rootdir)._replace(free=GIGABYTES_40)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        error = refused(store, from_hub())
        assert error.code == "disk_full"
        assert "40.0 GB free" in error.message
        assert "40.3 GB" in error.message
        assert hub.requests["bytes"] == 0

    def test_is_looked_at_for_all_files(
        self, store: ModelStore, hub: Hub, shards: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transfer, "_DISK_MARGIN_BYTES", 0)
        usage = shutil.disk_usage(store.rootdir)._replace(free=sum(map(len, shards)) - 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        assert refused(store, from_hub(files={"Q4_1": SHARDS})).code == "disk_full"
        assert hub.requests["bytes"] == 0

    def test_ends_in_the_middle(self, store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        fill_disk(monkeypatch, after_bytes=3000)
        error = refused(store, from_hub())
        assert error.code == "disk_full"
        assert "filled up while tiny.gguf was downloaded" in error.message
        assert 0 < int(str(error.evidence["needed_bytes"])) < len(CONTENT)
        assert int(str(error.evidence["free_bytes"])) > 0
        assert not target_of(store).exists()

    def test_ends_for_the_second_file(
        self, store: ModelStore, hub: Hub, shards: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill_disk(monkeypatch, after_bytes=len(shards[0]) + 1000)
        assert refused(store, from_hub(files={"Q4_1": SHARDS})).code == "disk_full"
        assert target_of(store, SHARDS[0]).read_bytes() == shards[0]  # complete, so it may stay
        assert not target_of(store, SHARDS[1]).exists()

    def test_and_a_name_that_no_disk_takes(self, store: ModelStore, hub: Hub) -> None:
        name = "x" * 300
        hub.repos[REPO].files[name] = HubFile(CONTENT)
        assert refused(store, from_hub(files={"Q4_1": name})).code == "model_not_written"

    def test_and_a_folder_that_can_not_be_made(self, store: ModelStore, hub: Hub) -> None:
        store.model_dir.write_bytes(b"a file where the folder should be")
        error = refused(store, from_hub())
        assert error.code == "model_not_written"


class TestHeaders:
    def test_of_a_large_file_cost_little(self, store: ModelStore, hub: Hub) -> None:
        file = only_file(hub)
        file.size_bytes, file.sha256 = GIGABYTES_40, ZEROS
        found = store.header(from_hub(), "Q4_1")
        assert found is not None
        assert (found.local, found.download_bytes) == (False, GIGABYTES_40)
        assert (found.header.file_type, found.header.architecture) == ("Q4_1", "llama")
        assert hub.requests["bytes"] <= 2
        assert hub.bytes_sent < 10 * 1024 * 1024

    def test_are_asked_for_once(self, store: ModelStore, hub: Hub) -> None:
        first = store.header(from_hub(), "Q4_1")
        hub.requests.clear()
        assert again(store).header(from_hub(), "Q4_1") == first
        assert hub.requests == {"info": 1}

    def test_that_can_not_be_read_again_are_asked_for_again(self, store: ModelStore, hub: Hub) -> None:
        first = store.header(from_hub(), "Q4_1")
        (note,) = (store.model_dir / ".headers").iterdir()
        note.write_text("{}")
        assert again(store).header(from_hub(), "Q4_1") == first

    def test_of_another_commit_are_others(self, store: ModelStore, hub: Hub) -> None:
        store.header(from_hub(), "Q4_1")
        hub.repos[REPO] = HubRepo({"tiny.gguf": HubFile(small_gguf(data_bytes=64))}, {"main": "beef" + "0" * 36})
        found = again(store).header(from_hub(), "Q4_1")
        assert found is not None
        assert found.header.tensor_bytes == 64

    def test_of_several_files_are_one(self, store: ModelStore, hub: Hub, shards: list[bytes]) -> None:
        model = from_hub(files={"Q4_1": SHARDS[0]})
        remote = store.header(model, "Q4_1")
        store.fetch(model, "Q4_1", Steps())
        local = store.header(model, "Q4_1")
        assert remote is not None
        assert local is not None
        assert (remote.local, remote.download_bytes) == (False, sum(map(len, shards)))
        assert (local.local, local.download_bytes) == (True, 0)
        assert remote.header == local.header
        assert len(remote.header.tensors) == 2

    def test_of_a_gated_repository(self, store: ModelStore, hub: Hub) -> None:
        hub.repos[REPO].gated = True
        with pytest.raises(ModelError, match="accept its licence at") as caught:
            store.header(from_hub(), "Q4_1")
        assert caught.value.code == "model_access_denied"

    def test_of_a_gated_repository_with_a_token(
        self, store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repos[REPO].gated, hub.repos[REPO].token = True, TOKEN
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert store.header(from_hub(), "Q4_1") is not None
        assert set(hub.leaked) == {None}

    def test_are_not_to_be_had_without_a_source(self, store: ModelStore) -> None:
        with pytest.raises(ModelError, match="names no source"):
            store.header(entry(), "Q4_1")


class TestRemote:
    def test_tells_what_would_come(self, store: ModelStore, hub: Hub, shards: list[bytes]) -> None:
        remote = store.remote(from_hub(files={"Q4_1": SHARDS}), "Q4_1")
        assert remote.revision == COMMIT
        assert remote.size_bytes == sum(map(len, shards))
        assert [(file.name, file.size_bytes) for file in remote.files] == [
            (name, len(content)) for name, content in zip(SHARDS, shards, strict=True)
        ]
        assert remote.files[0].sha256 == hashlib.sha256(shards[0]).hexdigest()
        assert hub.requests == {"info": 1}
        assert not store.model_dir.exists()

    def test_asks_a_repository_once(self, store: ModelStore, hub: Hub) -> None:
        hub.repos[REPO].files["eight.gguf"] = HubFile(small_gguf(file_type=7))
        model = from_hub(files={"Q4_1": "tiny.gguf", "Q8_0": "eight.gguf"})
        for quantization in model.files:
            store.remote(model, quantization)
        assert hub.requests == {"info": 1}
