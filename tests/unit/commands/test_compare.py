"""``llmbench compare`` and ``llmbench baseline``: what is said, in which form, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.cli import main
from pytest_llmbench.core.records import FLAGS, CellRecord
from pytest_llmbench.core.run_comparison import compare
from pytest_llmbench.reports.comparison import MAX_ROWS, markdown, render
from tests.unit.core.baselines import loads, measured, run
from tests.unit.factories import broken_record
from tests.unit.reports.hostile import HOSTILE
from tests.unit.runtime.test_baselines import stored


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder with three runs: as it was, unchanged, and with one cell slower."""
    monkeypatch.chdir(tmp_path)
    names = ("Q2_K", "Q8_0")
    for number, (run_id, rate) in enumerate((("first", 70), ("same", 70), ("slower", 56))):
        records = [
            measured(name, rate=rate if name == "Q8_0" else 70, seed=10 * number + index, run_id=run_id)
            for index, name in enumerate(names)
        ]
        stored(tmp_path / "results", run_id, *records)
    return tmp_path / "results"


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def test_says_what_became_worse_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = _said(capsys, "compare", "first", "slower")
    assert (status, err) == (1, "")
    lines = out.splitlines()
    verdict = next(number for number, line in enumerate(lines) if line.startswith("1 of 2 cells became worse by"))
    assert "no difference is known" in "".join(lines[:verdict])  # the environment comes before
    assert "Q8_0 interactive (decode_tokens_per_second, ttft_seconds)" in lines[verdict]
    row = next(line for line in lines[verdict + 1 :] if "decode_tokens_per_second" in line)
    assert row.startswith("Q8_0 interactive")
    assert row.endswith("regressed")
    assert row.count(" tokens/s ") == 2


def test_without_a_change_it_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _said(capsys, "compare", "first", "same", "--max-regression", "20")
    assert status == 0
    assert "None of 2 cells became worse by more than 20 %." in out
    assert "\x1b" not in out


def test_json_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _said(capsys, "compare", "first", "slower", "--json")
    found = json.loads(out)
    assert (found["exit_status"], found["old"], found["new"], found["limit_percent"]) == (status, "first", "slower", 5)
    assert [cell["quantization"] for cell in found["cells"]] == ["Q2_K", "Q8_0"]
    by_metric = {one["metric"]: one for one in found["cells"][1]["metrics"]}
    rate = by_metric["decode_tokens_per_second"]
    assert rate["verdict"] == "regressed"
    assert rate["ci_low"] < 0.8 < rate["ci_high"]


def test_a_saved_baseline_gives_the_answer_of_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _said(capsys, "baseline", "save", "first", "baseline.json")
    assert status == 0
    assert out.startswith("wrote baseline.json: 2 cells of run first, ")
    assert len(out.splitlines()) == 1  # three loads of ten samples are enough
    _, of_file, _ = _said(capsys, "compare", "baseline.json", "slower", "--json")
    _, of_run, _ = _said(capsys, "compare", "first", "slower", "--json")
    verdicts = [
        [(one["metric"], one["verdict"]) for cell in json.loads(text)["cells"] for one in cell["metrics"]]
        for text in (of_file, of_run)
    ]
    assert verdicts[0] == verdicts[1]


def test_a_run_too_small_to_be_a_baseline_says_so(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    samples = {"decode_tokens_per_second": loads(70, count=1, samples=12)}
    stored(results, "small", measured(samples=samples, flags=["swapped"]), broken_record("died", nodeid="t.py::t"))
    status, out, _ = _said(capsys, "baseline", "save", "small", "baseline.json")
    _, *warnings = out.splitlines()
    assert status == 0
    assert "1 load of 12 samples" in warnings[0]
    assert "min_samples: 10, loads: 3" in warnings[0]
    assert warnings[1].startswith("1 cell measured nothing")
    assert "swapped" in warnings[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compare", "first", "nothing"), "neither a baseline's file nor a run"),
        (("compare", "other.json", "first"), "no baseline"),
        (("compare", "first", "same", "--json", "--markdown"), "exclude each other"),
        (("baseline", "save", "nothing", "baseline.json"), "is no run"),
    ],
)
def test_bad_usage_is_no_answer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "other.json").write_text("{}")
    status, out, err = _said(capsys, *arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_a_baseline_of_nothing_and_one_in_place_of_another_file_are_not_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, results: Path
) -> None:
    stored(results, "broken", broken_record("died"))
    assert _said(capsys, "baseline", "save", "broken", "baseline.json")[0] == 1
    assert not (tmp_path / "baseline.json").exists()
    (tmp_path / "mine.json").write_text("{}")
    assert _said(capsys, "baseline", "save", "first", "mine.json")[0] == 1
    assert (tmp_path / "mine.json").read_text() == "{}"


