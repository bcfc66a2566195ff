"""Whether a configuration is fit for a use: ✓, ⚠ or ✗, and what there is to say against it, in numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_llmbench.core.measured import QUALITY, Measured, figure, said
from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.quantities import gigabytes
from pytest_llmbench.core.ratings import INTERPRETATIONS
from pytest_llmbench.core.recommendations import Mark
from pytest_llmbench.core.records import FLAGS, CellRecord, MetricValue, Rating, ThresholdResult
from pytest_llmbench.core.thresholds import Limit, judge
from pytest_llmbench.core.use_cases import UseCase

# Doubts that bear on whether it can be used, not only on how sure the numbers are.
GRAVE_FLAGS = (
    "drift",
    "swapped",
    "throttled",
    "leaking",
    "degrading",
    "aborted",
    "answers_cut",
    "prompt_truncated",
    "another_model_answered",
    "server_restarted",
    "partial_gpu_offload",
)
# From here on, what a server takes leaves too little for all else that runs on the machine.
MOST_OF_THE_MEMORY = 0.85
_GOOD_MARGIN_PERCENT = 20
_RATINGS: tuple[Rating, ...] = ("failed", "poor", "acceptable", "good", "excellent")
_MORE_WRONG_THAN_RIGHT = INTERPRETATIONS[QUALITY][0][0]


@dataclass(frozen=True, slots=True)
class Fitness:
    """The judgement of one configuration for one use.

    Attributes:
        rating: the worst of its profiles; None where none was judged by limits.
        usability: the same, but failed where the use requires more, and no better than poor where it gets more wrong
            than right.
        reservations: sentences, the gravest first; none for ✓.
        notes: what keeps it from a better rating, and is no reservation.
        short_percent: of the limits that make it ✗, by how much it misses the one it misses most; None for others.
    """

    mark: Mark
    rating: Rating | None
    usability: Rating | None
    reservations: tuple[str, ...]
    notes: tuple[str, ...] = ()
    short_percent: float | None = None


def fitness(one: Measured, use: UseCase, profiles: Sequence[str]) -> Fitness:
    """Judge a configuration that was measured in all these profiles, and in all that the use requires.

    ✗: a critical limit of a profile is missed, or one that the use requires. ⚠: another limit is missed or can not be
    decided, a critical one is met with little to spare, no limit judges a profile, the measurement holds a grave doubt,
    the model gets more wrong than right, or it takes most of the memory. ✓: none of these.
    """
    cells = one.of(profiles)
    required = judge(limits_of(use), _observed(one, use, profiles))
    judged = [result for cell in cells for result in cell.thresholds]
    missed = [result for result in required if result.verdict == "fail"]
    missed += [result for result in judged if result.verdict == "fail" and result.critical]
    results = [*required, *judged]
    against = [_miss(result) for result in missed]
    against += [_miss(result) for result in judged if result.verdict == "fail" and not result.critical]
    poor_answers = _poor_answers(one, required)
    against += poor_answers
    against += [_undecided(result) for result in results if result.verdict == "inconclusive"]
    against += [f"{flag}: {FLAGS[flag]}" for flag in GRAVE_FLAGS if any(flag in cell.flags for cell in cells)]
    against += [_tight(result) for result in results if result.critical and _is_tight(result)]
    against += _memory(one, cells)
    against += _failed_otherwise(cells)
    against += [] if required else _unjudged(cells)
    notes = tuple(_tight(result) for result in judged if not result.critical and _is_tight(result))
    rating = min((cell.rating for cell in cells if cell.rating is not None), key=_RATINGS.index, default=None)
    reservations = tuple(dict.fromkeys(against))
    if missed or rating == "failed":
        short = max((-result.margin_percent for result in missed if result.margin_percent is not None), default=None)
        return Fitness("✗", rating, "failed", reservations, notes, short)
    return Fitness("⚠" if against else "✓", rating, "poor" if poor_answers else rating, reservations, notes)


def limits_of(use: UseCase) -> list[Limit]:
    """What a use requires, as limits."""
    return [
        Limit(key, key[4:], "min" if key[:4] == "min_" else "max", value, True) for key, value in use.requires.items()
    ]


def _observed(one: Measured, use: UseCase, profiles: Sequence[str]) -> dict[str, MetricValue]:
    found = ((limit.metric, one.metric(limit.metric, profiles)) for limit in limits_of(use))
    return {name: metric for name, metric in found if metric is not None}


def _miss(result: ThresholdResult) -> str:
    missed = "short" if result.side == "min" else "too much"
    short = f", {missed} by {_percent(-result.margin_percent)}" if result.margin_percent is not None else ""
    return f"{_seen(result)} where {_wanted(result)}{short}"


def _undecided(result: ThresholdResult) -> str:
    if result.observed is None:
        return f"{result.metric} was not observed, so {result.key} decides nothing"
    return f"{_seen(result)}: too uncertain to say whether {_wanted(result)}"


def _tight(result: ThresholdResult) -> str:
    return f"{_seen(result)}: little to spare where {_wanted(result)}"


def _is_tight(result: ThresholdResult) -> bool:
    """Whether a limit is met with less than 20 % to spare.

    Where the scale ends (80 % of 100 leave no room for 20 % more than 96): with more than half of the errors that the
    limit permits.
    """
    margin, known = result.margin_percent, METRICS.get(result.metric)
    if result.verdict != "pass" or margin is None or margin >= _GOOD_MARGIN_PERCENT:
        return False
    if known is None or known.maximum is None or result.side == "max" or result.observed is None:
        return True
    return (known.maximum - result.observed) > (known.maximum - result.limit) / 2


def _seen(result: ThresholdResult) -> str:
    exact = result.metric in METRICS and METRICS[result.metric].exact
    low, high = (None, None) if exact else (result.ci_low, result.ci_high)
    return said(result.metric, result.observed or 0.0, low, high)


def _wanted(result: ThresholdResult) -> str:
    relation = "at least" if result.side == "min" else "at most"
    unit = METRICS[result.metric].unit if result.metric in METRICS else ""
    return f"{relation} {result.limit:g} {unit}".rstrip() + f" is wanted ({result.key})"


def _percent(value: float) -> str:
    return f"{value:.0f} %" if value >= 1 else "less than 1 %"


def _unjudged(cells: Iterable[CellRecord]) -> list[str]:
    profiles = dict.fromkeys(cell.profile for cell in cells if not cell.thresholds)
    return [f"no limit says what is good enough in {profile}" for profile in profiles]


def _failed_otherwise(cells: Iterable[CellRecord]) -> list[str]:
    return [
        f"its test failed for another reason: {first_line(cell.reason.message)}"
        for cell in cells
        if cell.reason is not None and cell.reason.code == "test_failed"
    ]


def _poor_answers(one: Measured, required: Sequence[ThresholdResult]) -> list[str]:
    metric = one.metric(QUALITY)
    if metric is None or metric.value >= _MORE_WRONG_THAN_RIGHT or any(r.metric == QUALITY for r in required):
        return []
    return [f"gets more wrong than right: {figure(QUALITY, metric).text}"]


def _memory(one: Measured, cells: Iterable[CellRecord]) -> list[str]:
    """Main memory only: what a GPU holds is no one else's.

    What may be used is taken from the cell that found most: for those after it the server was running already.
    """
    known = [cell.memory for cell in cells if cell.memory is not None and not cell.memory.device_bytes]
    peak = max((memory.observed_peak_bytes or 0 for memory in known), default=0)
    available = available_bytes(one)
    if not peak or not available or peak < MOST_OF_THE_MEMORY * available:
        return []
    return [f"takes most of the memory: {gigabytes(peak)} of the {gigabytes(available)} that may be used"]


def available_bytes(one: Measured) -> int | None:
    """Main memory that a configuration's server could use before it was started; None where nobody looked."""
    found = [cell.memory.available_bytes for cell in one.of(tuple(one.cells)) if cell.memory is not None]
    return max((size for size in found if size is not None), default=None)


def first_line(text: str, longest: int = 200) -> str:
    """The beginning of a message, for a sentence of ours."""
    line = next(iter(text.strip().splitlines()), "").strip()
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
