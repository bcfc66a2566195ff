"""The answer for one use: who is ranked how, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_llmbench.core.exclusions import Exclusion, exclusions, told
from pytest_llmbench.core.fitness import Fitness, fitness, limits_of
from pytest_llmbench.core.measured import (
    MEMORY,
    QUALITY,
    Measured,
    Names,
    called,
    figure,
    key_of,
    listed,
    said,
    subject,
)
from pytest_llmbench.core.ranking import ALIKE, SAME_MEMORY, UNKNOWN, Score, overlap, places, scores
from pytest_llmbench.core.ratings import interpret
from pytest_llmbench.core.recommendations import Advice, Candidate, Figure
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.core.use_cases import EVERYDAY_PROFILES, UseCase

_MARKS = ("✓", "⚠", "✗")
_LISTED = 6


@dataclass(frozen=True, slots=True)
class Contender:
    """A configuration in the ranking of a use.

    Attributes:
        is_tied: it can not be told from the first of its mark; of the first: another can not be told from it.
    """

    measured: Measured
    fitness: Fitness
    score: Score
    is_tied: bool = False

    @property
    def name(self) -> str:
        return self.measured.name


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run tells of one use.

    Attributes:
        profiles: those the use rests on.
        ranked: best first; ✗ after all others.
        unmeasured: of ``profiles`` (and metrics that are required), what no configuration was measured in.
        excluded: the configurations that lack something which others have.
    """

    use: UseCase
    profiles: tuple[str, ...]
    ranked: tuple[Contender, ...]
    unmeasured: tuple[str, ...]
    excluded: tuple[Exclusion, ...]

    @property
    def best(self) -> Contender | None:
        """What can be recommended; None where nothing is fit."""
        return next((one for one in self.ranked if one.fitness.mark != "✗"), None)

    @property
    def tied(self) -> list[Contender]:
        """The first, and what can not be told from it."""
        return [one for one in self.ranked if one.is_tied and one.fitness.mark == self.ranked[0].fitness.mark]


def answer(use: UseCase, found: Sequence[Measured], records: Sequence[CellRecord]) -> Answer:
    """Rank what was measured for a use.

    Args:
        found: the configurations of which something was measured.
        records: all of the run, for what was not.
    """
    profiles = use.profiles or _everyday(found, records)
    required = [limit.metric for limit in limits_of(use)]
    lacking = {one.key: _lacking(one, profiles, required) for one in found}
    candidates = [one for one in found if profiles and not lacking[one.key]]
    unmeasured = tuple(name for name in (*profiles, *required) if all(name in missing for missing in lacking.values()))
    missing = {key: lacking.get(key, profiles) for key in map(key_of, records)}
    excluded = [
        one
        for one in exclusions(records, {one.key for one in candidates}, missing)
        if one.reason is not None or not set(missing[one.key]) <= set(unmeasured)
    ]
    return Answer(use, profiles, tuple(_ranked(use, profiles, candidates)), unmeasured, tuple(excluded))


def _everyday(found: Sequence[Measured], records: Sequence[CellRecord]) -> tuple[str, ...]:
    """The everyday profiles that the run measured; where it measured none, those it tried to."""
    measured = {profile for one in found for profile in one.cells}.intersection(EVERYDAY_PROFILES)
    tried = measured or {record.profile for record in records}
    return tuple(name for name in EVERYDAY_PROFILES if name in tried)


def _lacking(one: Measured, profiles: Sequence[str], required: Sequence[str]) -> list[str]:
    """The profiles a configuration was not measured in; where there is none, the metrics that are required."""
    absent = [name for name in profiles if name not in one.cells]
    return absent or [name for name in required if one.metric(name, profiles) is None]


def _ranked(use: UseCase, profiles: Sequence[str], found: Sequence[Measured]) -> list[Contender]:
    judged = [fitness(one, use, profiles) for one in found]
    if use.weights.get(QUALITY) and any(one.metric(QUALITY) is not None for one in found):
        judged = [_less_known(one, fit) for one, fit in zip(found, judged, strict=True)]
    worth = scores(found, use, profiles, [one.rating for one in judged])
    ranked: list[Contender] = []
    for mark in _MARKS:
        group = [i for i, one in enumerate(judged) if one.mark == mark]
        order = places([worth[i] for i in group], [found[i].value(MEMORY, profiles) for i in group])
        same = [Contender(found[group[j]], judged[group[j]], worth[group[j]]) for j in order]
        ranked += _with_ties(same, use, profiles)
    return ranked