def test_names_and_reasons_that_are_more_than_text_stay_text() -> None:
    def cells(rate: float, seed: int, **changes: Any) -> list[CellRecord]:
        return [
            measured(
                text, model=text, rate=rate, seed=seed + number, nodeid=f"s/t.py::t[{number}]", variant=text, **changes
            )
            for number, text in enumerate(HOSTILE)
        ]

    died = [broken_record(text, model=text, nodeid=f"s/t.py::u[{number}]") for number, text in enumerate(HOSTILE)]
    alive = [measured(model=text, nodeid=f"s/t.py::u[{number}]") for number, text in enumerate(HOSTILE)]
    old = run("old\x1b[31m", *cells(70, 0), *alive, git_commit="<script>alert(1)</script>")
    found = compare(old, run("new|<b>", *cells(50, 100), *died, mode="`a`"), 5)
    assert found.exit_status == 1
    for width in (1, 80):
        assert all(line.isprintable() for line in render(found, width=width, colour=False))
    text = markdown(found)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "<" not in text.replace("\\<", "")
    table = [line for line in text.split("\n") if line.startswith("| ")]
    assert len(table) > len(HOSTILE)
    assert {line.replace("\\\\", "").replace("\\|", "").count("|") for line in table} == {8}


def test_what_became_worse_is_shown_however_much_there_is_and_equal_sentences_once() -> None:
    count = MAX_ROWS
    few = {"decode_tokens_per_second": loads(70, count=1), "ttft_seconds": loads(0.1, count=1)}

    def cells(worse: int, seed: int, **changes: Any) -> list[CellRecord]:
        return [
            measured(f"Q{number:03}", rate=20 if number < worse else 70, seed=seed + number, **changes)
            for number in range(count)
        ]

    slower = compare(run("old", *cells(0, 0)), run("new", *cells(count, 1000)), 5)
    rows = [line for line in render(slower, width=120, colour=False) if line.endswith("regressed")]
    assert len(rows) == 2 * count
    assert f"{count} of {count} cells became worse" in slower.sentence
    assert "and 55 more" in slower.sentence
    unknown = markdown(compare(run("old", *cells(0, 0, samples=few)), run("new", *cells(0, 0, samples=few)), 5))
    needed = unknown[unknown.index("What would be needed") :].splitlines()
    assert needed[2].endswith("and 54 more\\]")
    assert len([line for line in needed if line.startswith("- ")]) < 4
    assert f"… and {3 * count - MAX_ROWS} more rows" in unknown


def test_colour_is_used_only_where_it_is_welcome() -> None:
    new = measured(rate=40, flags=["throttled"])
    found = compare(run("old", measured()), run("new", new), 5)
    assert "\x1b[31m" in "".join(render(found, width=100, colour=True))
    plain = "\n".join(render(found, width=100, colour=False))
    assert "\x1b" not in plain
    assert FLAGS["throttled"] in plain


def test_two_tests_of_one_model_are_told_apart() -> None:
    records = [measured(nodeid=f"t.py::test_{name}[tiny-Q4_1]") for name in ("story", "chat")]
    lines = render(compare(run("old", *records), run("new", *records), 5), width=160, colour=False)
    assert [sum(f"(test_{name}[tiny-Q4_1])" in line for line in lines) for name in ("story", "chat")] == [1, 1]
