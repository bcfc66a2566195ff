"""The shape of a recommendation: primitives and tuples of them, so that every report can show the same one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_llmbench.core.records import Rating

Mark = Literal["✓", "⚠", "✗"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that a recommendation rests on; ``low`` and ``high``: its 95 % interval, None where there is none."""

    metric: str
    value: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration (model, quantization, variant) that was measured for a use.

    Attributes:
        configuration: as people read it, ``Qwen2.5-7B Q4_K_M``; with `` · variant`` where there is one, and with the
            backend where nothing else tells two apart, and the host where the run has several.
        mark: ✓ fit for the use, ⚠ with reservations, ✗ not fit.
        usability: the worst rating of the profiles that the use rests on, by the founding scale.
        score: 0 to 1, what it is ranked by among those of the same mark; None where it is not fit.
        figures: the numbers it rests on.
        reasons: sentences, with numbers.
        tied: the intervals of all that counts overlap with those of the first of its mark; of the first: with those of
            another.
        nodeids: the cells it rests on.
    """

    configuration: str
    model: str
    quantization: str
    variant: str | None
    mark: Mark
    usability: Rating | None
    score: float | None
    figures: tuple[Figure, ...]
    reasons: tuple[str, ...]
    tied: bool
    nodeids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """What to run for one use.

    Attributes:
        title: of the use, for people.
        answer: one sentence: what to run, or why nothing can be recommended.
        ranked: fit or with reservations, best first, then what is not fit.
        excluded: sentences: what was not measured and why, grouped.
        remarks: sentences, such as that differences are noise.
    """

    use_case: str
    title: str
    answer: str
    ranked: tuple[Candidate, ...]
    excluded: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """A configuration in the space of quality, speed and memory.

    Attributes:
        on_front: no other configuration of the same host is at least as good in all that is known of this one, and
            better in one.
    """

    configuration: str
    quality_percent: float | None
    tokens_per_second: float | None
    memory_gb: float | None
    on_front: bool


@dataclass(frozen=True, slots=True)
class Recommendations:
    """The answer of a run.

    Attributes:
        headline: one or two sentences that a layman can act on.
        advice: by use, in the order of the configuration; the one named ``overall`` last.
        points: every configuration of which something is known, for the Pareto front.
        next: what to measure next, in sentences, the most useful first.
    """

    headline: str
    advice: tuple[Advice, ...]
    points: tuple[Point, ...]
    next: tuple[str, ...]