def _less_known(one: Measured, fit: Fitness) -> Fitness:
    """What nobody knows must not stand before what is known: of others it was found out whether they answer right."""
    if one.metric(QUALITY) is not None or fit.mark == "✗":
        return fit
    return replace(fit, mark="⚠", reservations=(*fit.reservations, "its quality was not measured, that of others was"))


def _with_ties(group: Sequence[Contender], use: UseCase, profiles: Sequence[str]) -> list[Contender]:
    if not group:
        return []
    first, *others = group
    tied = [overlap(first.measured, other.measured, use.weights, profiles) for other in others]
    return [replace(one, is_tied=is_tied) for one, is_tied in zip(group, [any(tied), *tied], strict=True)]


def advice(found: Answer, names: Names) -> Advice:
    """The answer in words, in the shape that reports show."""
    return Advice(
        use_case=found.use.name,
        title=found.use.title,
        answer=sentence(found),
        ranked=tuple(_candidate(one, found) for one in found.ranked),
        excluded=told(found.excluded, names),
        remarks=tuple(_remarks(found)),
    )


def sentence(found: Answer) -> str:
    """What to run for a use, or why nothing can be recommended."""
    if found.unmeasured:
        absent = [name for name in found.unmeasured if name in found.profiles] or found.unmeasured
        return f"This run did not measure {listed(absent)}, so it can not say."
    if not found.ranked:
        return "Nothing was measured for it."
    best = found.best
    if best is None:
        return f"Nothing that was measured is fit: {nearest_miss(found)}."
    rating = best.fitness.usability
    if best.fitness.mark == "⚠":
        against = best.fitness.reservations[0]
        return f"{best.name}, with reservations ({numbers(best, found, besides=against)}): {against}."
    return f"{best.name}: {f'{rating}, ' if rating else ''}{numbers(best, found)}."


def nearest_miss(found: Answer) -> str:
    """Of what is not fit, the one that misses least, and by how much."""
    known = [one for one in found.ranked if one.fitness.short_percent is not None]
    nearest = min(known, key=lambda one: one.fitness.short_percent or 0.0, default=found.ranked[0])
    why = nearest.fitness.reservations[:1]
    return f"the nearest is {nearest.name}" + (f": {why[0]}" if why else "")


def numbers(one: Contender, found: Answer, *, besides: str = "") -> str:
    """The figures without their intervals: ``18.2 tokens/s, first token after 2.1 s; 5.8 GB of memory``.

    Args:
        besides: a sentence beside them, whose figures need not be said again.
    """
    figures = [replace(each, text=said(each.metric, each.value)) for each in _figures(one.measured, found)]
    return _joined([each for each in figures if each.text not in besides])


def _joined(figures: Sequence[Figure]) -> str:
    text = ", ".join(each.text for each in figures if each.metric != MEMORY)
    return "; ".join(filter(None, [text, *(each.text for each in figures if each.metric == MEMORY)]))


def _figures(one: Measured, found: Answer) -> list[Figure]:
    """What the ranking rests on and what the use requires, then the memory."""
    required = [limit.metric for limit in limits_of(found.use)]
    weighed = [name for name, weight in found.use.weights.items() if weight > 0]
    names = [name for name in dict.fromkeys([*weighed, *required]) if name != MEMORY]
    known = ((name, one.metric(name, found.profiles)) for name in [*names, MEMORY])
    return [figure(name, metric) for name, metric in known if metric is not None]


