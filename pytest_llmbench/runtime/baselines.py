"""Runs and baseline files, read to be compared; and a baseline written."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_llmbench.core.baseline import KIND, Baseline, baseline_from, baseline_of, baseline_text
from pytest_llmbench.errors import RecordError
from pytest_llmbench.runtime.run_folder import find_run, read_cells

_MOST_BYTES = 64 * 1024 * 1024  # of a baseline's file, or of one stored run's records: a path may name anything
_STORED_RUNS = 10  # that tell how much loads differ


def read_baseline(output_dir: Path, run_or_path: str) -> Baseline:
    """A run (an id, ``latest``, its folder) or a baseline's file.

    Raises:
        RecordError: there is none, or it can not be read.
    """
    path = Path(run_or_path)
    if run_or_path != "latest" and _is_file(path):
        return baseline_from(_text(path), str(path))
    try:
        folder = find_run(output_dir, run_or_path)
    except RecordError as exc:
        raise RecordError(
            f"{run_or_path!r} is neither a baseline's file nor a run: no such file or folder, and no run of that id "
            f"below {output_dir}"
        ) from exc
    return run_baseline(folder)


def run_baseline(folder: Path) -> Baseline:
    """A run's folder as a baseline. Raises RecordError as :func:`~pytest_llmbench.runtime.run_folder.read_cells`."""
    try:
        return baseline_of(_description(folder), read_cells(folder), folder.resolve().name)
    except RecursionError as exc:
        raise RecordError(f"{folder / 'run.json'}: nested too deeply; was it edited?") from exc


def stored_baselines(output_dir: Path, host: str | None, without: Collection[str]) -> list[Baseline]:
    """The newest runs of a machine in an output folder, at most ten; what can not be read is passed over.

    Args:
        host: fingerprint of the machine; None: none is known, so there are none of it.
        without: ids of runs that are not asked for.
    """
    found: list[Baseline] = []
    try:
        names = sorted((entry.name for entry in output_dir.iterdir() if not entry.is_symlink()), reverse=True)
    except OSError:
        return found
    for name in names:
        if len(found) == _STORED_RUNS:
            break
        cells = output_dir / name / "cells.jsonl"
        if name not in without and _is_file(cells) and _description(output_dir / name).get("host") == host:
            with suppress(RecordError, OSError):
                if cells.stat().st_size <= _MOST_BYTES:
                    found.append(run_baseline(output_dir / name))
    return found


def write_baseline(baseline: Baseline, path: Path) -> int:
    """Write a baseline's file in one step; returns its size in bytes.

    Raises:
        RecordError: there is a file that is no baseline, which is not overwritten, or the disk refuses.
    """
    content = baseline_text(baseline).encode("ascii")
    if path.exists() and not _holds_baseline(path):
        raise RecordError(f"{path} exists and is no baseline; it was left alone: choose another name, or remove it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as exc:
        raise RecordError(
            f"{path} can not be written: {exc.strerror}; choose a folder that exists and is yours"
        ) from exc
    return len(content)


def _holds_baseline(path: Path) -> bool:
    """Whether a file is a baseline, be it of another version."""
    try:
        data = json.loads(_text(path))
    except (RecordError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("kind") == KIND


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RecordError(f"{path}: larger than {_MOST_BYTES >> 20} MiB, so no baseline")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as exc:
        raise RecordError(f"{path} can not be read: {exc.strerror}") from exc


def _description(folder: Path) -> Mapping[str, Any]:
    """``run.json``; empty where it can not be read."""
    with suppress(OSError, ValueError, RecursionError):
        read = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else {}
    return {}


def _is_file(path: Path) -> bool:
    with suppress(OSError, ValueError):  # a name too long, or with a NUL in it
        return path.is_file()
    return False
