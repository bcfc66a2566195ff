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
_BLOCK_BYTES = 1 << 16
_CELL_OF_REQUEST = re.compile(rb'\{"schema_version":\d+,"cell":("(?:[^"\\]|\\.)*")')


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
    wanted = set(nodeids)
    _move(run / "cells.jsonl", run / SUPERSEDED, lambda line: json.loads(line).get("nodeid") in wanted)


def set_aside_repeated_cells(run: Path) -> None:
    """Move all but the last record of each cell, which a run killed between two steps may have left. As above."""
    file = run / "cells.jsonl"
    with suppress(FileNotFoundError):
        nodeids = [json.loads(line).get("nodeid") for line in file.read_bytes().splitlines()]
        last = {nodeid: index for index, nodeid in enumerate(nodeids)}
        if len(last) < len(nodeids):
            numbers = iter(range(len(nodeids)))
            _move(file, run / SUPERSEDED, lambda _line: (index := next(numbers)) != last[nodeids[index]])


def set_aside_requests(run: Path, but_of: Collection[str]) -> None:
    """Move the requests of all cells but these to a file of their own: the cells will be asked again.

    Raises:
        RecordError: the disk refuses.
    """
    kept = {json.dumps(nodeid).encode() for nodeid in but_of}

    def is_moved(line: bytes) -> bool:
        match = _CELL_OF_REQUEST.match(line)
        return match is not None and match[1] not in kept

    _move(run / "requests.jsonl", run / SUPERSEDED_REQUESTS, is_moved)


def _move(file: Path, to: Path, is_moved: Callable[[bytes], bool]) -> None:
    """Take lines out of a file into another: appended there and flushed first, then the rest replaces the file."""
    temporary = file.with_name(f".{file.name}.partial")
    try:
        with file.open("rb") as lines, temporary.open("wb") as rest, to.open("ab") as moved:
            count = 0
            for line in lines:
                if is_moved(line):
                    moved.write(line)
                    count += 1
                else:
                    rest.write(line)
            for written in (moved, rest):
                written.flush()
                os.fsync(written.fileno())
        if count:
            temporary.replace(file)
        else:
            temporary.unlink()
        if not to.stat().st_size:
            to.unlink()
    except FileNotFoundError:
        return
    except OSError as exc:
        raise RecordError(f"{file} can not be rewritten: {exc.strerror}; free some space, then resume again") from exc