def _candidate(one: Contender, found: Answer) -> Candidate:
    model, quantization, variant, _, _ = one.measured.key
    cells = one.measured.of(found.profiles)
    figures = _figures(one.measured, found)
    judged = one.fitness
    meanings = [text for text in (interpret(cell.metrics, cell.profile) for cell in cells) if text is not None]
    meanings = [text for text in meanings if not any(said.startswith(text.lower()) for said in judged.reservations)]
    return Candidate(
        configuration=one.name,
        model=model,
        quantization=quantization,
        variant=variant or None,
        mark=judged.mark,
        usability=judged.usability,
        score=one.score.value if judged.mark != "✗" else None,
        figures=tuple(figures),
        reasons=tuple(dict.fromkeys([_joined(figures), *meanings, *judged.reservations, *judged.notes])),
        tied=one.is_tied,
        nodeids=tuple(cell.nodeid for cell in cells),
    )


def _remarks(found: Answer) -> list[str]:
    return [*_noise(found), *_frugal(found), *_better_answers(found), *_unknown_quality(found)]


def _noise(found: Answer) -> list[str]:
    """For each metric that counts, what can not be told from the first; metrics with the same answer together."""
    if not found.ranked:
        return []
    first, *others = (one for one in found.ranked if one.fitness.mark == found.ranked[0].fitness.mark)
    metrics: dict[tuple[int, ...], list[str]] = {}
    for name in (name for name, weight in found.use.weights.items() if weight > 0):
        like = [i for i, one in enumerate(others) if overlap(first.measured, one.measured, {name: 1}, found.profiles)]
        if like:
            metrics.setdefault(tuple(like), []).append(subject(name))
    return [
        f"{_indistinct(first.measured, [others[i].measured for i in like])} in {listed(names)}: "
        f"the intervals overlap, so such differences are noise"
        for like, names in metrics.items()
    ]


def _indistinct(first: Measured, like: Sequence[Measured]) -> str:
    """Of several only that they are like the first: two of them may well be apart from each other."""
    if len(like) == 1:
        return f"{called([first, *like])} can not be told apart"
    return f"{_some(like)} can not be told apart from {first.name}"


def _some(several: Sequence[Measured]) -> str:
    more = len(several) - _LISTED
    return called(several) if more <= 1 else f"{called(several[:_LISTED])}, and {more} others"


def _frugal(found: Answer) -> list[str]:
    """Why the first stands before one with a better score: it takes less memory."""
    if len(found.ranked) < 2:
        return []
    first = found.ranked[0]
    ahead = [one for one in found.ranked[1:] if one.fitness.mark == first.fitness.mark]
    ours = first.measured.value(MEMORY, found.profiles)
    more = [
        one
        for one in ahead
        if ours is not None
        and first.score.value < one.score.value <= first.score.value * ALIKE
        and ours < SAME_MEMORY * (one.measured.value(MEMORY, found.profiles) or 0)
    ]
    if not more:
        return []
    sizes = listed([f"{one.name} ({said(MEMORY, one.measured.value(MEMORY, found.profiles) or 0)})" for one in more])
    return [f"{first.name} is put before {sizes}: it serves as well within 5 %, and takes {said(MEMORY, ours or 0)}"]


def _better_answers(found: Answer) -> list[str]:
    """That something further down the list answers better beyond noise."""
    best = found.best
    ours = best.measured.metric(QUALITY) if best is not None else None
    if best is None or ours is None or ours.ci_high is None:
        return []
    better = [
        (metric.value, -place, one)
        for place, one in enumerate(found.ranked)
        if one.fitness.mark != "✗"
        and (metric := one.measured.metric(QUALITY)) is not None
        and metric.ci_low is not None
        and metric.ci_low > ours.ci_high
    ]
    if not better:
        return []
    one = max(better, key=lambda each: each[:2])[2]
    against = f"; {one.fitness.reservations[0]}" if one.fitness.reservations else ""
    return [f"{one.name} answers better ({numbers(one, found)}){against}"]


def _unknown_quality(found: Answer) -> list[str]:
    if not found.use.weights.get(QUALITY):
        return []
    unknown = [one.measured for one in found.ranked if one.measured.metric(QUALITY) is None]
    if not unknown or len(unknown) == len(found.ranked):
        return []
    most = f"{100 * UNKNOWN:.0f} % at most"
    return [f"the quality of {_some(unknown)} was not measured; it counts as the worst that was, and as {most}"]
