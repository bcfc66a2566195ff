"""Words and numbers of the HTML report: short, on one line, and nothing in them that a page would obey."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import CellRecord, MetricValue
from pytest_llmbench.errors import Primitive, readable
from pytest_llmbench.reports.plain import plain

MOST_CHARACTERS = 400
# Ends of metrics' names that say the unit, which stands beside the value, and what remains to be said.
_UNITS = (
    ("_tokens_per_second", " rate"),
    ("_mb_per_second", " rate"),
    ("_percent_per_1k_tokens", " per 1000 tokens"),
    ("_mb_per_document", " per document"),
    ("_percent_per_hour", " per hour"),
    ("_joules_per_token", " energy per token"),
    ("_seconds", ""),
    ("_percent", ""),
    ("_celsius", ""),
    ("_gb", ""),
    ("_ms", ""),
)
_ABBREVIATIONS = {"ttft": "time to first token", "cpu": "CPU", "gpu": "GPU", "sd": "standard deviation"}
# Metrics whose names alone say too little.
_TITLES = {
    "document_seconds": "Time per document",
    "context_load_seconds": "Context load time",
    "load_seconds": "Load time",
    "answer_seconds": "Time per answer",
    "depth_tokens_per_second": "Rate in a full context",
    "largest_usable_context_tokens": "Largest usable context",
}
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_LONG_NUMBER = 10_000


def shown(text: object, most: int = MOST_CHARACTERS) -> str:
    """Text that is not ours on one line, cut after so many characters; what is no character is escaped."""
    whole = str(text)
    if len(whole) <= most and whole.isprintable() and "  " not in whole:
        return whole.strip()  # as most are; a large run has many
    line = plain(whole[: 2 * most])
    return line if len(line) <= most and len(whole) <= 2 * most else line[: most - 1] + "…"


def lines_shown(text: str, most: int) -> str:
    """The same of several lines, which it keeps."""
    kept = readable(text[: 2 * most], keep="\n\t")
    return kept if len(kept) <= most and len(text) <= 2 * most else kept[: most - 1] + "…"


def metric_words(name: str) -> str:
    """A metric's name as people say it, without its unit: ``ttft_seconds`` becomes ``Time to first token``."""
    if name in _TITLES:
        return _TITLES[name]
    for end, remains in _UNITS:
        if name.endswith(end) and len(name) > len(end):
            name = name.removesuffix(end) + remains
            break
    words = [_ABBREVIATIONS.get(word, word) for word in shown(name, 80).replace("_", " ").split()]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def amount(name: str, value: float) -> str:
    """A metric's value without its unit: as many digits as are worth printing, thousands apart."""
    metric = METRICS.get(name)
    if metric is None:
        return f"{value:,.4g}" if abs(value) < _LONG_NUMBER else f"{value:,.0f}"
    return f"{value:,.{metric.decimals if abs(value) < _LONG_NUMBER else 0}f}"


def unit_of(name: str) -> str:
    """As people read it; empty for a metric that the registry does not know."""
    return METRICS[name].unit if name in METRICS else ""


def quantity(name: str, value: float) -> str:
    """A metric's value with its unit, such as ``71.3 tokens/s``."""
    return f"{amount(name, value)} {unit_of(name)}".rstrip()


def interval(name: str, metric: MetricValue) -> str:
    """Its 95 % interval, ``70.5–72.0``; empty where it has none, or none is due."""
    if metric.ci_low is None or metric.ci_high is None or (name in METRICS and METRICS[name].exact):
        return ""
    return f"{amount(name, metric.ci_low)}–{amount(name, metric.ci_high)}"


def with_interval(name: str, metric: MetricValue) -> str:
    """In a sentence: ``71.3 tokens/s (95 % interval 70.5–72.0, n = 6)``."""
    bounds = interval(name, metric)
    return quantity(name, metric.value) + (f" (95 % interval {bounds}, n = {metric.n})" if bounds else "")


def number(value: Primitive) -> str:
    """A value of a table as it is read; nothing for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= _LONG_NUMBER else shown(value, 120)


def date_words(text: object) -> str:
    """A time as records have it (ISO 8601), as people read it, in UTC; as it is where it can not be read."""
    moment = moment_of(text)
    if moment is None:
        return shown(text, 40) if isinstance(text, str) else ""
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}, {moment:%H:%M} UTC"


def moment_of(text: object) -> datetime | None:
    """A time as records have it; None where it can not be read."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))
        return moment.astimezone(timezone.utc) if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError):
        return None


def count_words(count: int, what: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def listed(names: Sequence[str], most: int = 6) -> str:
    """``a, b and 3 more``."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most:,} more"


def model_of(record: CellRecord) -> str:
    """Model and variant."""
    name = shown(record.model, 80)
    return name if record.variant is None else f"{name} · {shown(record.variant, 40)}"
