"""Runs and baseline files found by name; a baseline written without a trace of failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.core.records import CellRecord, to_line
from pytest_llmbench.errors import RecordError
from pytest_llmbench.runtime import baselines
from pytest_llmbench.runtime.baselines import read_baseline, run_baseline, stored_baselines, write_baseline
from tests.unit.core.baselines import DESCRIPTION, measured

HOST = DESCRIPTION["host"]


def stored(output: Path, run_id: str, *records: CellRecord, **description: Any) -> Path:
    """A run's folder below ``output``."""
    folder = output / run_id
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({**DESCRIPTION, **description}))
    (folder / "cells.jsonl").write_text("".join(to_line(record) + "\n" for record in records or (measured(),)))
    return folder


def test_a_run_by_id_as_latest_by_folder_and_as_a_file_is_the_same(tmp_path: Path) -> None:
    folder = stored(tmp_path, "20260101T000000Z-aaaa")
    (tmp_path / "latest").symlink_to(folder.name)
    written = tmp_path / "baseline.json"
    write_baseline(run_baseline(folder), written)
    found = [read_baseline(tmp_path, name) for name in (folder.name, "latest", str(folder), str(written))]
    assert [one.run_id for one in found] == [folder.name] * 4
    assert found.count(found[0]) == 4


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "x" * 5000, "folder"])
def test_what_is_neither_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises((RecordError, OSError)):
        read_baseline(tmp_path, name)


def test_a_run_without_a_readable_description_is_still_a_run(tmp_path: Path) -> None:
    folder = stored(tmp_path, "a")
    for text in ("", "[1]", "[" * 100_000):
        (folder / "run.json").write_text(text)
        found = run_baseline(folder)
        assert (found.run_id, len(found.cells), found.environment) == ("a", 1, {})
    (folder / "cells.jsonl").write_text("{}\n")
    with pytest.raises(RecordError, match=r"cells\.jsonl:1"):
        run_baseline(folder)


def test_a_baseline_replaces_a_baseline_and_nothing_else(tmp_path: Path) -> None:
    baseline, path = run_baseline(stored(tmp_path / "results", "a")), tmp_path / "baseline.json"
    assert write_baseline(baseline, path) == path.stat().st_size
    path.write_text('{"kind": "llmbench-baseline", "schema_version": 99}')
    write_baseline(baseline, path)
    before = path.read_bytes()
    (tmp_path / "notes.json").write_text('{"mine": true}')
    with pytest.raises(RecordError, match="left alone"):
        write_baseline(baseline, tmp_path / "notes.json")
    with pytest.raises(RecordError, match="left alone"):
        write_baseline(baseline, tmp_path / "results")
    with pytest.raises(RecordError, match="can not be written"):
        write_baseline(baseline, tmp_path / "nowhere" / "baseline.json")
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["baseline.json", "notes.json", "results"]


def test_a_disk_that_refuses_leaves_the_old_baseline_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    baseline, path = run_baseline(stored(tmp_path / "results", "a")), tmp_path / "baseline.json"
    write_baseline(baseline, path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RecordError, match="No space left"):
        write_baseline(baseline.model_copy(update={"run_id": "b"}), path)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["baseline.json", "results"]


def test_what_is_too_large_to_be_a_baseline_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.json"
    path.write_text(" " * 2000)
    monkeypatch.setattr(baselines, "_MOST_BYTES", 1999)
    with pytest.raises(RecordError, match="larger than"):
        read_baseline(tmp_path, str(path))


def test_stored_runs_are_the_newest_of_this_machine_that_can_be_read(tmp_path: Path) -> None:
    for number in range(12):
        stored(tmp_path, f"run{number:02}")
    stored(tmp_path, "run90", host="another")
    stored(tmp_path, "run91").joinpath("cells.jsonl").write_text("{}\n")
    (tmp_path / "latest").symlink_to("run11")
    (tmp_path / "notes.txt").write_text("")
    found = [one.run_id for one in stored_baselines(tmp_path, HOST, without={"run11", "run05"})]
    assert found == [f"run{number:02}" for number in (10, 9, 8, 7, 6, 4, 3, 2, 1, 0)]
    assert stored_baselines(tmp_path / "nowhere", HOST, without=()) == []
    assert stored_baselines(tmp_path, None, without=()) == []
