"""One cell in full: its metrics with their samples, how it was judged, what is doubtful, and on what it ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.quantities import BOUND_WORDS, PART_WORDS, gigabytes
from pytest_llmbench.core.records import FLAGS, CellRecord, MemoryRecord, MetricComparison, ThresholdResult
from pytest_llmbench.core.thresholds import explain
from pytest_llmbench.errors import Primitive
from pytest_llmbench.reports.columns import columns_of
from pytest_llmbench.reports.html_results import column
from pytest_llmbench.reports.html_subjects import Subject
from pytest_llmbench.reports.html_text import (
    amount,
    date_words,
    interval,
    lines_shown,
    metric_words,
    number,
    quantity,
    shown,
)
from pytest_llmbench.reports.html_views import Depth, Detail, Grid, MetricLine, ThresholdLine
from pytest_llmbench.reports.plan import duration

_MOST_METRICS, _MOST_LINES, _MOST_COLUMNS = 60, 20, 12
_MOST_MESSAGE = 1500
_CHANGES = ("regressed", "improved", "inconclusive", "not_comparable", "unchanged")


def detail(record: CellRecord, one: Subject, key: str, depth: Depth) -> Detail:
    """A cell's part of the page."""
    return Detail(
        key=key,
        model=one.model,
        quantization=one.quantization,
        profile=shown(record.profile, 40),
        status=record.status,
        rating=record.rating or "",
        words=shown(record.interpretation) if record.interpretation else "",
        reason=_reason(record),
        thresholds=[_threshold(result) for result in record.thresholds[:_MOST_LINES]],
        metrics=list(_metrics(record, depth)),
        comparisons=comparison_grid([("", record.comparisons)], _MOST_LINES),
        doubts=[(shown(flag, 60), FLAGS.get(flag, "see the reason")) for flag in record.flags[:_MOST_LINES]],
        notes=[shown(note) for note in record.notes[:_MOST_LINES]],
        facts=list(_facts(record)),
        tables=list(_tables(record, depth)),
    )


def comparison_grid(compared: Sequence[tuple[str, Sequence[MetricComparison]]], most: int) -> Grid | None:
    """What has changed since the baseline, what became worse first; None where nothing was compared.

    Args:
        compared: the name of each cell, empty for one alone, and its comparisons.
    """
    found = [(name, one) for name, some in compared for one in some]
    if not found:
        return None
    found.sort(key=lambda item: _CHANGES.index(item[1].verdict))
    rows = [
        [
            *([name] if name else []),
            metric_words(one.metric),
            one.verdict.replace("_", " "),
            _change(one),
            shown(one.message),
        ]
        for name, one in found[:most]
    ]
    note = f"{len(found) - most:,} more are in cells.jsonl." if len(found) > most else ""
    head = [*(["cell"] if found[0][0] else []), "metric", "verdict", "new / old (95 % interval)", "in words"]
    return Grid("Compared with the baseline", head, rows, note)


def _change(one: MetricComparison) -> str:
    if one.ratio is None:
        return "–"
    bounds = f" ({one.ci_low:.3f}–{one.ci_high:.3f})" if one.ci_low is not None and one.ci_high is not None else ""
    return f"{one.ratio:.3f}{bounds}"


def _reason(record: CellRecord) -> str:
    parts = []
    if record.reason is not None and record.reason.code != "below_threshold":
        parts.append(f"{shown(record.reason.code, 60)}: {lines_shown(record.reason.message, _MOST_MESSAGE)}")
    if record.expected_failure is not None:
        parts.append(f"The suite expects it to fail: {shown(record.expected_failure)}")
    return "\n".join(parts)


def _threshold(result: ThresholdResult) -> ThresholdLine:
    sentence = explain(result).removesuffix(f" → {result.verdict}").partition(f"{result.key}: ")[2]
    return ThresholdLine(result.verdict, shown(result.key, 60), shown(sentence, 300))


