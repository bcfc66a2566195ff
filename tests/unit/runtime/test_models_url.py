"""Models from an ordinary web server: what arrives, what does not, and what is left of it."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from pydantic import ValidationError

from pytest_llmbench.core.config import ModelEntry, Source
from pytest_llmbench.errors import ModelError
from pytest_llmbench.runtime.modelstore import transfer
from pytest_llmbench.runtime.modelstore.store import ModelStore
from tests.servers.hub import Hub, HubFile, small_gguf
from tests.unit.runtime.models_shared import (
    CONTENT,
    REPO,
    SHA256,
    ZEROS,
    Interrupts,
    Steps,
    again,
    entry,
    half_written,
    refused,
    target_of,
)


def from_url(hub: Hub, name: str = "tiny.gguf", query: str = "", **changes: Any) -> ModelEntry:
    return entry(Source(url=hub.plain_url(REPO, name) + query, **changes))


def only_file(hub: Hub) -> HubFile:
    return hub.repos[REPO].files["tiny.gguf"]


class TestADownload:
    def test_arrives_where_it_belongs(self, store: ModelStore, hub: Hub) -> None:
        model = from_url(hub, sha256=SHA256, size_bytes=len(CONTENT))
        path, described = store.fetch(model, "Q4_1", Steps())
        assert path == target_of(store)
        assert path.read_bytes() == CONTENT
        assert described.sha256 == SHA256
        assert half_written(store) == []
        assert hub.requests == {"plain": 2}
        assert hub.bytes_sent == len(CONTENT) + 1

    def test_without_a_promise_is_recorded(self, store: ModelStore, hub: Hub) -> None:
        assert store.fetch(from_url(hub), "Q4_1", Steps())[1].sha256 == SHA256

    def test_of_several_files_that_lie_side_by_side(self, store: ModelStore, hub: Hub) -> None:
        names = ["a b-00001-of-00002.gguf", "a b-00002-of-00002.gguf"]
        contents = [small_gguf(split=(0, 2)), small_gguf(split=(1, 2))]
        hub.repos[REPO].files = {name: HubFile(content) for name, content in zip(names, contents, strict=True)}
        model = entry(Source(url=hub.plain_url(REPO, names[0])), files={"Q4_1": names[0]})
        store.fetch(model, "Q4_1", Steps())
        assert [target_of(store, name).read_bytes() for name in names] == contents

    def test_of_several_files_under_another_name(self, store: ModelStore, hub: Hub) -> None:
        model = entry(Source(url=hub.plain_url(REPO, "tiny.gguf")), files={"Q4_1": "a-00001-of-00002.gguf"})
        error = refused(store, model)
        assert error.code == "model_not_found"
        assert "source.url ends in 'tiny.gguf'" in error.message

    def test_asks_nobody_when_downloads_are_off(self, store: ModelStore, hub: Hub) -> None:
        assert refused(again(store, may_download=False), from_url(hub)).code == "not_downloaded"
        assert not hub.requests

    def test_header(self, store: ModelStore, hub: Hub) -> None:
        only_file(hub).size_bytes = 40_000_000_000
        first = store.header(from_url(hub), "Q4_1")
        assert first is not None
        assert (first.local, first.download_bytes) == (False, 40_000_000_000)
        hub.ranges.clear()
        assert again(store).header(from_url(hub), "Q4_1") == first
        assert hub.ranges == ["bytes=0-0"]  # the question for size and version
        only_file(hub).etag = '"second"'
        again(store).header(from_url(hub), "Q4_1")
        assert len(hub.ranges) > 2


class TestACutConnection:
    def test_is_continued(self, store: ModelStore, hub: Hub) -> None:
        with pytest.raises(KeyboardInterrupt):
            store.fetch(from_url(hub), "Q4_1", Interrupts())
        hub.ranges.clear()
        assert again(store).fetch(from_url(hub), "Q4_1", Steps())[0].read_bytes() == CONTENT
        assert len(hub.ranges) == 2
        assert int(str(hub.ranges[1]).removeprefix("bytes=").removesuffix("-")) >= len(CONTENT) // 2

    @pytest.mark.parametrize("etag", ['"second"', None])
    def test_is_not_continued_with_another_version(self, store: ModelStore, hub: Hub, etag: str | None) -> None:
        with pytest.raises(KeyboardInterrupt):
            store.fetch(from_url(hub), "Q4_1", Interrupts())
        other = small_gguf(data_bytes=8192, split=(0, 1))
        hub.repos[REPO].files["tiny.gguf"] = HubFile(other, etag=etag)
        hub.ranges.clear()
        assert again(store).fetch(from_url(hub), "Q4_1", Steps())[0].read_bytes() == other
        assert hub.ranges[-1] is None

    def test_while_the_file_is_replaced(self, store: ModelStore, hub: Hub) -> None:
        """What is asked for in the second request is another file by then; If-Range tells."""
        file, other = only_file(hub), CONTENT[:-4] + b"\xff" * 4
        file.cut_after_bytes, file.cuts = 3000, 1

        class Replaces(Steps):
            def step(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
                file.content, file.etag = other, '"second"'

        assert store.fetch(from_url(hub), "Q4_1", Replaces())[0].read_bytes() == other

    def test_by_a_server_that_ignores_ranges(self, store: ModelStore, hub: Hub) -> None:
        file = only_file(hub)
        file.ignores_ranges = True
        assert store.remote(from_url(hub), "Q4_1").size_bytes == len(CONTENT)
        file.cut_after_bytes, file.cuts = 3000, 1
        assert store.fetch(from_url(hub), "Q4_1", Steps())[0].read_bytes() == CONTENT


class TestAFileThatIsNotAsPromised:
    def test_in_size(self, store: ModelStore, hub: Hub) -> None:
        error = refused(store, from_url(hub, size_bytes=5))
        assert error.code == "wrong_size"
        assert error.evidence == {"size_bytes": len(CONTENT), "expected_size_bytes": 5}

    def test_in_content(self, store: ModelStore, hub: Hub) -> None:
        error = refused(store, from_url(hub, sha256=ZEROS))
        assert error.code == "checksum_mismatch"
        assert "the models file promises 0000" in error.message
        assert not target_of(store).exists()

    def test_in_quantization(self, store: ModelStore, hub: Hub) -> None:
        only_file(hub).content = small_gguf(file_type=15)
        assert refused(store, from_url(hub)).code == "wrong_quantization"
        assert not target_of(store).exists()


class TestAFileOfUnknownSize:
    def test_arrives(self, store: ModelStore, hub: Hub) -> None:
        only_file(hub).hides_size = True
        assert store.remote(from_url(hub), "Q4_1").size_bytes is None
        assert store.missing_bytes(from_url(hub), "Q4_1") is None
        assert store.fetch(from_url(hub), "Q4_1", Steps())[0].read_bytes() == CONTENT

    def test_that_was_cut_is_noticed_all_the_same(self, store: ModelStore, hub: Hub) -> None:
        file = only_file(hub)
        file.hides_size, file.cut_after_bytes = True, 3000
        error = refused(store, from_url(hub))
        assert error.code == "bad_model_file"
        assert not target_of(store).exists()

    def test_does_not_fill_the_disk(self, store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        file = only_file(hub)
        file.hides_size, file.size_bytes = True, 40_000_000_000
        looks = iter([10**9])  # enough at first
        usage = shutil.disk_usage(store.rootdir)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=next(looks, 100)))
        monkeypatch.setattr(transfer, "_DISK_MARGIN_BYTES", 100_000)
        error = refused(store, from_url(hub))
        assert error.code == "disk_full"
        assert hub.bytes_sent < 10_000_000


class TestARefusal:
    @pytest.mark.parametrize(
        ("status", "code", "remedy"),
        [
            (401, "model_access_denied", "~/.netrc"),
            (403, "model_access_denied", "~/.netrc"),
            (404, "model_not_found", "correct source.url"),
            (418, "download_failed", "try later"),
            (503, "download_failed", "5 times in a row"),
        ],
    )
    def test_by_status(self, store: ModelStore, hub: Hub, status: int, code: str, remedy: str) -> None:
        only_file(hub).status = status
        error = refused(store, from_url(hub))
        assert error.code == code
        assert remedy in error.message
        assert f"HTTP {status}" in error.message

    def test_never_shows_the_query(self, store: ModelStore, hub: Hub) -> None:
        only_file(hub).status = 403
        model = from_url(hub, query="?key=SECRET")
        error = refused(store, model)
        assert "tiny.gguf" in error.message
        assert "SECRET" not in error.message + repr(error.__dict__) + str(store.source_of(model, "Q4_1"))

    def test_nobody_listens(self, store: ModelStore, hub: Hub) -> None:
        with Hub({}) as gone:
            model = entry(Source(url=gone.plain_url(REPO, "tiny.gguf")))
        error = refused(store, model)
        assert error.code == "download_failed"
        assert "the server could not be reached, or hung up, 5 times in a row" in error.message


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("https://me:SECRET@example.com/tiny.gguf", "must not hold a password"),
        ("ftp://example.com/tiny.gguf", "is not the address of a file"),
        ("https://example.com/", "is not the address of a file"),
        ("tiny.gguf", "is not the address of a file"),
        ("https://example.com:99999/tiny.gguf", "is not the address of a file"),
        ("https://[example.com/tiny.gguf", "is not the address of a file"),
    ],
)
def test_addresses_that_can_not_be_used(url: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint) as caught:
        Source(url=url)
    assert "SECRET" not in caught.value.errors()[0]["msg"]


def test_a_checksum_for_several_files_is_refused() -> None:
    with pytest.raises(ValidationError, match="those of one file, but the model has 3"):
        entry(Source(url="https://example.com/a", sha256=SHA256), files={"Q4_1": "a-00001-of-00003.gguf"})


def test_a_revision_needs_a_repository() -> None:
    with pytest.raises(ValidationError, match="there is no repo"):
        entry(revision="main")


@pytest.mark.parametrize(
    ("key", "value", "form"),
    [
        ("repo", "https://huggingface.co/a/b", "write owner/name"),
        ("repo", "a/b/c", "write owner/name"),
        ("revision", "../main", "write a branch, a tag or a commit"),
        ("base_filename", "folder/tiny", "without a folder"),
        ("base_filename", "", "without a folder"),
    ],
)
def test_names_that_can_not_be_used(key: str, value: str, form: str) -> None:
    fields: dict[str, Any] = {"repo": "a/b", key: value}
    with pytest.raises(ValidationError, match=form):
        entry(**fields)


def test_remote_without_a_source(store: ModelStore) -> None:
    with pytest.raises(ModelError, match="names no source"):
        store.remote(entry(), "Q4_1")
