"""The top of the page: what was measured on what, and what follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llmbench.core.quantities import gigabytes
from pytest_llmbench.core.recommendations import Advice, Candidate
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.core.redaction import redacted
from pytest_llmbench.reports.columns import by_profile
from pytest_llmbench.reports.html_subjects import Subject
from pytest_llmbench.reports.html_text import count_words, date_words, listed, moment_of, shown
from pytest_llmbench.reports.html_views import MARKS
from pytest_llmbench.reports.plan import duration
from pytest_llmbench.reports.remarks import remarks
from pytest_llmbench.reports.run_data import RunData

MOST_CANDIDATES = 20
_MOST_SENTENCES = 12
_FIRST = "overall"
_FIT = {"✓": "fit", "⚠": "with reservations", "✗": "not fit"}


@dataclass(frozen=True, slots=True)
class CandidateView:
    """A configuration in the ranking of a use."""

    mark: str
    mark_words: str
    name: str
    usability: str
    figures: Sequence[str]
    reasons: Sequence[str]
    tied: bool
    link: str


@dataclass(frozen=True, slots=True)
class AdviceView:
    """What to run for a use; ``first`` are shown at once, ``others`` when asked for."""

    key: str
    title: str
    answer: str
    first: Sequence[CandidateView]
    others: Sequence[CandidateView]
    left_out: str
    excluded: Sequence[str]
    remarks: Sequence[str]


@dataclass(frozen=True, slots=True)
class Summary:
    """The answer of the run."""

    headline: str
    remarks: Sequence[str]
    advice: Sequence[AdviceView]
    following: Sequence[str]


@dataclass(frozen=True, slots=True)
class Overview:
    """What the run was.

    Attributes:
        statuses: status, its mark and how many cells have it.
    """

    run_id: str
    date: str
    machine: str
    statuses: Sequence[tuple[str, str, int]]
    facts: Sequence[tuple[str, str]]


def overview(run: RunData, measured: Sequence[Subject]) -> Overview:
    """The key facts, as far as they are known."""
    described = run.description
    began = described.get("started_at") or (run.records[0].started_at if run.records else None)
    counts: Counter[str] = Counter(record.status for record in run.records)
    statuses = [(status, mark, counts[status]) for status, mark in MARKS.items() if counts[status]]
    hardware = _mapping(described.get("hardware"))
    machine = shown(hardware.get("cpu") or "", 80)
    memory = hardware.get("memory_bytes")
    if isinstance(memory, int):
        machine = f"{machine}, {gigabytes(memory)} of memory".removeprefix(", ")
    facts = [(name, value) for name, value in _facts(run, measured, hardware) if value]
    return Overview(shown(run.run_id, 80), date_words(began), machine, statuses, facts)


def summary(run: RunData, keys: Mapping[str, str], detailed: set[str]) -> Summary:
    """Recommendations as the page shows them.

    Args:
        keys: by node id, what a cell is called on the page.
        detailed: node ids of the cells that have a part of their own.
    """
    found = run.recommendations
    links = {nodeid: f"#{'c' if nodeid in detailed else 'r'}{key}" for nodeid, key in keys.items()}
    headline = shown(found.headline, 600) or _without_advice(run.records)
    ordered = sorted(found.advice, key=lambda one: one.use_case != _FIRST)
    advice = [_advice(number, one, links) for number, one in enumerate(ordered)]
    return Summary(headline, _sentences(remarks(run)), advice, _sentences(found.next))


def _without_advice(records: Sequence[CellRecord]) -> str:
    if not any(record.metrics for record in records):
        return "Nothing was measured, so nothing can be recommended."
    return "Nothing can be recommended from what was measured; the numbers are below."


def _advice(number: int, one: Advice, links: Mapping[str, str]) -> AdviceView:
    candidates = [_candidate(place, candidate, links) for place, candidate in enumerate(one.ranked[:MOST_CANDIDATES])]
    more = len(one.ranked) - len(candidates)
    left_out = f"{count_words(more, 'more configuration')} in report.json" if more > 0 else ""
    lead = max(1, min(3, sum(candidate.mark != "✗" for candidate in candidates)))
    return AdviceView(
        f"use-{number}",
        shown(one.title, 80),
        shown(one.answer, 600),
        candidates[:lead],
        candidates[lead:],
        left_out,
        _sentences(one.excluded),
        _sentences(one.remarks),
    )


def _candidate(place: int, one: Candidate, links: Mapping[str, str]) -> CandidateView:
    figures = [figure.text for figure in one.figures[:8]]
    reasons = [reason for reason in one.reasons if not (figures and all(figure in reason for figure in figures))]
    return CandidateView(
        one.mark,
        _FIT[one.mark],
        shown(one.configuration, 120),
        one.usability or "",
        [shown(figure, 120) for figure in figures],
        _sentences(reasons),
        one.tied and place > 0,
        next((links[nodeid] for nodeid in one.nodeids if nodeid in links), ""),
    )


def _sentences(some: Sequence[str]) -> list[str]:
    cut = [shown(sentence) for sentence in some[:_MOST_SENTENCES]]
    return [*cut, f"… and {len(some) - len(cut):,} more"] if len(some) > len(cut) else cut


def _facts(run: RunData, measured: Sequence[Subject], hardware: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    described, records = run.description, run.records
    cores = hardware.get("physical_cores"), hardware.get("logical_cores")
    yield "processor", shown(hardware.get("cpu") or "", 80)
    if isinstance(cores[0], int) and isinstance(cores[1], int):
        yield "cores", f"{cores[0]} physical, {cores[1]} logical"
    memory = hardware.get("memory_bytes")
    yield "memory", gigabytes(memory) if isinstance(memory, int) else ""
    yield "system", shown(hardware.get("os") or "", 80)
    yield "devices", listed(sorted({shown(record.device, 60) for record in records if record.device is not None}))
    yield "servers", listed([shown(name, 80) for name in _list(described.get("servers"))])
    yield "duration", _duration(run)
    models = list(dict.fromkeys(one.model for one in measured))
    yield "models", f"{len(models):,}: {listed([shown(name, 60) for name in models], 4)}" if models else ""
    yield "quantizations", listed(list(dict.fromkeys(one.quantization for one in measured)), 10)
    yield "profiles", listed([shown(name, 40) for name in by_profile(records)], 8)
    flags = Counter(flag for record in records for flag in record.flags)
    doubts = [f"{shown(flag, 40).replace('_', ' ')} ({count:,})" for flag, count in flags.most_common(8)]
    yield "cells in doubt", ", ".join(doubts) or "none"
    claim = _mapping(described.get("calibration")).get("claim")
    yield "timing", shown(claim, 200) if isinstance(claim, str) else ""
    software = _mapping(described.get("software"))
    yield (
        "version",
        shown(f"pytest-llmbench {software['pytest-llmbench']}", 60) if "pytest-llmbench" in software else "",
    )
    yield "commit", shown(described.get("git_commit") or "", 40)
    command = [str(part) for part in _list(described.get("command_line"))]
    yield "command", shown(" ".join(map(str, redacted(command))), 300) if command else ""


def _duration(run: RunData) -> str:
    began, ended = moment_of(run.description.get("started_at")), moment_of(run.description.get("finished_at"))
    cells = duration(sum(record.duration_seconds for record in run.records))
    if began is None or ended is None or ended < began:
        return f"{cells} for all cells" if run.records else ""
    whole = duration((ended - began).total_seconds())
    return whole if whole == cells else f"{whole}, of which cells {cells}"


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _list(found: object) -> Sequence[Any]:
    return found if isinstance(found, list) else ()
