"""All reports of a run: the same bytes again, and one that fails takes no other with it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pytest_llmbench import reports
from pytest_llmbench.errors import RecordError
from pytest_llmbench.reports.run_data import RunData
from pytest_llmbench.runtime.run_folder import RunFolder
from tests.unit.factories import broken_record, cell_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = RunFolder(tmp_path, "run-1")
    run.create({})
    run.append_cell(cell_record(samples={"ttft_seconds": [[0.1, 0.2, 0.3]]}))
    run.append_cell(broken_record("it did not start", nodeid="other"))
    run.close()
    return run.path


def test_all_formats_are_rebuilt_byte_for_byte(folder: Path) -> None:
    written = reports.write_reports(folder, reports.WRITERS)
    first = {path.name: path.read_bytes() for path in written}
    assert set(first) == {"report.json", "results.csv", "summary.md", "report.html"}
    assert all(first.values())
    reports.write_reports(folder, reports.WRITERS)
    assert {path.name: path.read_bytes() for path in written} == first


def test_one_that_fails_takes_no_other_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: RunData) -> Path:
        raise ZeroDivisionError(run.run_id)

    monkeypatch.setitem(reports.WRITERS, "csv", fail)
    with pytest.raises(RecordError, match=r"csv \(ZeroDivisionError: run-1\).*llmbench report run-1"):
        reports.write_reports(folder, ["csv", "markdown"])
    assert (folder / "summary.md").is_file()
    (folder / "summary.md").unlink()
    (folder / "summary.md").mkdir()
    with pytest.raises(RecordError, match=r"summary\.md \(Is a directory\)"):
        reports.write_reports(folder, ["markdown"])


def test_a_folder_that_was_moved_is_still_the_same_run(folder: Path) -> None:
    first = {path.name: path.read_bytes() for path in reports.write_reports(folder, reports.WRITERS)}
    moved = folder.rename(folder.parent / "artefact")
    assert {path.name: path.read_bytes() for path in reports.write_reports(moved, reports.WRITERS)} == first
    assert RunData.read(moved).run_id == "run-1"


def test_a_disk_that_is_full_spoils_no_earlier_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports.write_reports(folder, reports.WRITERS)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(_path: Path, _target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RecordError, match="No space left on device"):
        reports.write_reports(folder, reports.WRITERS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
