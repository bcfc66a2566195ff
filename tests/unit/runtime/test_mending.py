"""A run's files are made whole again: lines that were torn, records that are there twice, cells to be done again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_llmbench.core.records import to_line
from pytest_llmbench.errors import RecordError
from pytest_llmbench.runtime.mending import (
    cut_torn_line,
    set_aside_cells,
    set_aside_repeated_cells,
    set_aside_requests,
)
from tests.unit.factories import cell_record


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b"", b""),
        (b"torn", b""),
        (b"one\n", b"one\n"),
        (b"one\ntorn", b"one\n"),
        (b"one\n" + b"x" * 200_000, b"one\n"),
        (b"y" * 200_000 + b"\n" + b"x" * 70_000, b"y" * 200_000 + b"\n"),
        (b"x" * 65_536, b""),
        (b"\n" + b"x" * 65_535, b"\n"),
        (b"\n" + b"x" * 65_536, b"\n"),
    ],
)
def test_a_torn_line_is_cut(tmp_path: Path, text: bytes, kept: bytes) -> None:
    file = tmp_path / "cells.jsonl"
    file.write_bytes(text)
    assert cut_torn_line(file) == len(text) - len(kept)
    assert file.read_bytes() == kept


def test_a_file_that_is_not_there_has_no_torn_line(tmp_path: Path) -> None:
    assert cut_torn_line(tmp_path / "none") == 0
    set_aside_cells(tmp_path, {"a"})
    set_aside_repeated_cells(tmp_path)
    set_aside_requests(tmp_path, ())
    assert list(tmp_path.iterdir()) == []


def write(file: Path, *nodeids: str) -> None:
    records = (cell_record(nodeid=name, duration_seconds=n) for n, name in enumerate(nodeids))
    file.write_text("".join(to_line(record) + "\n" for record in records))


def read(file: Path) -> list[tuple[str, int]]:
    return [(data["nodeid"], int(data["duration_seconds"])) for data in map(json.loads, file.read_text().splitlines())]


def test_cells_to_be_done_again_are_set_aside(tmp_path: Path) -> None:
    write(tmp_path / "cells.jsonl", "a", "b", "c")
    set_aside_cells(tmp_path, {"b", "elsewhere", 'with "quotes" ü'})
    assert read(tmp_path / "cells.jsonl") == [("a", 0), ("c", 2)]
    assert read(tmp_path / "superseded.jsonl") == [("b", 1)]
    set_aside_cells(tmp_path, {"c"})
    assert read(tmp_path / "superseded.jsonl") == [("b", 1), ("c", 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.jsonl", "superseded.jsonl"]


def test_nothing_to_set_aside_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "cells.jsonl", "a")
    set_aside_cells(tmp_path, {"b"})
    set_aside_repeated_cells(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.jsonl"]


def test_of_repeated_records_the_last_stays(tmp_path: Path) -> None:
    write(tmp_path / "cells.jsonl", "a", "b", "a", "c", "a")
    set_aside_repeated_cells(tmp_path)
    assert read(tmp_path / "cells.jsonl") == [("b", 1), ("c", 3), ("a", 4)]
    assert read(tmp_path / "superseded.jsonl") == [("a", 0), ("a", 2)]


def test_requests_of_unfinished_cells_are_set_aside(tmp_path: Path) -> None:
    names: list[str | None] = ["a", 'quo"ted[x]', None, "b", "a", "ünïcode"]
    lines = [json.dumps({"schema_version": 1, "cell": name, "index": 0}, separators=(",", ":")) for name in names]
    (tmp_path / "requests.jsonl").write_text("\n".join(lines) + "\n")
    set_aside_requests(tmp_path, but_of={"a", "ünïcode"})
    kept = [json.loads(line)["cell"] for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    aside = [json.loads(line)["cell"] for line in (tmp_path / "superseded_requests.jsonl").read_text().splitlines()]
    assert kept == ["a", None, "a", "ünïcode"]
    assert aside == ['quo"ted[x]', "b"]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "cells.jsonl", "a", "b")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RecordError, match="No space left on device; free some space, then resume again"):
        set_aside_cells(tmp_path, {"b"})
    assert read(tmp_path / "cells.jsonl") == [("a", 0), ("b", 1)]
