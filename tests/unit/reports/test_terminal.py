"""The summary at the end of a run, at every width, and without a byte a terminal would obey but ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.cells import cell_len

from pytest_llmbench.core.recommendations import Advice, Candidate, Figure, Recommendations
from pytest_llmbench.core.records import CellRecord, Change, MetricComparison, Reason
from pytest_llmbench.reports.run_data import RunData
from pytest_llmbench.reports.terminal import MAX_DETAILS, MAX_ROWS, render
from tests.unit.factories import broken_record, cell_record
from tests.unit.reports.hostile import HOSTILE

WIDTHS = pytest.mark.parametrize("width", [40, 80, 200])
COLOURS = pytest.mark.parametrize("colour", [False, True], ids=["plain", "colour"])
STYLE = re.compile(r"\x1b\[[0-9;]*m")
NO_ANSWER = Recommendations("", (), (), ())


@pytest.fixture(autouse=True)
def _a_terminal_with_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


def a_run(records: Sequence[CellRecord], answer: Recommendations = NO_ANSWER) -> RunData:
    """A run that recommends what the test says."""
    run = RunData(Path("nowhere"), {}, tuple(records))
    run.__dict__["recommendations"] = answer
    return run


def shown(records: Sequence[CellRecord], width: int = 80, colour: bool = False, verbosity: int = 0) -> list[str]:
    return render(a_run(records), width=width, colour=colour, verbosity=verbosity)


def table_of(lines: list[str]) -> list[str]:
    """The first table, with its title where there are several."""
    return lines[: lines.index("")] if "" in lines else lines


def test_one_profile_needs_no_title() -> None:
    assert shown([cell_record()])[0].split()[0] == "model"


def test_a_profile_of_the_users_shows_what_it_measured() -> None:
    header = shown([cell_record(profile="shout")], width=120)[0]
    assert header.split() == ["model", "quant", "ttft_seconds", "decode_tokens_per_second", "rating", "status"]


RECORDS = [
    cell_record(),
    cell_record(model="a-model-with-a-rather-long-name-13B-Instruct", quantization="Q4_K_M", variant="t1"),
    broken_record("it did not start\nand this is why", profile="long_context"),
    cell_record(status="invalid", flags=["prompt_cache_hit"], rating=None),
]


@WIDTHS
@COLOURS
def test_no_line_is_wider_than_the_terminal(width: int, colour: bool) -> None:
    lines = [STYLE.sub("", line) for line in shown(RECORDS, width, colour, verbosity=1)]
    assert len(table_of(lines)) >= len(RECORDS)  # those of the first profile, a title and a header
    assert max(map(cell_len, lines)) <= width


@WIDTHS
def test_without_colour_there_is_no_escape(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in "\n".join(shown(RECORDS, width))


def test_colour_changes_nothing_but_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shown(RECORDS, 120)
    coloured = shown(RECORDS, 120, colour=True)
    assert coloured != plain
    assert [STYLE.sub("", line) for line in coloured] == plain


def test_a_narrow_terminal_still_tells_which_model() -> None:
    lines = shown([cell_record(model="tiny"), cell_record(model="Qwen2.5-7B-Instruct")], width=40, verbosity=-1)
    together = "".join(line.split("  ")[0] for line in table_of(lines))
    assert "tiny" in together
    assert "Qwen2.5-7B-Instruct" in together


def test_what_is_shown() -> None:
    lines = shown(RECORDS, 160)
    title, header, first, second, third = table_of(lines)
    assert (title, header.split()[:3]) == ("interactive", ["model", "quant", "tokens/s"])
    assert first.split() == ["tiny", "Q4_1", "71.2", "0.125", "–", "excellent", "passed"]
    assert second.startswith("a-model-with-a-rather-long-name-13B-Instruct · t1 ")
    assert third.split()[-1] == "invalid"
    title, header, row = lines[6:9]
    assert (title, header.split()[:3]) == ("long_context", ["model", "quant", "usable"])
    assert row.split() == ["tiny", "Q4_1", "–", "–", "–", "–", "–", "error"]  # no rating where there is none
    text = " ".join(" ".join(lines).split())
    assert "✓ min_tokens_per_sec: at least 2.0 tokens/s, observed 71.2 tokens/s" in text
    assert "error (server_start_failed): it did not start" in text
    assert "doubt: the server answered part of a prompt from its cache" in text


def test_of_many_cells_those_to_be_looked_at_are_shown() -> None:
    failing = cell_record(status="failed", model="bad")
    lines = shown([*[cell_record()] * (MAX_ROWS + 6), failing])
    assert lines[1].split()[0] == "bad"
    assert "… and 7 more cells; -v shows them, results.csv has them" in lines
    assert sum(line.endswith("passed") for line in lines) == MAX_ROWS - 1
    everything = shown([*[cell_record()] * (MAX_ROWS + 6), failing], verbosity=1)
    assert sum(line.endswith("passed") for line in everything) == MAX_ROWS + 6


def test_cells_that_met_every_threshold_are_only_counted_where_there_are_many() -> None:
    doubtful = cell_record(nodeid="t.py::test[d]", flags=["imprecise"])
    text = " ".join(" ".join(shown([*[cell_record()] * 6, doubtful])).split())
    assert "✓" not in text
    assert "7 cells met every threshold" in text
    assert "doubt about test[d]: the interval stayed wider" in text


def test_cells_not_measured_for_one_reason_are_told_of_together() -> None:
    broken = [broken_record("it did not start", nodeid=f"t.py::test[{number}]") for number in range(9)]
    lines = shown(broken)
    assert "  error (server_start_failed): it did not start" in lines
    assert "  likewise: test[1], test[2], test[3], test[4], test[5], test[6] and 2 more" in lines
    assert sum("it did not start" in line for line in lines) == 1
    assert sum("it did not start" in line for line in shown(broken, verbosity=1)) == 9


def test_details_of_very_many_failures_are_cut() -> None:
    missed = cell_record().thresholds[0].model_copy(update={"verdict": "fail"})
    failing = [
        cell_record(status="failed", nodeid=f"t.py::test[{number}]", thresholds=[missed])
        for number in range(MAX_DETAILS + 3)
    ]
    lines = shown(failing, width=200)
    assert sum("✗ min_tokens_per_sec" in line for line in lines) == MAX_DETAILS
    assert "… and 3 more cells; -v tells of them, summary.md has them" in lines


def test_quiet_is_the_answer_and_the_tables() -> None:
    answer = Recommendations("Run tiny Q4_1.", (), (), ("measure quality",))
    lines = render(a_run(RECORDS, answer), width=100, colour=False, verbosity=-1)
    assert lines[0] == "Run tiny Q4_1."
    assert "measure quality" not in "\n".join(lines)
    assert lines[-1].split()[-1] == "error"


def test_very_quiet_is_problems_alone() -> None:
    assert shown([cell_record()], verbosity=-2) == []
    assert shown(RECORDS, width=200, verbosity=-2) == [
        "test_interactive[tiny-Q4_1]: error (server_start_failed): it did not start",
        "test_interactive[tiny-Q4_1]: invalid",
    ]


def candidate(name: str, **changes: object) -> Candidate:
    figure = Figure("decode_tokens_per_second", 71.25, 70.5, 72.0, "71.2 tokens/s")
    fields: dict[str, object] = {
        "configuration": name,
        "model": name,
        "quantization": "Q4_1",
        "variant": None,
        "mark": "✓",
        "usability": "good",
        "score": 0.9,
        "figures": (figure,),
        "reasons": (f"reason of {name}",),
        "tied": True,
        "nodeids": (),
    }
    return Candidate(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_answer_comes_first() -> None:
    ranked = (candidate("tiny Q4_1"), candidate("small Q4_1"), candidate("bad Q2_K", mark="✗"))
    fit = Advice("interactive", "interactive storytelling", "Run tiny Q4_1.", ranked, ("nothing else",), ("a remark",))
    unfit = Advice("batch", "document processing", "Nothing is fit.", ranked[2:], (), ())
    unknown = Advice("accuracy", "accuracy-critical work", "Nothing was measured.", (), (), ())
    overall = Advice("overall", "overall", "As the headline says.", ranked, (), ())
    answer = Recommendations(
        "Run tiny Q4_1.", (fit, unfit, unknown, overall), (), ("measure quality", "measure stress")
    )
    assert render(a_run([cell_record()], answer), width=120, colour=False)[:6] == [
        "Run tiny Q4_1.",
        "  ✓ interactive storytelling: tiny Q4_1, good (71.2 tokens/s); 1 more within noise of it",
        "  ✗ document processing: Nothing is fit.",
        "  – accuracy-critical work: Nothing was measured.",
        "next: measure quality",
        "",
    ]
    everything = "\n".join(render(a_run([cell_record()], answer), width=120, colour=False, verbosity=1))
    for sentence in (
        "small Q4_1: reason of small Q4_1",
        "a remark",
        "nothing else",
        "next: measure stress",
        "✓ overall: tiny",
    ):
        assert sentence in everything


def comparison(verdict: Change, metric: str = "decode_tokens_per_second") -> MetricComparison:
    return MetricComparison(
        metric=metric,
        old=80.0,
        new=71.25,
        ratio=0.890625,
        ci_low=0.875,
        ci_high=0.9,
        p_value=0.001,
        limit_percent=3.0,
        verdict=verdict,
        message="two more loads would tell",
    )


def test_what_became_worse_is_told_with_its_ratio() -> None:
    records = [cell_record(comparisons=[comparison("regressed"), comparison("inconclusive", "ttft_seconds")])]
    line = (
        "✗ test_interactive[tiny-Q4_1]: decode_tokens_per_second 80.0 tokens/s → 71.2 tokens/s, × 0.891 "
        "(95 % interval 0.875 to 0.900); worse than the limit of 3 %"
    )
    lines = shown(records, width=200)
    assert lines[:2] == ["compared with the baseline: 1 regressed, 1 inconclusive", f"  {line}"]
    assert "two more loads would tell" not in "\n".join(lines)
    assert "two more loads would tell" in "\n".join(shown(records, 200, verbosity=1))
    assert shown(records, width=200, verbosity=-2) == [line]


def test_of_a_message_without_end_the_beginning_is_shown() -> None:
    lines = shown([broken_record("no " * 10_000)], width=200, verbosity=-2)
    assert sum(map(len, lines)) < 2200
    assert lines[-1].endswith("more characters, in cells.jsonl")


def test_a_log_has_whole_sentences() -> None:
    lines = render(a_run(RECORDS), width=40, colour=False, wrapped=False)
    assert "  doubt: the server answered part of a prompt from its cache; those requests are not samples" in lines


def test_no_cells() -> None:
    assert shown([]) == []


def hostile(text: str) -> list[CellRecord]:
    threshold = cell_record().thresholds[0].model_copy(update={"key": text})
    names = {"model": text, "quantization": text, "profile": text, "variant": text, "flags": [text], "notes": [text]}
    return [
        cell_record(**names, thresholds=[threshold], interpretation=text),
        cell_record(**names, status="error", reason=Reason(code=text, message=text)),
    ]


@WIDTHS
@COLOURS
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_stays_text(text: str, width: int, colour: bool) -> None:
    lines = shown(hostile(text), width, colour)
    plain = [STYLE.sub("", line) for line in lines] if colour else lines
    assert not [char for line in plain for char in line if not char.isprintable()]
    assert max(map(cell_len, table_of(plain))) <= width


def test_a_colour_from_outside_is_not_taken_for_ours() -> None:
    for line in shown(hostile("\x1b[31mred"), 200, colour=True):
        assert "\x1b[31mred" not in line
        if "red" in STYLE.sub("", line):
            assert "\\x1b[31mred" in line
