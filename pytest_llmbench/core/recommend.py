"""From records to an answer: what to run for which use on this machine, and why.

What a configuration is judged by stands in :mod:`core.fitness`, what ranks it in :mod:`core.ranking`, what excluded it
in :mod:`core.exclusions`, and what is said of one use in :mod:`core.answers`; here it becomes one answer. Nothing is
recommended that was not measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmbench.core.answers import Answer, advice, answer, nearest_miss, numbers
from pytest_llmbench.core.measured import QUALITY, Measured, Names, listed, measured
from pytest_llmbench.core.next_steps import next_steps
from pytest_llmbench.core.pareto import points
from pytest_llmbench.core.recommendations import Recommendations
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.core.use_cases import OVERALL, UseCase, use_cases_of

__all__ = ["recommend", "use_cases_of"]


def recommend(records: Sequence[CellRecord], use_cases: Sequence[UseCase]) -> Recommendations:
    """What to run for which use.

    Args:
        records: of a run, in any order: the answer does not depend on it.
        use_cases: what is wanted; see :func:`use_cases_of`.
    """
    found, names = measured(records), Names(records)
    answers = [answer(use, found, records) for use in use_cases]
    return Recommendations(
        headline=" ".join(filter(None, (_regressed(records), _headline(answers, found)))),
        advice=tuple(advice(one, names) for one in answers),
        points=points(found),
        next=next_steps(answers, records),
    )


def _regressed(records: Sequence[CellRecord]) -> str:
    """That something is worse than before, which comes before all else; empty where nothing is."""
    worse = [record for record in records if any(one.verdict == "regressed" for one in record.comparisons)]
    if not worse:
        return ""
    compared = sum(bool(record.comparisons) for record in records)
    return f"{len(worse)} of {compared} cells became worse than the baseline."


def _headline(answers: Sequence[Answer], found: Sequence[Measured]) -> str:
    """What to run in general, what better for a single use, what nothing is fit for, and what is not known."""
    if not found:
        return "Nothing was measured, so nothing can be recommended."
    known = [one for one in answers if one.ranked]
    fit = [one for one in known if one.best is not None]
    main = next((one for one in reversed(fit) if one.use.name == OVERALL), fit[0] if fit else None)
    sentences = [_main(main)] if main is not None else []
    sentences += ["It is the only one that was measured."] if main is not None and len(found) == 1 else []
    sentences += _others(main, [one for one in fit if one is not main])
    unfit = [one for one in known if one.best is None]
    if unfit and fit:
        sentences.append(
            f"Nothing that was measured is fit for {listed([_lower(one.use.title) for one in unfit], 'or')}."
        )
    elif unfit:
        sentences.append(f"Nothing that was measured is fit for any use: {nearest_miss(unfit[-1])}.")
    elif not known:
        sentences.append("What was measured tells of none of the uses.")
    main_quality = main.best.measured.metric(QUALITY) if main is not None and main.best is not None else None
    if main is not None and main_quality is None:
        sentences.append("Quality was not measured, so this says nothing about whether its answers are right.")
    return " ".join(sentences)


def _main(main: Answer) -> str:
    best = main.best
    assert best is not None  # noqa: S101  # the caller's choice
    use = _lower(main.use.title)
    use = (
        f"for {use}"
        if main.use.name != OVERALL
        else "overall"
        if len(main.profiles) > 1
        else f"({main.profiles[0]} use)"
    )
    if best.fitness.mark == "✓":
        return f"Run {best.name} {use}: {numbers(best, main)}."
    against = best.fitness.reservations[0]
    figures = numbers(best, main, besides=against)
    return f"The best that was measured {use} is {best.name}, with reservations: {against} ({figures})."


def _others(main: Answer | None, fit: Sequence[Answer]) -> list[str]:
    """For which uses another configuration is better beyond noise, those of the same together."""
    first = main.best.measured.key if main is not None and main.best is not None else None
    better: dict[str, list[str]] = {}
    for one in fit:
        if one.best is not None and all(like.measured.key != first for like in (one.best, *one.tied)):
            better.setdefault(one.best.name, []).append(_lower(one.use.title))
    parts = [f"{name} for {listed(uses)}" for name, uses in better.items()]
    return [f"Better: {'; '.join(parts)}."] if parts else []


def _lower(title: str) -> str:
    """A title within a sentence; ``RAG`` stays as it is."""
    return title[:1].lower() + title[1:] if title[1:2].islower() else title
