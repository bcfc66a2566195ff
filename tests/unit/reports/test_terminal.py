"""The table at the end of a run, at every width, and without a byte a terminal would obey but ours."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from pytest_llmbench.core.records import CellRecord, Reason
from pytest_llmbench.reports.terminal import MAX_ROWS, render
from tests.unit.factories import broken_record, cell_record
from tests.unit.reports.hostile import HOSTILE

WIDTHS = pytest.mark.parametrize("width", [40, 80, 200])
COLOURS = pytest.mark.parametrize("colour", [False, True], ids=["plain", "colour"])
STYLE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def _a_terminal_with_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


def table_of(lines: list[str]) -> list[str]:
    """The first table, with its title where there are several."""
    return lines[: lines.index("")] if "" in lines else lines


def test_one_profile_needs_no_title() -> None:
    assert render([cell_record()], width=80, colour=False)[0].split()[0] == "model"


def test_a_profile_of_the_users_shows_what_it_measured() -> None:
    header = render([cell_record(profile="shout")], width=120, colour=False)[0]
    assert header.split() == ["model", "quant", "ttft_seconds", "decode_tokens_per_second", "rating", "status"]


RECORDS = [
    cell_record(),
    cell_record(model="a-model-with-a-rather-long-name-13B-Instruct", quantization="Q4_K_M", variant="t1"),
    broken_record("it did not start\nand this is why", profile="long_context"),
    cell_record(status="invalid", flags=["prompt_cache_hit"], rating=None),
]


@WIDTHS
@COLOURS
def test_the_table_fits(width: int, colour: bool) -> None:
    lines = [STYLE.sub("", line) for line in render(RECORDS, width=width, colour=colour)]
    table = table_of(lines)
    assert len(table) >= len(RECORDS)  # those of the first profile, a title and a header
    assert max(map(cell_len, table)) <= width


@WIDTHS
def test_without_colour_there_is_no_escape(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in "\n".join(render(RECORDS, width=width, colour=False))


def test_colour_changes_nothing_but_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = render(RECORDS, width=120, colour=False)
    coloured = render(RECORDS, width=120, colour=True)
    assert coloured != plain
    assert [STYLE.sub("", line) for line in coloured] == plain


def test_what_is_shown() -> None:
    lines = render(RECORDS, width=160, colour=False)
    title, header, first, second, third = table_of(lines)
    assert (title, header.split()[:3]) == ("interactive", ["model", "quant", "tokens/s"])
    assert first.split() == ["tiny", "Q4_1", "71.2", "0.125", "–", "excellent", "passed"]
    assert second.startswith("a-model-with-a-rather-long-name-13B-Instruct · t1 ")
    assert third.split()[-1] == "invalid"
    title, header, row = lines[6:9]
    assert (title, header.split()[:3]) == ("long_context", ["model", "quant", "usable"])
    assert row.split() == ["tiny", "Q4_1", "–", "–", "–", "–", "–", "–", "error"]
    text = "\n".join(lines)
    assert "✓ min_tokens_per_sec: at least 2.0 tokens/s, observed 71.2 tokens/s" in text
    assert "error (server_start_failed): it did not start" in text
    assert "doubt: the server answered part of a prompt from its cache" in text


def test_many_cells_are_counted() -> None:
    lines = render([cell_record()] * (MAX_ROWS + 7), width=100, colour=False)
    assert "… and 7 more cells in the results" in lines
    assert sum(line.endswith("passed") for line in lines) == MAX_ROWS


def test_no_cells() -> None:
    assert len(render([], width=80, colour=False)) == 1


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
    lines = render(hostile(text), width=width, colour=colour)
    plain = [STYLE.sub("", line) for line in lines] if colour else lines
    assert not [char for line in plain for char in line if not char.isprintable()]
    assert max(map(cell_len, table_of(plain))) <= width


def test_a_colour_from_outside_is_not_taken_for_ours() -> None:
    for line in render(hostile("\x1b[31mred"), width=200, colour=True):
        assert "\x1b[31mred" not in line
        if "red" in STYLE.sub("", line):
            assert "\\x1b[31mred" in line