def _metrics(record: CellRecord, depth: Depth) -> Iterator[MetricLine]:
    """In the order of the registry, then what it does not know; samples of those that stand in the profile's table."""
    headlines = {name for name, _ in columns_of(record.profile, [record])}
    names = [
        *(name for name in METRICS if name in record.metrics),
        *(name for name in record.metrics if name not in METRICS),
    ]
    for name in names[:_MOST_METRICS]:
        metric = record.metrics[name]
        samples = _samples(name, record.samples.get(name, []), depth.samples) if name in headlines else ""
        n = "" if name in METRICS and METRICS[name].exact else f"{metric.n:,}"
        yield MetricLine(column(name), quantity(name, metric.value), interval(name, metric), n, samples)


def _samples(name: str, loads: Sequence[Sequence[float]], most: int) -> str:
    """By load of the model where there are several."""
    if not any(loads) or not most:
        return ""
    parts = []
    for place, load in enumerate(loads[:_MOST_LINES], 1):
        some = ", ".join(amount(name, value) for value in load[:most])
        more = f" and {len(load) - most:,} more" if len(load) > most else ""
        parts.append(f"load {place}: {some}{more}" if len(loads) > 1 else f"{some}{more}")
    return "; ".join(parts)


def _facts(record: CellRecord) -> Iterator[tuple[str, str]]:
    """What it ran on, and what that took."""
    server = record.server
    yield "server", " ".join(shown(part, 80) for part in (server.kind, server.version) if part)
    asked = ", ".join(f"{shown(key, 40)} {number(value)}" for key, value in list(server.args.items())[:_MOST_LINES])
    if asked:
        yield "asked of it", shown(asked, 600)
    if server.context_size is not None:
        yield "context", f"{server.context_size:,} tokens"
    if record.device is not None:
        yield "device", shown(record.device, 60)
    if record.model_file is not None:
        digest = f", SHA-256 {shown(record.model_file.sha256, 17)}" if record.model_file.sha256 else ""
        yield "file", f"{_file_name(record.model_file.path)}, {gigabytes(record.model_file.size_bytes)}{digest}"
    if record.memory is not None:
        yield from _memory(record.memory)
    phases = ", ".join(
        f"{shown(name, 40)} {seconds:.1f} s" for name, seconds in list(record.phases_seconds.items())[:12]
    )
    yield "took", duration(record.duration_seconds) + (f" ({phases})" if phases else "")
    yield "began", date_words(record.started_at)
    yield "node id", shown(record.nodeid, 200)


def _file_name(path: str) -> str:
    """Its last parts: where models are kept is the machine's own business."""
    return shown("/".join(path.replace("\\", "/").split("/")[-2:]), 120)


def _memory(memory: MemoryRecord) -> Iterator[tuple[str, str]]:
    if memory.observed_peak_bytes is not None:
        source = f" ({shown(memory.observed_source, 12).upper()})" if memory.observed_source else ""
        yield "memory observed", f"{gigabytes(memory.observed_peak_bytes)} at most{source}"
    if memory.predicted_bytes is not None:
        parts = sorted(memory.parts.items(), key=lambda part: (-part[1], part[0]))
        words = ", ".join(
            f"{PART_WORDS.get(name, shown(name, 40))} {gigabytes(size)}" for name, size in parts[:8] if size
        )
        yield "memory predicted", f"{gigabytes(memory.predicted_bytes)}" + (f": {words}" if words else "")
    if memory.available_bytes is not None:
        bound = BOUND_WORDS.get(memory.bound_by or "", "")
        yield "memory available", f"{gigabytes(memory.available_bytes)}" + (f" ({bound})" if bound else "")


def _tables(record: CellRecord, depth: Depth) -> Iterator[Grid]:
    """The rows behind the metrics."""
    for table, rows in list(record.details.items())[:6]:
        if not rows or not depth.rows:
            continue
        keys = list(dict.fromkeys(key for row in rows[: depth.rows] for key in row))[:_MOST_COLUMNS]
        kept = [key for key in keys if any(row.get(key) is not None for row in rows)]
        cells = [[_cell(row.get(key)) for key in kept] for row in rows[: depth.rows]]
        note = (
            f"The first {depth.rows} of {len(rows):,} rows; all are in cells.jsonl." if len(rows) > depth.rows else ""
        )
        yield Grid(shown(table, 60), [shown(key, 60).replace("_", " ") for key in kept], cells, note)


def _cell(value: Primitive) -> str:
    return shown(number(value), 120)
