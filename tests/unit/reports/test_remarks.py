"""What the summary says of a run as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.reports.markdown import write_markdown
from pytest_llmbench.reports.remarks import remarks
from tests.unit.factories import cell_record
from tests.unit.reports.runs import run_of


def describe(folder: Path, **run: Any) -> Path:
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_missing_cells_are_counted_and_how_to_finish_them_told(tmp_path: Path) -> None:
    describe(tmp_path, selected_cells=3)
    (line,) = remarks(run_of(tmp_path, [cell_record()]))
    assert line == (
        f"the run was cut short: 2 of 3 cells have no record; --llmbench-resume {tmp_path.name} finishes them"
    )
    assert (
        "**the run was cut short: 2 of 3 cells have no record"
        in write_markdown(run_of(tmp_path, [cell_record()])).read_text()
    )


def test_a_whole_run_needs_no_remark(tmp_path: Path) -> None:
    assert remarks(run_of(describe(tmp_path, selected_cells=1), [cell_record()])) == []
    assert remarks(run_of(describe(tmp_path))) == []


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", '{"selected_cells": "many", "resumed": null}'),
        *('{"resumed": 5}', '{"resumed": [5, {"differences": 5}]}'),
    ],
)
def test_a_description_that_tells_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert remarks(run_of(tmp_path)) == []
    assert remarks(run_of(tmp_path / "nowhere")) == []


def test_a_change_of_configuration_in_between_is_told(tmp_path: Path) -> None:
    resumed = [{"at": "noon", "differences": ["a: 1 → 2", "b: 3 → 4"]}, {"at": "later", "differences": []}]
    (line,) = remarks(run_of(describe(tmp_path, resumed=resumed)))
    assert line == "resumed at noon with another configuration, so cells differ in: a: 1 → 2; b: 3 → 4"
