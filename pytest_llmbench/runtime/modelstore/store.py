"""Model files: found where they are, or fetched, verified, and moved into place in one step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256 as new_sha256
from pathlib import Path

from filelock import FileLock

from pytest_llmbench.core.config import ModelEntry, Source
from pytest_llmbench.core.gguf import GgufHeader, check_header_quantization, parse_header, read_model, shard_names
from pytest_llmbench.core.records import ModelFile
from pytest_llmbench.errors import ModelError, ModelNotDownloaded
from pytest_llmbench.runtime.modelstore.files import discover, file_names, is_file
from pytest_llmbench.runtime.modelstore.headers import ModelHeader, merged, remote_header
from pytest_llmbench.runtime.modelstore.hub import HubRepository, Listing
from pytest_llmbench.runtime.modelstore.metadata import Checksums, Metadata, now
from pytest_llmbench.runtime.modelstore.transfer import (
    Progress,
    RemoteFile,
    RemoteModel,
    is_no_space,
    require_checksum,
    require_disk_space,
    sha256_of,
    transfer,
)
from pytest_llmbench.runtime.modelstore.web import WebAddress
from pytest_llmbench.runtime.modelstore.wheel import fetch_wheel

__all__ = ["ModelHeader", "ModelStore", "Progress", "RemoteFile", "RemoteModel", "sha256_of"]
_UNFINISHED = "download_failed"  # the one failure after which what has arrived is worth keeping


@dataclass(frozen=True)
class _Arrival:
    """A file that has been downloaded, and what it is to be."""

    model: ModelEntry
    quantization: str
    remote: RemoteModel
    file: RemoteFile
    target: Path


@dataclass(frozen=True)
class ModelStore:
    """The folder of models.

    Attributes:
        model_dir: files live in ``model_dir/<size>/<file name>``.
        rootdir: what a relative ``source.path`` is relative to.
        may_download: False under ``--llmbench-no-download``; then nothing touches the network.
    """

    model_dir: Path
    rootdir: Path
    may_download: bool
    _failed: dict[Path, ModelError] = field(default_factory=dict, repr=False)
    _listings: dict[HubRepository, Listing | ModelError] = field(default_factory=dict, repr=False)
    _headers: dict[tuple[tuple[str, int, int], ...], GgufHeader] = field(default_factory=dict, repr=False)
    _remotes: dict[tuple[str, str], RemoteModel] = field(default_factory=dict, repr=False)

    def locate(self, model: ModelEntry, quantization: str) -> list[Path] | None:
        """All local files of a model, every shard; None where one is missing. No network.

        They lie at ``model_dir/<size>/<file name>``, at ``source.path``, or where a scan of ``model_dir`` finds them.
        """
        wanted = self._targets(model, quantization)
        if all(map(is_file, wanted)):
            return wanted
        source = model.source.get(quantization)
        if source is None or source.path is None:
            return discover(self.model_dir, model, quantization)
        first = self._source_path(source.path)
        paths = [first.with_name(name) for name in shard_names(first.name)]
        return paths if all(map(is_file, paths)) else None

    def source_of(self, model: ModelEntry, quantization: str) -> str | None:
        """Where a model would be downloaded from, for people; None where it names no such place. No network."""
        source = model.source.get(quantization)
        if source is not None and source.wheel is not None:
            return f"{source.wheel} on the package index"
        origin = _origin(model, source)
        return origin.origin if origin is not None else None

    def remote(self, model: ModelEntry, quantization: str) -> RemoteModel:
        """What would be downloaded, without downloading it; asked once for each model.

        Raises:
            ModelNotDownloaded: downloading is switched off.
            ModelError: there is no source, or it can not be asked or does not hold the files.
        """
        source, names = model.source.get(quantization), file_names(model, quantization)
        self._require_source(model, quantization)
        if source is not None and source.wheel is not None:
            file = RemoteFile(names[0], None, source.size_bytes, source.sha256, source.wheel)
            return RemoteModel(f"{source.wheel} on the package index", (file,))
        key = (model.name, quantization)
        if key not in self._remotes:
            origin = _origin(model, source)
            if isinstance(origin, HubRepository):
                self._remotes[key] = origin.describe(self._listing(origin), names)
            elif origin is not None:
                self._remotes[key] = origin.describe(names)
        return self._remotes[key]

    def header(self, model: ModelEntry, quantization: str) -> ModelHeader | None:
        """A model's header, of all shards together: from its files, else from where they would be downloaded.

        Returns:
            None where there is none to be had without a download: of a wheel, or with downloading switched off.

        Raises:
            ModelError: the file, or its source, is not what was expected.
        """
        paths = self.locate(model, quantization)
        if paths is not None:
            return ModelHeader(self._local_header(paths), local=True, download_bytes=0)
        source = model.source.get(quantization)
        if not self.may_download or (source is not None and source.wheel is not None):
            return None
        remote, origin = self.remote(model, quantization), _origin(model, source)
        if origin is None:
            return None
        cache, asking = self.model_dir / ".headers", origin.headers()
        headers = [remote_header(file, cache, asking, origin.refused) for file in remote.files]
        return ModelHeader(merged(headers), local=False, download_bytes=self.missing_bytes(model, quantization))

    def _local_header(self, paths: list[Path]) -> GgufHeader:
        """The header of files that are here, read again only where one has changed: every cell asks for it."""
        try:
            states = [path.stat() for path in paths]
        except OSError:
            return read_model(paths)  # which tells what is wrong
        key = tuple((str(path), one.st_size, one.st_mtime_ns) for path, one in zip(paths, states, strict=True))
        if key not in self._headers:
            self._headers[key] = read_model(paths)
        return self._headers[key]

    def missing_bytes(self, model: ModelEntry, quantization: str) -> int | None:
        """What a download would still write, None where nobody tells; raises as :meth:`remote` does."""
        begun, sizes = 0, []
        for file, target in self._missing(model, quantization, self.remote(model, quantization)):
            begun += _size_of(_work_folder(target) / "content")
            sizes.append(file.size_bytes)
        known = [size for size in sizes if size is not None]
        return max(sum(known) - begun, 0) if len(known) == len(sizes) else None

    def fetch(self, model: ModelEntry, quantization: str, progress: Progress) -> tuple[Path, ModelFile]:
        """The local path of a model's (first) file, fetched if need be and verified against its checksum.

        Of several files, the size is that of all; the checksum is that of what ``sha256sum`` prints for them.

        Raises:
            ModelNotDownloaded: absent, and downloading is switched off.
            ModelError: no source, failed download, wrong size, checksum or quantization, or no disk space. What has
                arrived stays only where the connection was lost, for the next run to go on with. A download that failed
                is not tried again.
        """
        paths = self.locate(model, quantization) or self._download(model, quantization, progress)
        try:
            sums = [self._verify(path, model.source.get(quantization), progress) for path in paths]
            size_bytes = sum(path.stat().st_size for path in paths)
        except OSError as exc:
            message = f"{self.shown(paths[0])} can not be read: {exc.strerror}; check its permissions"
            raise ModelError("model_not_readable", message) from exc
        sha256 = sums[0]
        if len(paths) > 1:
            lines = "".join(f"{one}  {path.name}\n" for one, path in zip(sums, paths, strict=True))
            sha256 = new_sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
        return paths[0], ModelFile(path=self.shown(paths[0]), size_bytes=size_bytes, sha256=sha256)

    def note_tested(self, model: ModelEntry, quantization: str, estimated_memory_bytes: int | None) -> None:
        """Note in ``metadata.json`` that a model was measured now, and the memory it was predicted to need."""
        for path in (self.locate(model, quantization) or [])[:1]:
            facts = {"estimated_memory_bytes": estimated_memory_bytes} if estimated_memory_bytes is not None else {}
            described = {"model": model.name, "model_size": model.size, "quantization": quantization}
            Metadata(self.model_dir).update(path, {**described, **facts, "last_tested_at": now()})

    def shown(self, path: Path) -> str:
        """A path as messages show it."""
        return str(path.relative_to(self.rootdir)) if path.is_relative_to(self.rootdir) else str(path)

    def _targets(self, model: ModelEntry, quantization: str) -> list[Path]:
        return [self.model_dir / model.size / name for name in file_names(model, quantization)]

    def _source_path(self, written: str) -> Path:
        path = Path(written).expanduser()
        return path if path.is_absolute() else self.rootdir / path

    def _missing(self, model: ModelEntry, quantization: str, remote: RemoteModel) -> Iterator[tuple[RemoteFile, Path]]:
        for file, target in zip(remote.files, self._targets(model, quantization), strict=True):
            if not is_file(target):
                yield file, target

    def _listing(self, repository: HubRepository) -> Listing:
        """What a repository holds, asked once: its head must not move in the middle of a run."""
        known = self._listings.get(repository)
        if isinstance(known, ModelError):
            raise _again(known)
        if known is not None:
            return known
        try:
            listing = repository.listing()
        except ModelError as exc:
            self._listings[repository] = exc
            raise
        self._listings[repository] = listing
        return listing

    def _require_source(self, model: ModelEntry, quantization: str) -> None:
        """Refuse what can not be downloaded, before anything is tried."""
        source = model.source.get(quantization)
        targets = self._targets(model, quantization)
        shown = ", ".join(self.shown(path) for path in targets)
        if source is not None and source.path is not None:
            path = self._source_path(source.path)
            what = "no file" if not is_file(path) else "only one part of the model"
            raise ModelError(
                "model_missing",
                f"{model.name} {quantization}: source.path {source.path!r} is {what}; correct it in the models file",
            )
        if not self.may_download:
            raise ModelNotDownloaded(
                "not_downloaded",
                f"{model.name} {quantization} is not in {shown}, and downloading is off; leave out "
                "--llmbench-no-download, or run llmbench models download",
            )
        if source is None and model.repo is None:
            raise ModelError(
                "model_missing",
                f"{model.name} {quantization}: {shown} is missing, and the models file names no source; put it there, "
                "or add repo or source",
            )
        if source is not None and source.wheel is not None and len(targets) > 1:
            raise ModelError(
                "model_missing",
                f"{model.name} {quantization}: not all of {shown} are there, and a wheel gives only one file; "
                "put them there",
            )

    def _download(self, model: ModelEntry, quantization: str, progress: Progress) -> list[Path]:
        targets = self._targets(model, quantization)
        self._require_source(model, quantization)
        try:
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
            # A second run waits here, then finds the files.
            with FileLock(targets[0].with_name(f".{targets[0].name}.lock")):
                if not all(map(is_file, targets)):
                    self._fetch_once(model, quantization, progress)
        except OSError as exc:
            shown, free = self.shown(targets[0]), "free some space or set model_dir"
            code = "disk_full" if is_no_space(exc) else "model_not_written"
            raise ModelError(code, f"{shown} can not be written: {exc.strerror}; {free}") from exc
        return targets

    def _fetch_once(self, model: ModelEntry, quantization: str, progress: Progress) -> None:
        """Fetch; where that failed before, say so instead: every variant of a model would wait for it again."""
        first = self._targets(model, quantization)[0]
        if first in self._failed:
            raise _again(self._failed[first])
        try:
            self._fetch(model, quantization, progress)
        except ModelError as exc:
            self._failed[first] = exc
            raise

    def _fetch(self, model: ModelEntry, quantization: str, progress: Progress) -> None:
        source = model.source.get(quantization)
        remote, origin = self.remote(model, quantization), _origin(model, source)
        missing = list(self._missing(model, quantization, remote))
        if origin is not None:
            require_disk_space(missing[0][1].parent, self.missing_bytes(model, quantization) or 0)
        for file, target in missing:
            work = _work_folder(target)
            with _kept_if_unfinished(work):
                if origin is not None:
                    content = transfer(file, work, progress, refused=origin.refused, headers=origin.headers())
                elif source is not None:
                    shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed: the lock is ours
                    work.mkdir()
                    content = fetch_wheel(source, work, progress)
                self._accept(content, _Arrival(model, quantization, remote, file, target), progress)
            shutil.rmtree(work, ignore_errors=True)

    def _accept(self, content: Path, arrival: _Arrival, progress: Progress) -> None:
        """Verify a file that has arrived, and move it into place. Raises ModelError."""
        remote, file, name = arrival.remote, arrival.file, f"{arrival.file.name} from {arrival.remote.origin}"
        sha256 = sha256_of(content, progress, file.name)
        if file.sha256 is not None:
            promised_by = remote.origin if remote.revision else "the models file"
            require_checksum(file.name, promised_by, file.sha256, sha256)
        header = _header_of(content, name)
        check_header_quantization(header, arrival.quantization, name)  # only a first shard names one
        content.replace(arrival.target)
        Checksums(self.model_dir).remember(arrival.target, sha256)
        facts = {
            "sha256": sha256,
            "model": arrival.model.name,
            "model_size": arrival.model.size,
            "family": header.architecture,
            "quantization": arrival.quantization,
            "origin": remote.origin,
            "revision": remote.revision,
            "downloaded_at": now(),
        }
        Metadata(self.model_dir).update(arrival.target, facts)

    def _verify(self, path: Path, source: Source | None, progress: Progress) -> str:
        """SHA-256 of a file, from memory when size and time of change are the same as when it was last computed."""
        checksums = Checksums(self.model_dir)
        known = checksums.known(path)
        sha256 = known or sha256_of(path, progress)
        if source is not None and source.sha256 and sha256 != source.sha256:
            raise ModelError(
                "checksum_mismatch",
                f"{self.shown(path)} has SHA-256 {sha256}, the models file promises {source.sha256}; "
                "delete the file to fetch it again, or correct the checksum",
                {"sha256": sha256, "expected_sha256": source.sha256},
            )
        if known is None:
            checksums.remember(path, sha256)
        return sha256


def _origin(model: ModelEntry, source: Source | None) -> HubRepository | WebAddress | None:
    """What is asked over HTTP; None for a wheel, a path, or nothing."""
    if source is not None:
        return WebAddress(source) if source.url is not None else None
    return HubRepository(model.repo, model.revision) if model.repo is not None else None


def _work_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


@contextmanager
def _kept_if_unfinished(work: Path) -> Iterator[None]:
    """Remove what a failed download left, unless the next run can go on with it."""
    try:
        yield
    except BaseException as exc:
        lost = isinstance(exc, ModelError) and exc.code != _UNFINISHED
        if lost or isinstance(exc, OSError) or not _size_of(work / "content"):
            shutil.rmtree(work, ignore_errors=True)
        raise


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _header_of(path: Path, name: str) -> GgufHeader:
    """Read a header under another name than the file's own, which means nothing to anybody."""
    with path.open("rb") as file:
        descriptor = file.fileno()
        return parse_header(lambda begin, count: os.pread(descriptor, count, begin), path.stat().st_size, name)


def _again(first: ModelError) -> ModelError:
    if "remembered" in first.evidence:
        return first
    return ModelError(first.code, f"not tried again: {first.message}", {**first.evidence, "remembered": True})
