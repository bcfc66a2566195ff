"""A run's folder: records appended and flushed as they happen, readable after any ending."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, Literal

from filelock import FileLock, Timeout

from pytest_llmbench.core.records import SCHEMA_VERSION, CellRecord, Record, cell_from_line, to_line
from pytest_llmbench.core.resuming import is_finished
from pytest_llmbench.errors import DiskFull, RecordError
from pytest_llmbench.runtime.mending import SUPERSEDED, cut_torn_line

Table = Literal["requests", "telemetry"]
_DISPENSABLE = {"telemetry"}  # what a full disk's last space is not for
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_RESERVE_BYTES = 1 << 20
LEAST_FREE_BYTES = 16 << 20


def new_run_id() -> str:
    """Sortable by time, unlikely to collide: ``20260131T235959Z-1a2b``."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def utc_now() -> str:
    """Wall time for labels only."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class RunFolder:
    """``<output>/<run_id>/``. Created on first use, so that a run that selects no cell leaves nothing behind.

    Args:
        part: name of an xdist worker, whose requests and telemetry go to parts of their own until the controller joins
            them.
    """

    def __init__(self, output_dir: Path, run_id: str, part: str | None = None) -> None:
        self.output_dir = output_dir
        self.run_id = run_id
        self.path = output_dir / run_id
        self.logs = self.path / "logs"
        self._parts = self.path / "parts"
        self._part = part
        self._calibration = self.path / "calibration.json"
        self._reserve = self.path / ".reserve"
        self._lock = FileLock(self.path / ".lock")

    def create(self, run: dict[str, Any]) -> None:
        """Write ``run.json``, point ``latest`` here, and keep some space for the last records of a full disk.

        Raises:
            RecordError: the disk refuses, or another process writes to this run.
        """
        self.claim()
        self.describe(run)
        self._point_latest()
        try:
            self._reserve.write_bytes(os.urandom(_RESERVE_BYTES))  # what compresses would reserve nothing
        except OSError as exc:
            self._reserve.unlink(missing_ok=True)
            raise _not_writable(self._reserve, exc) from exc

    def claim(self) -> None:
        """Be the only process that writes this run's records, until it ends. Safe to call again.

        Raises:
            RecordError: another one does, or the disk refuses.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self._lock.is_locked:
                self._lock.acquire(timeout=0)
        except Timeout as exc:
            raise RecordError(f"run {self.run_id} goes on in another process; wait for it or end it first") from exc
        except OSError as exc:
            raise _not_writable(self.path, exc) from exc

    def close(self) -> None:
        """Give back what was only needed while the run went on; nothing of a run that is another process's."""
        if not self._lock.is_locked:
            return
        for path in (self._reserve, self.path / ".lock"):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        self._lock.release()

    def describe(self, run: dict[str, Any]) -> None:
        """Write ``run.json``, in one step. Raises RecordError when the disk refuses."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"schema_version": SCHEMA_VERSION, "run_id": self.run_id, **run}, indent=2)
            temporary = self.path / ".run.json.partial"
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave it empty, and nobody could resume the run
            temporary.replace(self.path / "run.json")
        except OSError as exc:
            raise _not_writable(self.path, exc) from exc

    def _point_latest(self) -> None:
        """Make ``latest`` lead here: a link, or a text file where links are not possible."""
        pointer, temporary = self.output_dir / "latest", self.output_dir / f".latest-{self.run_id}"
        try:
            temporary.unlink(missing_ok=True)  # left by a start that was killed
            try:
                temporary.symlink_to(self.run_id)
            except OSError:  # a file system without links
                temporary.write_text(self.run_id + "\n", encoding="utf-8")
            temporary.replace(pointer)
        except OSError as exc:
            raise _not_writable(pointer, exc) from exc

    def require_space(self) -> None:
        """See that there is room for another cell's records and its server's log.

        Raises:
            DiskFull: there is not.
        """
        existing = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.is_dir())
        free_bytes = shutil.disk_usage(existing).free
        if free_bytes < LEAST_FREE_BYTES:
            raise DiskFull(
                f"only {free_bytes / 1e6:.0f} MB are free on the disk of {self.output_dir}, a cell needs at least "
                f"{LEAST_FREE_BYTES / 1e6:.0f}; free some space, then go on with --llmbench-resume latest"
            )

    def append_cell(self, record: CellRecord) -> None:
        """Add a line to ``cells.jsonl``; a verdict is there also after a power cut.

        Raises:
            RecordError: the disk refuses.
        """
        self._append(self.path / "cells.jsonl", to_line(record), durably=is_finished(record))

    def append_superseded(self, record: CellRecord) -> None:
        """Add the record of an attempt that was not the last. Raises RecordError when the disk refuses."""
        self._append(self.path / SUPERSEDED, to_line(record))

    def append_to(self, table: Table, record: Record) -> None:
        """Add a line to ``<table>.jsonl``, or to this worker's part. Raises RecordError when the disk refuses."""
        path = self._parts / f"{table}-{self._part}.jsonl" if self._part else self.path / f"{table}.jsonl"
        self._append(path, to_line(record), dispensable=table in _DISPENSABLE)

    def append_line_of(self, part: str, table: Table, line: str) -> None:
        """Controller: add a line that a worker on another host sent, to its part. Raises RecordError."""
        self._append(self._parts / f"{table}-{part}.jsonl", line, dispensable=table in _DISPENSABLE)

    def _append(self, path: Path, line: str, *, durably: bool = False, dispensable: bool = False) -> None:
        try:
            try:
                _write_line(path, line, durably=durably)
            except OSError as exc:
                with suppress(OSError):
                    cut_torn_line(path)
                if exc.errno in _NO_SPACE and self._reserve.exists() and not dispensable:
                    self._reserve.unlink(missing_ok=True)  # room for what is still to be said
                    _write_line(path, line, durably=durably)
                raise
        except OSError as exc:
            raise _not_writable(path, exc) from exc

    def keep_calibration(self, calibration: dict[str, Any]) -> None:
        """Leave how precise timing is here for the controller to put into ``run.json``. Raises RecordError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            temporary = self.path / f".calibration-{self._part}.partial"
            temporary.write_text(json.dumps(calibration), encoding="utf-8")
            temporary.replace(self._calibration)
        except OSError as exc:
            raise _not_writable(self._calibration, exc) from exc

    @property
    def is_calibrated(self) -> bool:
        """Whether one process of this run has measured how precise timing is here."""
        return self._calibration.exists()

    def take_calibration(self) -> dict[str, Any] | None:
        """Controller: what was kept, which then has a place in ``run.json``; None where nothing was."""
        with suppress(OSError, ValueError):
            kept: dict[str, Any] = json.loads(self._calibration.read_text(encoding="utf-8"))
            self._calibration.unlink()
            return kept
        return None

    @property
    def has_parts(self) -> bool:
        """Whether workers have written what is not joined yet."""
        return self._parts.is_dir()

    def join_parts(self) -> None:
        """Controller: append the workers' parts to ``requests.jsonl`` and ``telemetry.jsonl`` and remove them."""
        if not self.has_parts:
            return
        for part in sorted(self._parts.glob("*-*.jsonl")):
            text = part.read_bytes()
            whole = text[: text.rfind(b"\n") + 1]  # a killed worker may have left a torn last line
            with (self.path / f"{part.name.partition('-')[0]}.jsonl").open("a+b") as joined:
                joined.write(whole[_ends_with_begin_of(joined, whole) :])
            part.unlink()
        shutil.rmtree(self._parts, ignore_errors=True)


