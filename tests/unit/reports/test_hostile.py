"""Text of models, servers and files in every report: shown as text, obeyed by nobody, and never more than fits.

Each format is tested for what it has in common with the others; what is special to one is tested beside it.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pytest_llmbench.core.records import CellRecord, MetricComparison, ModelFile, Reason, ServerInfo, to_line
from pytest_llmbench.reports import WRITERS, write_reports
from pytest_llmbench.reports.plain import plain
from pytest_llmbench.reports.run_data import RunData
from pytest_llmbench.reports.terminal import render
from tests.unit.factories import cell_record
from tests.unit.reports.hostile import HOSTILE

TEXTS = [
    *HOSTILE,
    "nul \x00 byte",
    "</script></style></title></textarea><img src=x onerror=alert(1)>",
    "'\"><svg onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %} ${7*7} <%= 7 %>",
    "]]> &#x0; \\u0000 %s {0}",
    "\u2066isolated\u2069 \u200f \ufeff \ufffe",
    "a\u0301" * 50,
    "$\\frac{1}{0}$ $",
    '=HYPERLINK("http://x.invalid";"x")',
]
WIDTH = 100
MIB = 1 << 20
LONG = "y<b>\x1b[31m\ud800" * (10 * MIB // 10)


def cell(text: str, **changes: object) -> CellRecord:
    """A cell in which everything that is not ours is a text."""
    (threshold,) = cell_record().thresholds
    comparison = MetricComparison(
        metric=text,
        old=1,
        new=2,
        ratio=2,
        ci_low=None,
        ci_high=None,
        p_value=None,
        limit_percent=5,
        verdict="inconclusive",
        message=text,
    )
    fields = {
        "nodeid": f"suites/test_interactive.py::test_interactive[{text}]",
        "model": text,
        "quantization": text,
        "variant": text,
        "backend": text,
        "settings": {text: text},
        "status": "error",
        "reason": Reason(code=text, message=text, evidence={text: text}),
        "expected_failure": text,
        "thresholds": [threshold.model_copy(update={"key": text})],
        "comparisons": [comparison],
        "interpretation": text,
        "flags": [text],
        "notes": [text],
        "sampling": {text: text},
        "details": {text: [{text: text}], "questions": [{"id": text, "category": text, "answer": text}]},
        "server": ServerInfo(kind=text, version=text, args={text: text}),
        "model_file": ModelFile(path=text, size_bytes=1, sha256=text),
        "host": text,
    }
    return cell_record(**{**fields, **changes})


def folder_of(path: Path, records: list[CellRecord], text: str) -> Path:
    """A run's folder with these cells, in which a text stands wherever one of ours does not."""
    description = {
        "started_at": "2026-01-31T23:59:59.000+00:00",
        "command_line": ["pytest", text],
        "hardware": {"cpu": text, "os": text, "memory_bytes": 1},
        "configuration": {"model_dir": text},
        "git_commit": text,
    }
    path.mkdir()
    (path / "run.json").write_text(json.dumps(description))
    (path / "cells.jsonl").write_text("".join(to_line(record) + "\n" for record in records))
    request = {"cell": records[0].nodeid, "index": 0, "phase": "sample", "ok": True, "output": text}
    (path / "requests.jsonl").write_text(json.dumps(request) + "\n")
    (path / "logs").mkdir()
    (path / "logs" / "tiny_Q4_1_stderr.log").write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """A cell for every text in every profile that has a shape of its own."""
    records = [cell(text, profile=profile) for text in TEXTS for profile in ("interactive", "quality", text)]
    return RunData.read(folder_of(tmp_path_factory.mktemp("hostile") / "run", records, "\n".join(TEXTS)))


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """Ten megabytes wherever a server or a model can put them."""
    details = {"questions": [{"id": "q1", "category": "math", "answer": LONG}]}
    reason = Reason(code="server_died", message=LONG)
    record = cell_record(status="error", reason=reason, notes=[LONG], details=details)
    return RunData.read(folder_of(tmp_path_factory.mktemp("long") / "run", [record], "x"))


def terminal(run: RunData) -> str:
    return "\n".join(render(run, width=WIDTH, colour=False, verbosity=1)) + "\n"


def text_of(run: RunData, name: str) -> str:
    """What a format says of a run."""
    if name == "terminal":
        return terminal(run)
    return WRITERS[name](run).read_bytes().decode("utf-8").replace("\r\n", "\n")  # as RFC 4180 wants CSV's lines to end


EVERY_FORMAT = pytest.mark.parametrize("name", [*WRITERS, "terminal"])


def obeyed(character: str) -> bool:
    """Whether a terminal or an editor does something other than showing it: controls, overrides, half characters."""
    return character not in "\n\t" and unicodedata.category(character) in {"Cc", "Cf", "Cs"}


@EVERY_FORMAT
def test_no_character_is_obeyed(run: RunData, name: str) -> None:
    text = text_of(run, name)
    assert len(text) > 1000
    assert {character for character in set(text) if obeyed(character)} == set()


class Tags(HTMLParser):
    """What a browser would take for elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def no_element(text: str) -> None:
    assert Tags(text.replace("\\<", "&lt;").replace("\\&", "&amp;").replace("\\!", "!")).found == []


def only_harmless_elements(text: str) -> None:
    tags = Tags(text)
    assert tags.handlers == []
    assert not {"img", "iframe", "object", "embed", "base", "form"} & set(tags.found)
    assert "alert(1)</script>" not in text


def strict_json(text: str) -> None:
    text.encode("ascii")
    assert isinstance(json.loads(text, parse_constant=pytest.fail), dict)


def strict_csv(text: str) -> None:
    lines = list(csv.reader(text.splitlines(keepends=True), strict=True))
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines) > 1
    assert not [cell for line in lines for cell in line if cell.lstrip().startswith(("=", "+", "-", "@"))]


CHECKS: dict[str, Callable[[str], None]] = {
    "csv": strict_csv,
    "json": strict_json,
    "markdown": no_element,
    "html": only_harmless_elements,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_reader_of_the_format_takes_it_for_text(run: RunData, name: str) -> None:
    CHECKS[name](text_of(run, name))


@EVERY_FORMAT
def test_ten_megabytes_are_cut(long_run: RunData, name: str) -> None:
    text = text_of(long_run, name)
    assert "tiny" in text
    assert len(text) < MIB


@pytest.mark.parametrize("name", WRITERS)
def test_written_again_it_is_the_same(run: RunData, name: str) -> None:
    path = WRITERS[name](run)
    first = path.read_bytes()
    again = RunData(run.folder, run.description, [CellRecord.model_validate(one.model_dump()) for one in run.records])
    assert WRITERS[name](again).read_bytes() == first
    assert write_reports(run.folder, [name]) == [path]
    assert path.read_bytes() == first


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_plain_text_is_printable_and_one_line(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert plain(shown) == shown
