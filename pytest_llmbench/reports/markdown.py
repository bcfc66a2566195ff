"""``summary.md``: the answer first, then what it rests on; short enough for a CI job's page and a comment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.quantities import gigabytes
from pytest_llmbench.core.recommendations import Advice, Candidate
from pytest_llmbench.core.records import FLAGS, CellRecord, Change, MemoryRecord
from pytest_llmbench.core.thresholds import explain, explain_comparison
from pytest_llmbench.reports.columns import by_profile, columns_of
from pytest_llmbench.reports.files import replaced
from pytest_llmbench.reports.plain import markdown_text
from pytest_llmbench.reports.remarks import remarks
from pytest_llmbench.reports.run_data import RunData

MAX_CHARACTERS = 60_000  # a comment on GitHub may have 65,536
MAX_ROWS = 40  # of a table
MAX_RANKED = 5  # candidates of a use
_MAX_NAMES = 4  # of cells, in one line
_MAX_TEXT = 600  # characters of one text that is not ours
_CHANGES: tuple[Change, ...] = ("regressed", "inconclusive", "improved", "not_comparable", "unchanged")


def write_markdown(run: RunData) -> Path:
    """Write ``summary.md`` into a run's folder."""
    path = run.folder / "summary.md"
    with replaced(path) as file:
        file.write(render(run))
    return path


def render(run: RunData) -> str:
    """The summary as Markdown text, of at most some 60,000 characters: what decides comes first."""
    parts = [
        _head(run),
        _section("Worse than before, or not", _compared(run.records)),
        _section("What to run", _advice(run.recommendations.advice)),
        *(_table(profile, group) for profile, group in by_profile(run.records).items()),
        _section("What was not met, is in doubt, or was not measured", _troubles(run.records)),
        _section("What to measure next", [f"- {_escape(text)}" for text in run.recommendations.next]),
        _section("Together", [f"- {_escape(text)}" for text in run.conclusions]),
        _legend(run.records),
    ]
    text, left = "", MAX_CHARACTERS
    for part in filter(None, parts):
        block = "\n".join(part) + "\n\n"
        if len(block) > left:
            block = block[: block.rfind("\n", 0, max(left, 1)) + 1] + "\n… the rest is in report.html and cells.jsonl\n"
            return text + block
        text, left = text + block, left - len(block)
    return text.rstrip("\n") + "\n"


def _head(run: RunData) -> list[str]:
    counts = Counter(record.status for record in run.records)
    totals = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none was finished"
    lines = [f"# Benchmark run {_escape(run.run_id)}", ""]
    if run.recommendations.headline:
        lines += [f"**{_escape(run.recommendations.headline)}**", ""]
    lines += [f"Cells: {totals}.{_machine(run.description)}"]
    for line in remarks(run):
        lines += ["", f"**{_escape(line)}.**"]
    return lines


def _machine(description: Mapping[str, object]) -> str:
    """What it was measured on, as far as ``run.json`` says it."""
    hardware = description.get("hardware")
    known = hardware if isinstance(hardware, Mapping) else {}
    memory_bytes = known.get("memory_bytes")
    parts = [
        str(known["cpu"]) if known.get("cpu") else None,
        gigabytes(memory_bytes) if isinstance(memory_bytes, int) else None,
        f"commit {str(description['git_commit'])[:12]}" if description.get("git_commit") else None,
    ]
    return " " + _escape(" · ".join(filter(None, parts))) + "." if any(parts) else ""


def _compared(records: Sequence[CellRecord]) -> list[str]:
    """Every comparison with the baseline but those that found nothing, and how many these are."""
    found = [(record, one) for record in records for one in record.comparisons]
    if not found:
        return []
    counts = Counter(one.verdict for _, one in found)
    lines = [f"{', '.join(f'{counts[kind]} {_words(kind)}' for kind in _CHANGES if counts[kind])}.", ""]
    shown = sorted(
        (pair for pair in found if pair[1].verdict != "unchanged"), key=lambda p: _CHANGES.index(p[1].verdict)
    )
    for record, one in shown[:MAX_ROWS]:
        lines.append(f"- {_name(record)}: {_escape(explain_comparison(one))}")
    return [*lines, *_more(len(shown) - MAX_ROWS, "comparisons")]


def _words(verdict: str) -> str:
    return verdict.replace("_", " ")


def _advice(advice: Iterable[Advice]) -> list[str]:
    lines: list[str] = []
    for one in advice:
        lines += [*([""] if lines else []), f"**{_escape(one.title)}**: {_escape(one.answer)}"]
        told = [_candidate(candidate, first=not place) for place, candidate in enumerate(one.ranked[:MAX_RANKED])]
        told += _more(len(one.ranked) - MAX_RANKED, "candidates")
        told += [f"- {_escape(text)}" for text in (*one.excluded[:MAX_RANKED], *one.remarks)]
        told += _more(len(one.excluded) - MAX_RANKED, "groups of cells that were not measured")
        lines += ["", *told] if told else []
    return lines


