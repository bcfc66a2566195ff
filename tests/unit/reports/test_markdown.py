"""``summary.md``, read back with a Markdown parser: what came from elsewhere is text and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pytest_llmbench.core.records import CellRecord, MemoryRecord, ModelFile, Reason
from pytest_llmbench.reports.markdown import render, write_markdown
from tests.unit.factories import broken_record, cell_record
from tests.unit.reports.hostile import HOSTILE
from tests.unit.reports.runs import run_of

# What a summary is made of. No link, image, code, HTML or emphasis can come in from outside.
OURS = {"heading", "paragraph", "table", "thead", "tbody", "tr", "th", "td", "bullet_list", "list_item", "strong"}


def written(folder: Path, *records: CellRecord) -> str:
    path = write_markdown(run_of(folder, records))
    assert path == folder / "summary.md"
    return path.read_text(encoding="utf-8")


def tokens(markdown: str) -> list[Token]:
    parsed = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    return [inner for token in parsed for inner in [token, *(token.children or ())]]


def kinds(markdown: str) -> set[str]:
    return {token.type.removesuffix("_open").removesuffix("_close") for token in tokens(markdown)} - {"inline", "text"}


def cells(markdown: str) -> list[list[str]]:
    """The table's rows as a reader shows them."""
    rows: list[list[str]] = []
    parsed = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    for number, token in enumerate(parsed):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in {"th_open", "td_open"}:
            rows[-1].append("".join(child.content for child in parsed[number + 1].children or ()))
    return rows


def unescaped_pipes(line: str) -> int:
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))


def shown(text: str) -> str:
    """On one line; what can not be printed is escaped."""
    text = " ".join(text.split())
    for char in "\ud800\x1b\x07\x9b\x08\x7f\u202e":
        text = text.replace(char, repr(char)[1:-1])
    return text


def test_a_summary(tmp_path: Path) -> None:
    markdown = written(tmp_path, cell_record(), broken_record("it did not start", model="other", variant="t1"))
    header, measured, broken = cells(markdown)
    assert header == [
        "model",
        "quant",
        "ttft_seconds (s)",
        "decode_tokens_per_second (tokens/s)",
        "rating",
        "status",
    ]
    assert measured == [
        "tiny",
        "Q4_1",
        "0.125 s",
        "71.2 tokens/s (70.5–72.0)",
        "excellent",
        "passed",
    ]
    assert broken == ["other · t1", "Q4_1", "–", "–", "–", "error"]
    assert kinds(markdown) <= OURS
    text = "".join(token.content for token in tokens(markdown) if token.type == "text")
    assert f"Benchmark run {tmp_path.name}" in text
    assert "Cells: 1 passed, 1 error." in text
    assert "min_tokens_per_sec: at least 2.0 tokens/s, observed 71.2 tokens/s" in text
    assert "(server_start_failed): it did not start" in text


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, None),
        ({"predicted_bytes": 2 * 10**9}, None),
        ({"observed_peak_bytes": 10**9}, "- memory: at most 1.0 GB observed"),
        (
            {"observed_peak_bytes": 10**9, "predicted_bytes": 2 * 10**9, "correction_factor": 0.97},
            "- memory: at most 1.0 GB observed, 2.0 GB predicted (by earlier runs × 0.97)",
        ),
    ],
)
def test_observed_memory_beside_the_prediction(fields: dict[str, Any], line: str | None) -> None:
    lines = [
        text for text in render([cell_record(memory=MemoryRecord(**fields))], "r").splitlines() if "memory" in text
    ]
    assert lines == ([line] if line else [])


def test_no_cells(tmp_path: Path) -> None:
    assert cells(written(tmp_path)) == []


def test_profiles_have_tables_of_their_own(tmp_path: Path) -> None:
    rows = cells(written(tmp_path, cell_record(), cell_record(profile="batch", metrics={})))
    assert [row[:3] for row in rows] == [
        ["model", "quant", "ttft_seconds (s)"],
        ["tiny", "Q4_1", "0.125 s"],
        ["model", "quant", "rating"],
        ["tiny", "Q4_1", "excellent"],
    ]


def test_short_tables_of_details_are_shown_and_long_ones_counted(tmp_path: Path) -> None:
    sizes = [{"context_tokens": 4096, "load_seconds": 1.23456, "reason": "a|b", "warm": None}]
    record = cell_record(details={"sizes": sizes, "documents": [{"id": str(number)} for number in range(30)]})
    markdown = written(tmp_path, record)
    assert cells(markdown)[2:] == [
        ["context_tokens", "load_seconds", "reason", "warm"],
        ["4096", "1.235", "a|b", "–"],
    ]
    assert "documents: 30 rows in cells.jsonl" in markdown


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    everywhere = {
        "run_id": text,
        "nodeid": text,
        "model": text,
        "quantization": text,
        "profile": text,
        "variant": text,
        "flags": [text],
        "notes": [text],
        "model_file": ModelFile(path=text, size_bytes=1, sha256=None),
    }
    threshold = cell_record().thresholds[0].model_copy(update={"key": text})
    markdown = written(
        tmp_path,
        cell_record(**everywhere, thresholds=[threshold], interpretation=text),
        cell_record(**everywhere, status="error", reason=Reason(code=text, message=text)),
    )
    assert kinds(markdown) <= OURS
    assert not [char for char in markdown if not char.isprintable() and char != "\n"]
    rows = cells(markdown)
    assert len(rows) == 3
    assert rows[1][:2] == [f"{shown(text)} · {shown(text)}".strip(), shown(text)]
    assert len({unescaped_pipes(line) for line in markdown.splitlines() if line.startswith("|")}) == 1
    assert sum(token.type == "heading_open" for token in tokens(markdown)) == 4
