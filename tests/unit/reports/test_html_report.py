"""``report.html``, read back with an HTML parser: complete, safe, and the same every time."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.core.recommendations import Advice, Candidate, Figure, Recommendations
from pytest_llmbench.core.records import CellRecord, MetricComparison, MetricValue, ModelFile, Reason, to_line
from pytest_llmbench.core.redaction import HIDDEN, redacted
from pytest_llmbench.reports.html_report import MOST_BYTES, TEMPLATES, render, write_html
from pytest_llmbench.reports.html_text import amount, date_words, metric_words, number, shown
from pytest_llmbench.reports.run_data import RunData
from tests.unit.factories import broken_record, cell_record
from tests.unit.reports.hostile import HOSTILE
from tests.unit.reports.runs import run_of

VOID = {"meta", "link", "input", "br"}
TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "link",
        "style",
        "body",
        "header",
        "nav",
        "main",
        "footer",
        "section",
        "article",
    ),
    *(
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "a",
        "ul",
        "ol",
        "li",
        "dl",
        "dt",
        "dd",
        "div",
        "span",
        "strong",
        "b",
        "small",
        "code",
    ),
    *("pre", "table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "details", "summary"),
    *("label", "input", "select", "option", "output", "button", "script", "svg", "defs", "path", "use", "text", "rect"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "rel", "href", "class", "id", "hidden", "tabindex", "role"),
    *("scope", "title", "type", "value", "autocomplete", "start", "viewbox", "preserveaspectratio", "width", "height"),
    *("d", "x", "y", "text-anchor", "stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap"),
    *("aria-label", "aria-labelledby", "aria-hidden", "aria-live", "data-p", "data-s", "data-r", "data-o", "data-open"),
}


class Page(HTMLParser):
    """What a page is made of.

    Attributes:
        elements: tag and attributes, in order.
        texts: of elements, by tag, nested text included.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.words = ""
        self._open: list[tuple[str, int]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append((tag, len(self.words)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        opened, begin = self._open.pop()
        assert opened == tag
        self.texts.append((tag, self.words[begin:]))

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_comment(self, data: str) -> None:
        pytest.fail(f"a comment: {data[:80]}")

    def of(self, tag: str) -> list[str]:
        """The texts of all elements of a tag."""
        return [" ".join(text.split()) for name, text in self.texts if name == tag]

    def values(self, attribute: str) -> list[str]:
        """All values of an attribute."""
        return [attrs[attribute] for _, attrs in self.elements if attribute in attrs]


def check(text: str) -> Page:
    """A page as every report has to be, whatever is in it."""
    page = Page(text)
    assert {tag for tag, _ in page.elements} <= TAGS
    assert {name for _, attrs in page.elements for name in attrs} <= ATTRIBUTES
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = page.values("href")
    assert {link for link in links if not link.startswith("#")} == {"data:,"}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("scope" in attrs for tag, attrs in page.elements if tag == "th")
    policy = next(attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert len(inside) == 1
        assert not re.search(r"url\(|@import|fetch|XMLHttp|import\(|innerHTML|eval", inside[0])
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [char for char in text if not char.isprintable() and char not in "\n\t"]
    return page


def described(folder: Path, **changes: Any) -> None:
    run = {
        "started_at": "2026-01-31T23:59:59.000+00:00",
        "finished_at": "2026-02-01T00:08:13.000+00:00",
        "hardware": {"cpu": "Some CPU", "physical_cores": 4, "logical_cores": 8, "memory_bytes": 16_000_000_000},
        "configuration": {"output": {"include_logs": True}, "openai": {"api_key_env": "A_KEY"}},
        "command_line": ["pytest", "suites/"],
    }
    (folder / "run.json").write_text(json.dumps(run | changes), encoding="utf-8")


def written(folder: Path, records: Iterable[CellRecord]) -> Page:
    path = write_html(run_of(folder, records))
    assert path == folder / "report.html"
    return check(path.read_text(encoding="utf-8"))


def several() -> list[CellRecord]:
    """Two quantizations that were measured, one that was not."""
    other = cell_record(
        quantization="Q8_0",
        nodeid="suites/test_interactive.py::test_interactive[tiny-Q8_0]",
        metrics={"decode_tokens_per_second": MetricValue(value=35.5, unit="tokens/s", n=6)},
        samples={"decode_tokens_per_second": [[35.0, 36.0], [35.5]]},
        flags=["imprecise"],
        notes=["a note"],
        details={"sizes": [{"context_tokens": 4096, "usable": True, "reason": None}]},
        model_file=ModelFile(path="/home/somebody/models/tiny.Q8_0.gguf", size_bytes=150_000_000, sha256=None),
        rating="good",
    )
    broken = broken_record("it did not start\nbecause of that", quantization="Q2_K", nodeid="t.py::t[tiny-Q2_K]")
    return [cell_record(), other, broken]


def test_a_page_from_top_to_bottom(tmp_path: Path) -> None:
    described(tmp_path)
    page = written(tmp_path, several())
    assert page.of("h1") == [f"Run {tmp_path.name}"]
    assert "31 January 2026, 23:59 UTC · Some CPU, 16.0 GB of memory" in page.words
    assert "8 min 14 s" in page.words
    assert page.of("h2") == [
        *("What to run", "Matrix", "Charts", "Results", "Resources", "Not measured, and why", "Details of each cell"),
        *("Configuration and logs", "What the words mean"),
    ]
    tiles = [attrs["class"] for tag, attrs in page.elements if tag == "a" and attrs.get("class", "").startswith("tile")]
    assert tiles == ["tile t-error", "tile t-excellent", "tile t-good"]  # by bits: Q2_K, Q4_1, Q8_0
    assert [attrs["width"] for tag, attrs in page.elements if tag == "rect"] == ["100", "50"]  # 35.5 of 71.25
    assert "min_tokens_per_sec at least 2.0 tokens/s, observed 71.2 tokens/s (95 % interval 70.5" in page.words
    assert "load 1: 35.0, 36.0; load 2: 35.5" in page.words
    assert "server_start_failed: it did not start\nbecause of that" in page.words
    assert "the interval stayed wider than asked for" in page.words
    assert "How fast text streams once it has started." in page.words
    assert "20 to 30: very fast" in page.words
    assert "No long_context cell was measured." in page.words
    assert "models/tiny.Q8_0.gguf" in page.words
    assert "somebody" not in page.words
    assert "A_KEY" in page.words


def test_a_table_stands_beside_every_chart(tmp_path: Path) -> None:
    text = render(run_of(tmp_path, several()))
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    assert len(figures) >= 2
    assert all(figure.count('<svg class="chart"') == figure.count("<table") == 1 for figure in figures)


def test_the_script_finds_what_it_looks_for(tmp_path: Path) -> None:
    ids = set(check(render(run_of(tmp_path, several()))).values("id"))
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    wanted = set(re.findall(r'"(f-\w+)"', script)) | set(re.findall(r'byId\("([\w-]+)"\)', script))
    assert {"f-text", "filters", "open-all"} <= wanted <= ids


def test_the_same_bytes_again_wherever_the_run_lies(tmp_path: Path) -> None:
    run = tmp_path / "a" / "20260131T235959Z-1a2b"
    run.mkdir(parents=True)
    described(run)
    (run / "logs").mkdir()
    (run / "logs" / "tiny_stderr.log").write_text("a line\n", encoding="utf-8")
    (run / "cells.jsonl").write_text("".join(f"{to_line(record)}\n" for record in several()), encoding="utf-8")
    first = write_html(RunData.read(run)).read_bytes()
    moved = tmp_path / "b" / run.name
    shutil.copytree(run, moved)
    assert write_html(RunData.read(moved)).read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_no_cells_and_no_description(tmp_path: Path) -> None:
    page = written(tmp_path, [])
    assert "Nothing was measured, so nothing can be recommended." in page.words
    assert "can not be read" in page.words


def hostile(text: str, number: int) -> list[CellRecord]:
    everywhere: dict[str, Any] = {
        "run_id": text,
        "model": text,
        "quantization": text,
        "model_size": text,
        "backend": text,
        "profile": text,
        "variant": text,
        "device": text,
        "host": text,
        "started_at": text,
        "flags": [text],
        "notes": [text],
        "expected_failure": text,
        "phases_seconds": {text: 1.0},
        "details": {text: [{text: text}], "sizes": [{"context_tokens": text, "load_seconds": text}]},
        "model_file": ModelFile(path=text, size_bytes=1, sha256=text),
    }
    compared = MetricComparison(
        metric=text,
        old=1,
        new=2,
        ratio=2,
        ci_low=1,
        ci_high=3,
        p_value=1,
        limit_percent=5,
        verdict="regressed",
        message=text,
    )
    threshold = cell_record().thresholds[0].model_copy(update={"key": text, "metric": text})
    metrics = {text: MetricValue(value=1, unit=text, n=1), **cell_record().metrics}
    samples = {text: [[1.0]], "ttft_seconds": [[0.1, 0.2]], "decode_tokens_per_second": [[70.0]]}
    both = {"samples": samples, "metrics": metrics, "comparisons": [compared]}
    usual = {**everywhere, "profile": "interactive"}
    return [
        cell_record(**everywhere, **both, nodeid=f"a{number}{text}", thresholds=[threshold], interpretation=text),
        cell_record(**usual, **both, nodeid=f"b{number}{text}"),
        cell_record(**everywhere, nodeid=f"c{number}{text}", status="error", reason=Reason(code=text, message=text)),
    ]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    described(tmp_path, git_commit=HOSTILE[3], command_line=HOSTILE, configuration={text: text for text in HOSTILE})
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a_<script>.log").write_bytes("\n".join(HOSTILE).encode("utf-8", "surrogatepass"))
    records = [record for number, text in enumerate(HOSTILE) for record in hostile(text, number)]
    page = written(tmp_path, records)
    assert page.of("script")[0].startswith('"use strict"')
    assert "<script>alert(1)</script>" in page.words
    assert len((tmp_path / "report.html").read_bytes()) < MOST_BYTES


def test_megabytes_of_text_are_cut(tmp_path: Path) -> None:
    long = "<b>& " * 2_000_000
    described(tmp_path, configuration={"command": long}, command_line=[long])
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "s_stderr.log").write_text(
        "a line of a log\n" * 100_000 + "the very last line\n", encoding="utf-8"
    )
    page = written(tmp_path, hostile(long, 0))
    assert len((tmp_path / "report.html").read_bytes()) < 500_000
    assert "the very last line" in page.words


def test_of_many_cells_only_those_that_did_not_pass_have_details(tmp_path: Path) -> None:
    records = [
        cell_record(nodeid=f"t.py::t[{place}]", model=f"m{place % 100}", quantization=f"Q{place // 100 + 2}_0")
        for place in range(480)
    ]
    records += [broken_record("no", nodeid=f"t.py::b[{place}]", model=f"m{place}") for place in range(20)]
    page = written(tmp_path, records)
    assert "480 of 500 cells have no part of their own here" in page.words
    assert sum(attrs.get("class") == "cell card" for tag, attrs in page.elements if tag == "details") == 20
    assert len((tmp_path / "report.html").read_bytes()) < MOST_BYTES


def candidate(name: str, **changes: Any) -> Candidate:
    fields: dict[str, Any] = {
        "configuration": name,
        "model": "tiny",
        "quantization": "Q4_1",
        "variant": None,
        "mark": "✓",
        "usability": "excellent",
        "score": 0.9,
        "figures": (Figure("ttft_seconds", 0.1, None, None, "first token after 0.1 s"),),
        "reasons": ("first token after 0.1 s", "it is quick"),
        "tied": True,
        "nodeids": (cell_record().nodeid,),
    }
    return Candidate(**{**fields, **changes})


def test_recommendations_are_ranked_and_explained(tmp_path: Path) -> None:
    best, tied = candidate("tiny Q4_1"), candidate("tiny Q8_0", mark="⚠", reasons=("in doubt",))
    unfit = [candidate(f"unfit {place}", mark="✗", usability="failed", tied=False, nodeids=()) for place in range(30)]
    advice = [
        Advice("interactive", "Interactive use", "Run tiny Q4_1.", (best, tied, *unfit), ("bad: too big",), ("noise",)),
        Advice("long", "Long context", "It was not measured.", (), (), ()),
        Advice("overall", "Overall", "Run that.", (best,), (), ()),
    ]
    run = run_of(tmp_path, [cell_record()])
    run.__dict__["recommendations"] = Recommendations("Run tiny Q4_1 for everything.", tuple(advice), (), ("more",))
    page = check(render(run))
    assert "Run tiny Q4_1 for everything." in page.of("p")
    assert [title for title in page.of("h3") if title in {"Overall", "Interactive use", "Open questions"}] == [
        "Overall",
        "Interactive use",
        "Open questions",
    ]
    assert "not told apart from the best" in page.words
    assert page.words.count("it is quick") == 20  # of the overall best, the best here, and 18 of 30 that are unfit
    assert (
        page.words.count("first token after 0.1 s") == 21
    )  # figures of all 21 that are shown, and not again as reasons
    assert "12 more configurations in report.json" in page.words
    for sentence in ("bad: too big", "noise", "more", "Long context", "It was not measured."):
        assert sentence in page.words


def test_changes_since_a_baseline_come_worst_first(tmp_path: Path) -> None:
    def changed(verdict: Any) -> MetricComparison:
        fields: dict[str, Any] = dict.fromkeys(("old", "new", "ratio", "ci_low", "ci_high", "p_value"))
        return MetricComparison(
            metric="ttft_seconds", limit_percent=5, verdict=verdict, message=f"it {verdict}", **fields
        )

    comparisons = [changed("unchanged"), changed("inconclusive"), changed("regressed")]
    page = written(tmp_path, [cell_record(comparisons=comparisons)])
    verdicts = [text for text in page.of("td") if text in {"unchanged", "inconclusive", "regressed"}]
    assert verdicts[:3] == ["regressed", "inconclusive", "unchanged"]
    assert "Changes since the baseline" in page.of("h2")


def test_logs_are_shown_only_where_they_are_kept(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "s_stderr.log").write_text("what the server said\n", encoding="utf-8")
    described(tmp_path)
    assert "what the server said" in written(tmp_path, []).words
    described(tmp_path, configuration={"output": {"include_logs": False}})
    assert "what the server said" not in written(tmp_path, []).words


@pytest.mark.parametrize(
    ("value", "shown_as"),
    [
        ({"api_key": "s", "api_key_env": "A_KEY"}, {"api_key": HIDDEN, "api_key_env": "A_KEY"}),
        ({"hf_token": "s", "output_tokens": 64}, {"hf_token": HIDDEN, "output_tokens": 64}),
        ({"base_url": "http://me:s@host:1/v1"}, {"base_url": f"http://{HIDDEN}@host:1/v1"}),
        ({"extra_args": ["--api-key", "s", "--threads", "2"]}, {"extra_args": ["--api-key", HIDDEN, "--threads", "2"]}),
        ({"command": "serve --api-key=s --port 1"}, {"command": f"serve --api-key={HIDDEN} --port 1"}),
        ({"command": "serve --hf-token s"}, {"command": f"serve --hf-token {HIDDEN}"}),
        ([{"password": "s"}, None, 1.5], [{"password": HIDDEN}, None, 1.5]),
    ],
)
def test_secrets_are_left_out(value: Any, shown_as: Any) -> None:
    assert redacted(value) == shown_as


def test_numbers_and_words() -> None:
    assert metric_words("ttft_seconds") == "Time to first token"
    assert metric_words("decode_tokens_per_second") == "Decode rate"
    assert metric_words("cpu_temperature_celsius") == "CPU temperature"
    assert amount("efficiency_score", 1815016.7) == "1,815,017"
    assert amount("no_such_metric", 0.123456) == "0.1235"
    assert [number(value) for value in (None, True, 4.0, 0.000123456, 32768, "x")] == [
        *("–", "yes", "4", "0.0001235", "32,768", "x"),
    ]
    assert date_words("2026-01-31T23:59:59Z") == "31 January 2026, 23:59 UTC"
    assert date_words("some time") == "some time"
    assert shown("a" * 100, 10) == "a" * 9 + "…"
    assert shown(" a\n b\x1b ") == "a b\\x1b"
