"""``summary.md``, read back with a Markdown parser: what came from elsewhere is text and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pytest_llmbench.core.records import CellRecord, MemoryRecord, ModelFile, Reason
from pytest_llmbench.reports.markdown import write_markdown
from tests.unit.factories import broken_record, cell_record, metric_comparison
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
    assert header == ["model", "quant", "tokens/s", "TTFT s", "variance %", "rating", "status"]
    assert measured == ["tiny", "Q4_1", "71.2 (70.5–72.0)", "0.125", "–", "excellent", "passed"]
    assert broken == ["other · t1", "Q4_1", "–", "–", "–", "–", "error"]
    assert kinds(markdown) <= OURS
    text = "".join(token.content for token in tokens(markdown) if token.type == "text")
    assert f"Benchmark run {tmp_path.name}" in text
    assert "Cells: 1 passed, 1 error." in text
    assert "tokens/s (decode_tokens_per_second): How fast text streams" in text
    assert "(server_start_failed): it did not start" in text


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, None),
        ({"predicted_bytes": 2 * 10**9}, None),
        ({"observed_peak_bytes": 10**9}, "  - memory: at most 1.0 GB observed"),
        (
            {"observed_peak_bytes": 10**9, "predicted_bytes": 2 * 10**9, "correction_factor": 0.97},
            "  - memory: at most 1.0 GB observed, 2.0 GB predicted (by earlier runs × 0.97)",
        ),
    ],
)
def test_observed_memory_beside_the_prediction_where_something_is_wrong(
    tmp_path: Path, fields: dict[str, Any], line: str | None
) -> None:
    memory = MemoryRecord(**fields)
    for record, expected in (
        (broken_record("why", memory=memory), [line] if line else []),
        (cell_record(memory=memory), []),
    ):
        assert [text for text in written(tmp_path, record).splitlines() if "- memory:" in text] == expected


def test_no_cells(tmp_path: Path) -> None:
    assert cells(written(tmp_path)) == []


def test_profiles_have_tables_of_their_own(tmp_path: Path) -> None:
    rows = cells(written(tmp_path, cell_record(), cell_record(profile="batch", metrics={})))
    assert [row[:3] for row in rows] == [
        ["model", "quant", "tokens/s"],
        ["tiny", "Q4_1", "71.2 (70.5–72.0)"],
        ["model", "quant", "s/doc"],
        ["tiny", "Q4_1", "–"],
    ]


def test_what_is_so_of_several_cells_is_said_once(tmp_path: Path) -> None:
    skipped = Reason(code="does_not_fit", message="needs 8 GB")
    many = [cell_record(nodeid=f"a.py::test[{n}]", status="skipped", reason=skipped, metrics={}) for n in range(6)]
    markdown = written(tmp_path, *many, cell_record(flags=["drift"]), cell_record(nodeid="b", flags=["drift"]))
    (reason,) = (line for line in markdown.splitlines() if "does\\_not\\_fit" in line)
    assert reason.endswith("– test\\[0\\], test\\[1\\], test\\[2\\], test\\[3\\] and 2 more")
    (doubt,) = (line for line in markdown.splitlines() if "doubt: drift" in line)
    assert doubt.endswith("tiny-Q4\\_1\\], b")


def test_a_large_run_still_fits_a_comment_and_shows_trouble_first(tmp_path: Path) -> None:
    records = [cell_record(nodeid=f"a.py::test[m{n}]", model=f"m{n}") for n in range(3000)]
    records += [broken_record("x" * 10**4, nodeid=f"a.py::test[b{n}]", model=f"b{n}") for n in range(300)]
    markdown = written(tmp_path, *records)
    assert len(markdown) < 65_536
    assert cells(markdown)[1][0] == "b0"
    assert "… and 3260 more cells" in markdown
    assert markdown.rstrip().endswith("the rest is in report.html and cells.jsonl")


def test_what_became_worse_stands_before_all_else_that_was_compared(tmp_path: Path) -> None:
    one = metric_comparison(verdict="unchanged", message="as before")
    worse = one.model_copy(update={"verdict": "regressed", "message": "50 % slower"})
    markdown = written(tmp_path, cell_record(comparisons=[one]), cell_record(comparisons=[worse]))
    assert "1 regressed, 1 unchanged." in markdown
    assert "50 % slower" in markdown
    assert "as before" not in markdown


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
    assert len(rows) == 3  # the table's
    assert rows[1][:2] == [f"{shown(text)} · {shown(text)}".strip(), shown(text)]
    assert len({unescaped_pipes(line) for line in markdown.splitlines() if line.startswith("|")}) == 1
    assert [token.tag for token in tokens(markdown) if token.type == "heading_open"][:2] == ["h1", "h2"]
