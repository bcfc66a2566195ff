"""A run's files after whatever ended it: torn last lines are cut, and what is to be done again is set aside."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from pytest_llmbench.errors import RecordError

SUPERSEDED = "superseded.jsonl"
SUPERSEDED_REQUESTS = "superseded_requests.jsonl"
SUPERSEDED_SAMPLES = "superseded_telemetry.jsonl"
_BLOCK_BYTES = 1 << 16
# The beginning of each line as it is written; reading all of a long run's JSON would take many seconds.
_CELL_OF_LINE = re.compile(rb'\{"schema_version":\d+,"cell":("(?:[^"\\]|\\.)*")')
_CELL_OF_RECORD = re.compile(rb'\{"schema_version":\d+,"run_id":"[^"]*","nodeid":("(?:[^"\\]|\\.)*")')


def cut_torn_line(file: Path) -> int:
    """Cut what follows the last line break, which a killed process left; returns how many bytes that was.

    Raises:
        OSError: the file can not be read or written; one that is not there has no torn line.
    """
    try:
        with file.open("r+b") as lines:
            end = keep = lines.seek(0, os.SEEK_END)
            while keep:
                begin = max(0, keep - _BLOCK_BYTES)
                lines.seek(begin)
                found = lines.read(keep - begin).rfind(b"\n")
                keep = begin + found + 1 if found >= 0 else begin
                if found >= 0:
                    break
            if keep < end:
                lines.truncate(keep)
            return end - keep
    except FileNotFoundError:
        return 0


def set_aside_cells(run: Path, nodeids: Collection[str]) -> None:
    """Move the records of these cells from ``cells.jsonl`` to ``superseded.jsonl``.

    Raises:
        RecordError: the disk refuses. Whatever happens, each record is in one file or in both.
    """
    wanted = _as_written(nodeids)
    _move(run / "cells.jsonl", run / SUPERSEDED, lambda line: _name_of_record(line) in wanted)


def set_aside_repeated_cells(run: Path) -> None:
    """Move all but the last record of each cell, which a run killed between two steps may have left. As above."""
    file = run / "cells.jsonl"
    with suppress(FileNotFoundError), file.open("rb") as lines:
        names = [_name_of_record(line) for line in lines]
        last = {name: index for index, name in enumerate(names)}
        superseded = {index for index, name in enumerate(names) if last[name] != index}
        _move_lines(file, run / SUPERSEDED, superseded)


def set_aside_requests(run: Path, but_of: Collection[str]) -> None:
    """Move the requests of all cells but these to a file of their own: the cells will be asked again.

    Raises:
        RecordError: the disk refuses.
    """
    _set_aside(run / "requests.jsonl", run / SUPERSEDED_REQUESTS, but_of)


def set_aside_samples(run: Path, but_of: Collection[str]) -> None:
    """The same with what the sensors said, by the clock of a process that is gone. Raises as above."""
    _set_aside(run / "telemetry.jsonl", run / SUPERSEDED_SAMPLES, but_of)


def _set_aside(file: Path, to: Path, but_of: Collection[str]) -> None:
    kept = {None, *_as_written(but_of)}
    _move(file, to, lambda line: _name(_CELL_OF_LINE, line) not in kept)


def _as_written(nodeids: Collection[str]) -> set[bytes]:
    return {json.dumps(nodeid).encode() for nodeid in nodeids}


def _name(pattern: re.Pattern[bytes], line: bytes) -> bytes | None:
    """The node id in a line, as it is written there."""
    match = pattern.match(line)
    return match[1] if match is not None else None


def _name_of_record(line: bytes) -> bytes:
    """Also where another tool has written the line in its own way."""
    return _name(_CELL_OF_RECORD, line) or json.dumps(json.loads(line).get("nodeid")).encode()


def _move(file: Path, to: Path, is_moved: Callable[[bytes], bool]) -> None:
    with suppress(FileNotFoundError), file.open("rb") as lines:
        _move_lines(file, to, {number for number, line in enumerate(lines) if is_moved(line)})


def _move_lines(file: Path, to: Path, numbers: Collection[int]) -> None:
    """Take lines out of a file into another: appended there and flushed first, then the rest replaces the file."""
    if not numbers:
        return
    temporary = file.with_name(f".{file.name}.partial")
    try:
        cut_torn_line(to)
        with file.open("rb") as lines, temporary.open("wb") as rest, to.open("ab") as moved:
            for number, line in enumerate(lines):
                (moved if number in numbers else rest).write(line)
            for written in (moved, rest):
                written.flush()
                os.fsync(written.fileno())
        temporary.replace(file)
    except OSError as exc:
        raise RecordError(f"{file} can not be rewritten: {exc.strerror}; free some space, then resume again") from exc
