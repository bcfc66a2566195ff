"""Records and requests are told apart by node ids of any spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llmbench.core.records import RequestRecord, TelemetryRecord, to_line
from pytest_llmbench.runtime.mending import set_aside_cells, set_aside_requests, set_aside_samples
from pytest_llmbench.runtime.run_folder import RunFolder, read_cells
from tests.unit.factories import cell_record

ODD = [
    'suites/a "quoted" name.py::test[x]',
    "suites/back\\slash.py::test[x]",
    "suites/prüfung.py::test[x]",
    "suites/test_interactive.py::test_interactive[x]",
]


@pytest.mark.parametrize("again", ODD)
def test_only_what_is_done_again_is_set_aside(tmp_path: Path, again: str) -> None:
    folder = RunFolder(tmp_path, "run")
    for nodeid in ODD:
        folder.append_cell(cell_record(nodeid=nodeid))
        folder.append_to(
            "requests",
            RequestRecord(cell=nodeid, index=0, phase="sample", ok=True, protocol="p", t_send_ns=1, t_end_ns=2),
        )
        folder.append_to("telemetry", TelemetryRecord(cell=nodeid, t_ns=1, values={"cpu_busy_percent": 1.0}))
    rest = [nodeid for nodeid in ODD if nodeid != again]
    set_aside_cells(folder.path, {again})
    set_aside_requests(folder.path, but_of=rest)
    set_aside_samples(folder.path, but_of=rest)
    assert [record.nodeid for record in read_cells(folder.path)] == rest
    requests = (folder.path / "requests.jsonl").read_text().splitlines()
    assert [RequestRecord.model_validate_json(line).cell for line in requests] == rest
    samples = (folder.path / "telemetry.jsonl").read_text().splitlines()
    assert [TelemetryRecord.model_validate_json(line).cell for line in samples] == rest
    (superseded,) = (folder.path / "superseded_telemetry.jsonl").read_text().splitlines()
    assert TelemetryRecord.model_validate_json(superseded).cell == again
    assert (folder.path / "superseded.jsonl").read_text() == to_line(cell_record(nodeid=again)) + "\n"