def _candidate(candidate: Candidate, *, first: bool) -> str:
    """The best with all its reasons, the others with their figures and what speaks against them."""
    reasons = candidate.reasons
    if not first:
        reasons = (*reasons[:1], *(reasons[1:][-1:] if candidate.mark != "✓" else ()))
    usability = f" – {candidate.usability}" if candidate.usability else ""
    return f"- {candidate.mark} {_escape(candidate.configuration)}{usability}: {_escape('; '.join(reasons))}"


def _table(profile: str, records: Sequence[CellRecord]) -> list[str]:
    """The cells of one profile with the metrics that its use is about; if they are many, those in trouble first."""
    columns = columns_of(profile, records)
    header = ["model", "quant", *(title for _, title in columns), "rating", "status"]
    lines = [f"## {_escape(profile)}", "", _row(header), _row(["---"] * len(header))]
    ordered = sorted(records, key=lambda record: record.status == "passed") if len(records) > MAX_ROWS else records
    for record in ordered[:MAX_ROWS]:
        model = record.model if record.variant is None else f"{record.model} · {record.variant}"
        numbers = [_interval(record, metric) for metric, _ in columns]
        lines.append(_row([model, record.quantization, *numbers, record.rating or "–", record.status]))
    more = _more(len(records) - MAX_ROWS, "cells")
    return [*lines, *([""] if more else []), *more]


def _troubles(records: Sequence[CellRecord]) -> list[str]:
    """Of cells that are not simply passed: why. What is so of several cells is said once, with their names."""
    lines: list[str] = []
    alike: dict[str, list[CellRecord]] = {}
    for record in records:
        if record.status in {"skipped", "blocked"} and record.reason is not None:
            sentence = f"{record.status} ({_escape(record.reason.code)}): {_escape(record.reason.message)}"
            alike.setdefault(sentence, []).append(record)
        elif trouble := _trouble(record):
            lines += [f"- {_name(record)}", *(f"  - {line}" for line in trouble)]
        for flag in record.flags:
            sentence = f"doubt: {_escape(flag)}: {FLAGS.get(flag, 'see the reason')}"
            alike.setdefault(sentence, []).append(record)
    for sentence, group in alike.items():
        names = ", ".join(_name(record) for record in group[:_MAX_NAMES])
        more = f" and {len(group) - _MAX_NAMES} more" if len(group) > _MAX_NAMES else ""
        lines.append(f"- {sentence} – {names}{more}")
    return lines


def _trouble(record: CellRecord) -> list[str]:
    lines = [_escape(explain(result)) for result in record.thresholds if result.verdict != "pass"]
    if record.reason is not None and record.reason.code not in {"below_threshold", "regressed"}:
        lines.append(f"{record.status} ({_escape(record.reason.code)}): {_escape(record.reason.message)}")
    if lines and record.memory is not None and record.memory.observed_peak_bytes is not None:
        lines.append(_memory(record.memory))
    return lines


def _name(record: CellRecord) -> str:
    return _escape(record.nodeid.rpartition("::")[2] or record.nodeid)


def _memory(memory: MemoryRecord) -> str:
    text = f"memory: at most {gigabytes(memory.observed_peak_bytes or 0)} observed"
    if memory.predicted_bytes is None:
        return text
    text += f", {gigabytes(memory.predicted_bytes)} predicted"
    if memory.correction_factor is not None:
        text += f" (by earlier runs × {memory.correction_factor:.2f})"
    return text


def _legend(records: Sequence[CellRecord]) -> list[str]:
    titles = {
        name: title for profile, group in by_profile(records).items() for name, title in columns_of(profile, group)
    }
    shown = [name for name in METRICS if name in titles and any(name in record.metrics for record in records)]
    lines = [f"- {_escape(titles[name])} ({_escape(name)}): {_escape(_meaning(name))}" for name in shown]
    intro = (
        "Values are medians, with 95 % intervals in brackets; a dash means not measured. All else is in report.html."
    )
    return [intro, "", *lines] if lines else []


def _meaning(name: str) -> str:
    formula = METRICS[name].formula
    return METRICS[name].meaning + (f" ({formula})" if formula else "")


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines] if lines else []


def _more(count: int, what: str) -> list[str]:
    return [f"- … and {count} more {what}"] if count > 0 else []


def _interval(record: CellRecord, name: str) -> str:
    metric = record.metrics.get(name)
    if metric is None:
        return "–"
    digits = METRICS[name].decimals
    text = f"{metric.value:.{digits}f}"
    if metric.ci_low is None or metric.ci_high is None or METRICS[name].exact:
        return text
    return f"{text} ({metric.ci_low:.{digits}f}–{metric.ci_high:.{digits}f})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell if cell == "---" else _escape(cell) for cell in cells) + " |"


def _escape(text: str) -> str:
    return markdown_text(text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + " …")
