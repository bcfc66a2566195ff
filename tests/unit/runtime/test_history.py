"""What earlier runs teach, read from folders as they are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.core.records import to_line
from pytest_llmbench.runtime import history as history_module
from pytest_llmbench.runtime.history import History
from tests.unit.factories import cell_record

HERE = "this machine"


def run(output: Path, name: str, *records: dict[str, Any], tail: str = "") -> None:
    folder = output / name
    folder.mkdir(parents=True)
    lines = []
    for changes in records:
        data = json.loads(to_line(cell_record())) | {"host": HERE, **changes}
        lines.append(json.dumps(data))
    (folder / "cells.jsonl").write_text("\n".join(lines) + "\n" + tail, encoding="utf-8")


def memory(predicted: int = 1000, observed: int | None = 1100, method: str = "header") -> dict[str, Any]:
    return {"memory": {"method": method, "predicted_bytes": predicted, "observed_peak_bytes": observed}}


def test_observations_newest_first(tmp_path: Path) -> None:
    run(tmp_path, "20260101T000000Z-aaaa", memory(1), memory(2))
    run(tmp_path, "20260202T000000Z-bbbb", memory(3), memory(4))
    assert [seen.predicted_bytes for seen in History(tmp_path, HERE).observations] == [4, 3, 2, 1]


def test_what_was_swapped_out_was_needed_too(tmp_path: Path) -> None:
    run(tmp_path, "20260101T000000Z-aaaa", {"memory": {**memory()["memory"], "observed_swap_bytes": 7}})
    assert [seen.observed_bytes for seen in History(tmp_path, HERE).observations] == [1107]


def test_what_teaches_nothing(tmp_path: Path) -> None:
    run(
        tmp_path,
        "20260101T000000Z-aaaa",
        {**memory(), "host": "another machine"},
        memory(observed=None),
        memory(method="file_size"),
        memory(predicted=0),
        {"memory": {**memory()["memory"], "predicted_bytes": None}},
        {"memory": None},
        {"memory": {**memory()["memory"], "predicted_low_bytes": 500, "predicted_high_bytes": 1000}},
        {"memory": {**memory()["memory"], "device_bytes": 500}},
        tail='{"torn',
    )
    assert History(tmp_path, HERE).observations == ()


def test_the_run_being_made_is_left_out(tmp_path: Path) -> None:
    run(tmp_path, "20260101T000000Z-aaaa", memory())
    assert History(tmp_path, HERE, without="20260101T000000Z-aaaa").observations == ()


def test_a_link_to_the_newest_counts_once(tmp_path: Path) -> None:
    run(tmp_path, "20260101T000000Z-aaaa", memory())
    (tmp_path / "latest").symlink_to("20260101T000000Z-aaaa")
    assert len(History(tmp_path, HERE).observations) == 1


def test_no_folder_and_nonsense(tmp_path: Path) -> None:
    assert History(tmp_path / "nowhere", HERE).observations == ()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "cells.jsonl").write_bytes(b"\xff\xfe[[[[\n{}\n" + b"[" * 100_000)
    assert History(tmp_path, HERE).observations == ()


def test_usual_duration_of_a_measured_cell(tmp_path: Path) -> None:
    times = (("passed", 10.0), ("failed", 30.0), ("passed", 20.0), ("failed", 40.0), ("failed", 50.0))
    timed = [{"nodeid": "a", "duration_seconds": seconds, "status": status} for status, seconds in times]
    run(tmp_path, "20260101T000000Z-aaaa", *timed, {"nodeid": "a", "duration_seconds": 900.0, "status": "error"})
    history = History(tmp_path, HERE)
    assert history.duration_seconds("a", "embedded") == 30.0
    assert history.duration_seconds("a", "llama_cpp") is None
    assert history.duration_seconds("b", "embedded") is None


def test_records_are_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "20260101T000000Z-aaaa", memory(1), memory(2))
    size = (tmp_path / "20260101T000000Z-aaaa" / "cells.jsonl").stat().st_size
    monkeypatch.setattr(history_module, "_MAX_BYTES", size - 100)
    assert [seen.predicted_bytes for seen in History(tmp_path, HERE).observations] == [1]


def test_only_the_newest_runs_are_read(tmp_path: Path) -> None:
    for number in range(40):
        run(tmp_path, f"2026{number:04}T000000Z-aaaa", memory(number + 1))
    predicted = [seen.predicted_bytes for seen in History(tmp_path, HERE).observations]
    assert predicted == list(range(40, 10, -1))