def _ends_with_begin_of(file: BinaryIO, lines: bytes) -> int:
    """How many bytes of these lines a file ends with already: it was being appended to when a run was killed."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(lines)))
    end, first = file.read(), lines[: lines.find(b"\n") + 1]
    begin = end.find(first) if first else -1
    while begin >= 0 and end[begin:] != lines[: len(end) - begin]:
        begin = end.find(first, begin + 1)
    return len(end) - begin if begin >= 0 else 0


def read_cells(path: Path) -> Iterator[CellRecord]:
    """The records of a run's folder, in order. A torn last line, left by a killed run, is passed over.

    Raises:
        RecordError: no such run, or a line that is no record.
    """
    file = path / "cells.jsonl"
    if not file.exists() and (path / "run.json").is_file():
        return  # ended before its first cell did
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as exc:
        raise RecordError(f"{file}: can not be read: {exc.strerror}; is {path} a run's folder?") from exc
    torn = len(lines) - 1
    for number, line in enumerate(lines):
        if number == torn:
            return  # what follows the last line break: nothing, or half a record
        yield cell_from_line(line, f"{file}:{number + 1}")


def find_run(output_dir: Path, run: str) -> Path:
    """The folder of a RUN: a folder, ``latest``, or a run id. Raises RecordError when there is none."""
    given = Path(run)
    candidates = [given, output_dir / run]
    pointer = output_dir / "latest"
    if run == "latest" and pointer.is_file():
        with suppress(OSError, ValueError):
            candidates.append(output_dir / pointer.read_text(encoding="utf-8").strip())
    for candidate in candidates:
        if (candidate / "cells.jsonl").is_file() or (candidate / "run.json").is_file():
            return candidate.resolve()
    raise RecordError(f"{run!r} is no run: neither a folder with records nor a run below {output_dir}")


def _write_line(path: Path, line: str, *, durably: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="ascii") as file:
        file.write(line + "\n")
        if durably:
            file.flush()
            os.fsync(file.fileno())


def _not_writable(path: Path, exc: OSError) -> RecordError:
    if exc.errno in _NO_SPACE:
        return DiskFull(
            f"{path} can not be written: {exc.strerror}; free some space, then go on with --llmbench-resume latest"
        )
    return RecordError(
        f"{path} can not be written: {exc.strerror}; free some space or choose another --llmbench-output"
    )
