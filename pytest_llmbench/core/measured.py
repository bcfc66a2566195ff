"""What was measured of each configuration: the ground that recommendations stand on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_llmbench.core.metrics import COMMON_METRICS, METRICS, PROFILE_NAMES
from pytest_llmbench.core.recommendations import Figure
from pytest_llmbench.core.records import CellRecord, MetricValue

MEMORY = "peak_memory_gb"
QUALITY = "quality_score_percent"
SPEED = "decode_tokens_per_second"
Key = tuple[str, str, str, str, str]
_NOT_OF_A_PROFILE = {*COMMON_METRICS, "efficiency_score"}
# How a number is said; {} is the number, with its unit where it has one that people say.
_PHRASES = {
    SPEED: "{} tokens/s",
    "ttft_seconds": "first token after {} s",
    "context_load_seconds": "largest context loaded in {} s",
    "largest_usable_context_tokens": "{} tokens of context",
    "depth_tokens_per_second": "{} tokens/s with the context full",
    "recall_percent": "{} % of the planted facts recalled",
    "documents_per_hour": "{} documents/h",
    QUALITY: "{} % of the questions right",
    "math_score_percent": "{} % of the calculations right",
    "comprehension_score_percent": "{} % of the questions about a text right",
    "reasoning_score_percent": "{} % of the logical problems right",
    "format_compliance_percent": "{} % of the answers in the form asked for",
    MEMORY: "{} GB of memory",
}
# What is compared, in a sentence that says no number.
_SUBJECTS = {
    SPEED: "tokens/s",
    "ttft_seconds": "time to first token",
    "context_load_seconds": "time to load a context",
    "largest_usable_context_tokens": "size of context",
    "depth_tokens_per_second": "tokens/s with the context full",
    "recall_percent": "facts recalled",
    "documents_per_hour": "documents/h",
    QUALITY: "right answers",
    "math_score_percent": "right calculations",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A configuration (model, quantization, variant, backend, host) with its cells that were measured.

    Attributes:
        name: as people read it; with the backend where nothing else tells two apart, the host where there are several.
        cells: by profile, each in the order of node ids. None of them is empty.
    """

    key: Key
    name: str
    cells: Mapping[str, Sequence[CellRecord]]

    @property
    def any_cell(self) -> CellRecord:
        return next(iter(self.cells.values()))[0]

    def of(self, profiles: Sequence[str]) -> list[CellRecord]:
        """The cells of these profiles, in their order."""
        return [cell for profile in profiles for cell in self.cells.get(profile, ())]

    def metric(self, name: str, first_of: Sequence[str] = ()) -> MetricValue | None:
        """A metric, from the profiles named before others; of memory the most any of their cells took.

        None where it was not measured.
        """
        for profiles in (first_of, self.cells):
            found = None
            for profile in profiles:
                for cell in self.cells.get(profile, ()):
                    metric = cell.metrics.get(name)
                    if metric is not None and (found is None or metric.value > found.value):
                        found = metric
                        if name != MEMORY:
                            return found
            if found is not None:
                return found
        return None

    def value(self, name: str, first_of: Sequence[str] = ()) -> float | None:
        """As :meth:`metric`, without its interval."""
        found = self.metric(name, first_of)
        return found.value if found is not None else None


def is_measured(record: CellRecord) -> bool:
    """Whether a cell found out something of its profile: it ended, can be believed, and is no test without numbers."""
    return record.status in {"passed", "failed"} and any(name not in _NOT_OF_A_PROFILE for name in record.metrics)


def key_of(record: CellRecord) -> Key:
    """What a configuration is told apart by; no variant is the empty one."""
    return record.model, record.quantization, record.variant or "", record.backend, record.host


def measured(records: Sequence[CellRecord]) -> list[Measured]:
    """The configurations of which something was measured, in the order of their keys."""
    names = Names(records)
    grouped: dict[Key, list[CellRecord]] = {}
    for record in records:
        if is_measured(record):
            grouped.setdefault(key_of(record), []).append(record)
    return [Measured(key, names.of(key), _by_profile(grouped[key])) for key in sorted(grouped)]


def _by_profile(cells: Sequence[CellRecord]) -> dict[str, list[CellRecord]]:
    known = {name: place for place, name in enumerate(PROFILE_NAMES)}
    ordered = sorted(cells, key=lambda cell: (known.get(cell.profile, len(known)), cell.profile, cell.nodeid))
    found: dict[str, list[CellRecord]] = {}
    for cell in ordered:
        found.setdefault(cell.profile, []).append(cell)
    return found


class Names:
    """What configurations of a run are called: no more is said than tells them apart."""

    def __init__(self, records: Sequence[CellRecord]) -> None:
        keys = {key_of(record) for record in records}
        self._backends = len({(*key[:3], key[4]) for key in keys}) < len(keys)
        self._hosts = len({key[4] for key in keys}) > 1

    def of(self, key: Key) -> str:
        """``Qwen2.5-7B Q4_K_M · kv8 (ollama) on 0123abcd``."""
        return f"{key[0]} {key[1]}{self.rest(key)}"

    def rest(self, key: Key) -> str:
        """The same without model and quantization."""
        _, _, variant, backend, host = key
        text = f" · {variant}" if variant else ""
        text += f" ({backend})" if self._backends else ""
        return text + (f" on {host[:8]}" if self._hosts else "")


def listed(names: Sequence[str], last: str = "and") -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    return f" {last} ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), *names[-1:]])


def called(several: Sequence[Measured]) -> str:
    """Several configurations, a model's name said once: ``Qwen2.5-7B Q4_K_M and Q6_K, Phi-3.5 Q4_K_M``."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for one in several:
        rest = one.name.removeprefix(f"{one.key[0]} {one.key[1]}")
        groups.setdefault((one.key[0], rest), []).append(one)
    parts = [f"{model} {listed([one.key[1] for one in group])}{rest}" for (model, rest), group in groups.items()]
    return ", ".join(parts) if any(len(group) > 1 for group in groups.values()) else listed(parts)


def subject(name: str) -> str:
    """What a metric is called in a sentence that compares."""
    return _SUBJECTS.get(name, name)


def figure(name: str, metric: MetricValue) -> Figure:
    """A metric as a figure: in the words people use, with its interval where chance has a part in it."""
    exact = name in METRICS and METRICS[name].exact
    low, high = (None, None) if exact else (metric.ci_low, metric.ci_high)
    return Figure(name, metric.value, low, high, said(name, metric.value, low, high))


def said(name: str, value: float, low: float | None = None, high: float | None = None) -> str:
    """``18.2 tokens/s [17.6, 18.9]``: three digits that count, more where the interval would vanish."""
    places = _places(name, value) if low is not None or value != int(value) else 0
    if low is not None and high is not None and high > low:
        places = max(places, min(3, math.ceil(-math.log10((high - low) / 2))))
    text = f"{value:.{places}f}"
    if name in _PHRASES:
        text = _PHRASES[name].format(text)
    else:
        unit = METRICS[name].unit if name in METRICS else ""
        text = f"{name} {text} {unit}".rstrip()
    if low is None or high is None:
        return text
    return f"{text} [{low:.{places}f}, {high:.{places}f}]"


def _places(name: str, value: float) -> int:
    whole = 10 if name in METRICS and METRICS[name].unit == "%" else 100  # a tenth of a percent is more than is known
    if abs(value) >= whole:
        return 0
    return min(3, max(1, 1 - math.floor(math.log10(abs(value))))) if value else 1
