"""A run's folder: what is written is there at once, and is read back after any ending."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pytest_llmbench.core.records import SCHEMA_VERSION, RequestRecord, TelemetryRecord
from pytest_llmbench.errors import DiskFull, RecordError
from pytest_llmbench.runtime import run_folder
from pytest_llmbench.runtime.run_folder import RunFolder, find_run, new_run_id, read_cells
from tests.unit.factories import cell_record


def request_record(index: int) -> RequestRecord:
    return RequestRecord(
        cell="a cell", index=index, phase="sample", ok=True, protocol="llama_cpp", t_send_ns=0, t_end_ns=1
    )


def indexes(file: Path) -> list[int]:
    return [json.loads(line)["index"] for line in file.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "results", "run-1")


class TestWriting:
    def test_nothing_is_there_before_the_first_use(self, folder: RunFolder) -> None:
        folder.join_parts()
        assert not folder.output_dir.exists()

    def test_cells_are_there_at_once(self, folder: RunFolder) -> None:
        records = [cell_record(model=name) for name in ("a", "b\nc\u2028d", "lone \ud800")]
        for number, record in enumerate(records, 1):
            folder.append_cell(record)
            assert list(read_cells(folder.path)) == records[:number]
        assert (folder.path / "cells.jsonl").read_bytes().count(b"\n") == 3

    def test_requests_are_there_at_once(self, folder: RunFolder) -> None:
        folder.append_to("requests", request_record(0))
        folder.append_to("requests", request_record(1))
        assert indexes(folder.path / "requests.jsonl") == [0, 1]

    def test_run_json(self, folder: RunFolder) -> None:
        folder.create({"command": ["pytest", "suites"]})
        assert json.loads((folder.path / "run.json").read_text()) == {
            "schema_version": SCHEMA_VERSION,
            "run_id": "run-1",
            "command": ["pytest", "suites"],
        }
        assert [path.name for path in folder.path.glob("[!.]*")] == ["run.json"]
        folder.close()
        assert [path.name for path in folder.path.iterdir()] == ["run.json"]

    def test_a_refusing_disk_is_told(self, folder: RunFolder) -> None:
        folder.output_dir.write_bytes(b"a file where the folder should be")
        with pytest.raises(RecordError, match="run-1 can not be written"):
            folder.create({})
        with pytest.raises(RecordError, match=r"cells\.jsonl can not be written"):
            folder.append_cell(cell_record())
        with pytest.raises(RecordError, match=r"requests\.jsonl can not be written"):
            folder.append_to("requests", request_record(0))

    def test_samples_of_sensors_leave_the_last_space_to_the_cells(
        self, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder.create({})
        write_line = run_folder._write_line

        def full(path: Path, line: str, *, durably: bool) -> None:
            if (folder.path / ".reserve").exists():
                raise OSError(errno.ENOSPC, "No space left on device")
            write_line(path, line, durably=durably)

        monkeypatch.setattr(run_folder, "_write_line", full)
        with pytest.raises(DiskFull):
            folder.append_to("telemetry", TelemetryRecord(cell="a cell", t_ns=1, values={}))
        with pytest.raises(DiskFull):
            folder.append_line_of("gw0", "telemetry", "{}")
        assert not list(folder.path.rglob("telemetry*"))
        with pytest.raises(DiskFull):  # which is told, and is written all the same
            folder.append_cell(cell_record())
        assert list(read_cells(folder.path)) == [cell_record()]

    def test_run_ids_sort_by_time_and_differ(self) -> None:
        ids = {new_run_id() for _ in range(50)}
        assert len(ids) > 45
        assert all(len(run_id) == len("20260131T235959Z-1a2b") for run_id in ids)


class TestParts:
    def test_are_joined_and_removed(self, folder: RunFolder) -> None:
        for name, first in (("gw1", 10), ("gw0", 0)):
            worker = RunFolder(folder.output_dir, folder.run_id, part=name)
            worker.append_to("requests", request_record(first))
            worker.append_to("requests", request_record(first + 1))
        folder.append_to("requests", request_record(99))
        folder.join_parts()
        assert indexes(folder.path / "requests.jsonl") == [99, 0, 1, 10, 11]
        assert [path.name for path in folder.path.iterdir()] == ["requests.jsonl"]

    @pytest.mark.parametrize("whole_lines", [0, 2])
    def test_a_torn_part_gives_its_whole_lines(self, folder: RunFolder, whole_lines: int) -> None:
        worker = RunFolder(folder.output_dir, folder.run_id, part="gw0")
        for index in range(whole_lines + 1):
            worker.append_to("requests", request_record(index))
        (part,) = folder.path.rglob("requests-*.jsonl")
        part.write_bytes(part.read_bytes()[:-20])
        folder.join_parts()
        assert indexes(folder.path / "requests.jsonl") == list(range(whole_lines))


class TestReading:
    def write(self, folder: RunFolder, *lines: bytes) -> Path:
        for _ in range(2):
            folder.append_cell(cell_record())
        file = folder.path / "cells.jsonl"
        first, second = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join([first, *lines, second]))
        return file

    @pytest.mark.parametrize("kept", [0, 1, 40, -2, -1])
    def test_a_torn_last_line_is_passed_over(self, folder: RunFolder, kept: int) -> None:
        file = self.write(folder)
        first, second = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(first + second[:kept])
        assert list(read_cells(folder.path)) == [cell_record()]

    def test_a_last_line_torn_inside_a_character(self, folder: RunFolder) -> None:
        file = self.write(folder)
        file.write_bytes(file.read_bytes() + '{"model": "é'.encode()[:-1])
        assert len(list(read_cells(folder.path))) == 2

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            (b'{"schema_version": 1, "run_id"\n', "not JSON"),
            (b"\n", "not JSON"),
            (b"\xff\xff\n", "not JSON"),
            (b"[]\n", "not a cell record"),
            (b'{"run_id": "run-1"}\n', "not a cell record"),
        ],
    )
    def test_a_corrupt_line_in_the_middle_is_named(self, folder: RunFolder, line: bytes, complaint: str) -> None:
        self.write(folder, line)
        with pytest.raises(RecordError, match=f"cells.jsonl:2: {complaint}"):
            list(read_cells(folder.path))

    def test_a_later_schema_is_refused(self, folder: RunFolder) -> None:
        later = cell_record().model_dump() | {"schema_version": SCHEMA_VERSION + 1}
        self.write(folder, json.dumps(later).encode() + b"\n")
        with pytest.raises(RecordError, match=f"cells.jsonl:2: written with schema {SCHEMA_VERSION + 1}.*upgrade"):
            list(read_cells(folder.path))

    def test_what_a_later_version_adds_is_passed_over(self, folder: RunFolder) -> None:
        more = cell_record().model_dump() | {"a_later_idea": 1}
        self.write(folder, json.dumps(more).encode() + b"\n")
        assert list(read_cells(folder.path)) == [cell_record()] * 3

    def test_no_records(self, tmp_path: Path) -> None:
        with pytest.raises(RecordError, match="can not be read"):
            list(read_cells(tmp_path))


class TestLatest:
    def runs(self, output: Path) -> list[RunFolder]:
        folders = [RunFolder(output, f"run-{number}") for number in (1, 2)]
        for folder in folders:
            folder.create({})
            assert find_run(output, "latest") == folder.path.resolve()
        assert {path.name for path in output.iterdir()} == {"latest", "run-1", "run-2"}
        return folders

    def test_is_a_relative_link(self, tmp_path: Path) -> None:
        self.runs(tmp_path / "results")
        assert os.readlink(tmp_path / "results" / "latest") == "run-2"  # noqa: PTH115 -- text, not a path
        (tmp_path / "results").rename(tmp_path / "moved")
        assert find_run(tmp_path / "moved", "latest").name == "run-2"

    def test_is_a_text_file_where_links_are_not_possible(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_links(*_: Any) -> NoReturn:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "symlink_to", no_links)
        self.runs(tmp_path)
        assert not (tmp_path / "latest").is_symlink()
        assert (tmp_path / "latest").read_text() == "run-2\n"

    def test_a_link_left_by_a_killed_start_does_not_hinder(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path, "run-1")
        folder.create({})
        (tmp_path / ".latest-run-1").symlink_to("run-1")
        folder.create({})
        assert find_run(tmp_path, "latest") == folder.path.resolve()
        assert not (tmp_path / ".latest-run-1").is_symlink()


class TestFindRun:
    def test_by_id_by_folder_and_without_cells(self, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.create({})
        expected = folder.path.resolve()
        assert find_run(folder.output_dir, "run-1") == expected
        assert find_run(Path("elsewhere"), str(folder.path)) == expected
        monkeypatch.chdir(folder.path)
        assert find_run(Path("elsewhere"), ".") == expected

    def test_a_run_without_run_json(self, folder: RunFolder) -> None:
        folder.append_cell(cell_record())
        assert find_run(folder.output_dir, "run-1") == folder.path.resolve()

    @pytest.mark.parametrize("run", ["run-2", "latest", "", "..", "no/such/run"])
    def test_nothing_there(self, folder: RunFolder, run: str) -> None:
        folder.create({})
        (folder.output_dir / "latest").unlink()
        with pytest.raises(RecordError, match="is no run"):
            find_run(folder.output_dir, run)

    @pytest.mark.parametrize("pointer", [b"run-9\n", b"", b"\xff\xfe"])
    def test_latest_points_nowhere(self, folder: RunFolder, pointer: bytes) -> None:
        folder.create({})
        (folder.output_dir / "latest").unlink()
        (folder.output_dir / "latest").write_bytes(pointer)
        with pytest.raises(RecordError, match="is no run"):
            find_run(folder.output_dir, "latest")
