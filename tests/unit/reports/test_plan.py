"""A plan for people: within the terminal's width, and with nothing in it that a terminal obeys."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmbench.core.plan import Plan, PlannedCell, PlannedMemory, Room
from pytest_llmbench.core.records import MemoryRecord, Reason
from pytest_llmbench.reports.plan import MAX_ROWS, duration, render
from tests.unit.core.test_plan import ROOM, cell
from tests.unit.reports.hostile import HOSTILE


def lines(*cells: PlannedCell, width: int = 80, room: Room = ROOM) -> list[str]:
    return render(Plan(cells, room), width=width, colour=False)


def memory(required: int, **changes: Any) -> PlannedMemory:
    record = {"predicted_low_bytes": required, "predicted_high_bytes": required, "required_bytes": required}
    return PlannedMemory(MemoryRecord(**{"method": "header", **record, **changes}), fits=True)


def refused(message: str, expected: str = "skip") -> PlannedCell:
    reason = Reason(code="does_not_fit", message=message)
    return cell(expected=expected, reason=reason)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (130.2, "2 min 10 s"),
        (3599.7, "1 h 0 min"),
        (3900, "1 h 5 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_keeps_to_the_width(width: int) -> None:
    cells = [cell("a-rather-long-name-of-a-model" * 3, starts_server=True, expected_seconds=130.0)] * 12
    shown = lines(*cells, width=width)
    table = shown[: shown.index("")]
    assert max(map(len, table)) <= max(width, 72)
    assert table[2].split()[1].startswith("a-rather")
    assert table[2].endswith("run, 2 min 10 s")


def test_a_row() -> None:
    here = cell(starts_server=True, file="a", download_bytes=0, memory=memory(3_000_000_000))
    far = cell(file="b", download_bytes=2_000_000_000, source="far", memory=memory(5_000_000_000, method="file_size"))
    bounds = memory(1_000_000_000, predicted_high_bytes=9_000_000_000)
    unknown = cell(file="c", source="far", memory=bounds)
    on_gpu = cell(file="d", download_bytes=0, memory=memory(1_000_000_000, device_bytes=7_000_000_000))
    nothing = cell(file="e", source="far")
    rows = [line.split(maxsplit=2)[2] for line in lines(here, far, unknown, on_gpu, nothing, cell(), width=100)[2:8]]
    assert [" ".join(row.split()) for row in rows] == [
        "embedded 3.0 GB present run, ?",
        "same ~5.0 GB 2.0 GB run, ?",
        "same ≥1.0 GB ? run, ?",
        "same 1.0 GB + GPU 7.0 GB present run, ?",
        "same ? ? run, ?",
        "same – – run, ?",
    ]
    text = "\n".join(lines(here, far, unknown, on_gpu, nothing, cell()))
    assert "~ from the file's size × 1.2" in text
    assert "≥ at least" in text
    assert "2–3, 5 to be downloaded from far" in text
    assert "download: 2.0 GB and 2 models of unknown size" in text


def test_cells_with_one_reason_share_a_line() -> None:
    shown = lines(refused("big"), cell(), refused("big"), refused("big"), refused("gone", "error"))
    assert "1, 3–4 would be skipped (does_not_fit): big" in shown
    assert "5 would be an error (does_not_fit): gone" in shown
    assert "5 cells: 1 to run, 3 to skip, 1 in error" in shown


def test_several_tests_are_told_apart() -> None:
    other = cell(nodeid="suites/test_b.py::test_b[tiny-Q8_0]")
    assert "test_a[" not in "\n".join(lines(cell()))
    assert {"test_a[tiny-Q8_0]", "test_b[tiny-Q8_0]"} <= set("\n".join(lines(cell(), other)).split())


def test_more_cells_than_anybody_reads() -> None:
    shown = lines(*[refused(str(number)) for number in range(MAX_ROWS + 5)])
    assert "… and 5 more cells; llmbench plan --json lists them all" in shown
    assert sum("would be skipped" in line for line in shown) == MAX_ROWS
    assert f"{MAX_ROWS + 5} cells: 0 to run, {MAX_ROWS + 5} to skip" in shown


def test_no_cell() -> None:
    assert lines()[0] == "0 cells: 0 to run"


def test_a_full_disk() -> None:
    room = Room(available_bytes=1, bound_by="cgroup", model_dir="m", free_bytes=1, disk_warning="no space")
    assert "warning: the downloads do not fit: no space" in lines(cell(), room=room)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_stays_text(text: str) -> None:
    reason = Reason(code="does_not_fit", message=text)
    one = cell(nodeid=f"a.py::t{text}[{text}]", expected="skip", reason=reason)
    far = cell(nodeid=f"a.py::u[{text}]", file="f", source=text, backend=text, starts_server=True)
    room = Room(available_bytes=1, bound_by="machine", model_dir=text, free_bytes=1, disk_warning=text)
    shown = lines(one, far, room=room)
    assert all(line.isprintable() for line in shown)
    assert "\n".join(shown).encode()


def test_colour() -> None:
    shown = "\n".join(render(Plan((cell(),), ROOM), width=80, colour=True))
    assert "\x1b[32mrun, ?" in shown
