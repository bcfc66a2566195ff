"""``report.html``: one file that needs nothing else, and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.reports import charts_of_models, charts_of_samples, html_appendix
from pytest_llmbench.reports.charts_views import ChartView
from pytest_llmbench.reports.conclusions import comparisons
from pytest_llmbench.reports.files import replaced
from pytest_llmbench.reports.html_details import comparison_grid, detail
from pytest_llmbench.reports.html_overview import overview, summary
from pytest_llmbench.reports.html_results import heat_maps, result_tables
from pytest_llmbench.reports.html_subjects import Subject, subjects
from pytest_llmbench.reports.html_text import shown
from pytest_llmbench.reports.html_views import MARKS, Depth
from pytest_llmbench.reports.run_data import RunData

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_BYTES = 2_000_000
TEMPLATES = Path(__file__).parent / "templates"
_MOST_COMPARISONS = 60
_RATINGS = ("excellent", "good", "acceptable", "poor", "failed")
# Up to how many cells of a run; a page that becomes too large is made again with the next.
_DEPTHS = (
    (60, Depth(cells=60, passed=True, rows=32, samples=20)),
    (300, Depth(cells=300, passed=True, rows=6, samples=12)),
    (1000, Depth(cells=200, passed=False, rows=6, samples=0)),
    (math.inf, Depth(cells=60, passed=False, rows=0, samples=0)),
)


@dataclass(frozen=True, slots=True)
class _Run:
    """A run with what is the same at every depth."""

    data: RunData
    measured: Sequence[Subject]
    charts: Sequence[ChartView]


def write_html(run: RunData) -> Path:
    """Write ``report.html`` into a run's folder.

    Raises:
        OSError: the disk refuses.
    """
    path = run.folder / "report.html"
    with replaced(path) as file:
        file.write(render(run))
    return path


def render(run: RunData) -> str:
    """The page. More cells than a page can hold are told less of, as it says then."""
    measured = subjects(run.records)
    prepared = _Run(run, measured, _charts(run, measured))
    page = ""
    for cells, depth in _DEPTHS:
        if len(run.records) <= cells:
            page = _page(prepared, depth)
            if len(page.encode("utf-8", "replace")) < MOST_BYTES:
                break
    return page


def _charts(run: RunData, measured: Sequence[Subject]) -> list[ChartView]:
    return [
        charts_of_models.best_of_all(run.recommendations.points, measured),
        charts_of_models.speed_by_size(measured),
        charts_of_models.memory_by_size(measured),
        charts_of_models.quality_by_quantization(measured),
        charts_of_samples.distribution(measured, "decode_tokens_per_second"),
        charts_of_samples.distribution(measured, "ttft_seconds"),
        charts_of_samples.load_by_context(measured),
        charts_of_samples.rate_by_depth(measured),
        charts_of_samples.temperature(run, measured),
    ]


def _page(run: _Run, depth: Depth) -> str:
    records, measured = run.data.records, run.measured
    keys = {record.nodeid: str(number) for number, record in enumerate(records, 1)}
    told = _told(records, depth)
    detailed = {record.nodeid for record in told}
    subject_of = {cell.nodeid: one for one in measured for cell in one.cells}
    names = {nodeid: one.name for nodeid, one in subject_of.items()}
    style, script = _asset("report.css"), _asset("report.js")
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            style=style,
            script=script,
            policy=_policy(style, script),
            marks=MARKS,
            about=overview(run.data, measured),
            summary=summary(run.data, keys, detailed),
            heat_maps=heat_maps(records, measured, keys, detailed),
            charts=run.charts,
            tables=result_tables(records, measured, keys, detailed),
            statuses=sorted({record.status for record in records}),
            ratings=[rating for rating in _RATINGS if any(record.rating == rating for record in records)],
            details=[detail(record, subject_of[record.nodeid], keys[record.nodeid], depth) for record in told],
            untold=len(records) - len(told),
            changes=comparison_grid(
                [(f"{names[r.nodeid]}, {shown(r.profile, 40)}", r.comparisons) for r in records], _MOST_COMPARISONS
            ),
            resources=html_appendix.resources(measured),
            unseen=html_appendix.unseen(run.data.description),
            quality=html_appendix.quality(measured),
            quality_sentences=[shown(sentence) for sentence in comparisons(run.data)[:_MOST_COMPARISONS]],
            unmeasured=html_appendix.unmeasured(records, names),
            configuration=html_appendix.configuration(run.data.description),
            logs=html_appendix.logs(run.data),
            glossary=html_appendix.glossary(records),
            doubts=html_appendix.doubts(records),
        )
    )


def _told(records: Sequence[CellRecord], depth: Depth) -> list[CellRecord]:
    """The cells that have a part of their own: all, or those that did not pass, in their order."""
    chosen = [record for record in records if depth.passed or record.status != "passed"]
    return chosen[: depth.cells]


def _policy(style: str, script: str) -> str:
    """A content security policy under which nothing is fetched, and nothing runs but what is ours."""
    styles, scripts = (_digest(text) for text in (style, script))
    return (
        f"default-src 'none'; style-src '{styles}'; script-src '{scripts}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@lru_cache(maxsize=2)
def _asset(name: str) -> str:
    return f"\n{(TEMPLATES / name).read_text(encoding='utf-8').strip()}\n"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """Templates in which every value is text, whatever it holds."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader: Any = FileSystemLoader(TEMPLATES)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
