"""What to measure next: what would change the answer, or make it sure."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmbench.core.answers import Answer, Contender
from pytest_llmbench.core.blocking_evidence import is_larger_model
from pytest_llmbench.core.fitness import available_bytes
from pytest_llmbench.core.measured import MEMORY, QUALITY, Measured, called, listed
from pytest_llmbench.core.metrics import PROFILE_NAMES
from pytest_llmbench.core.quantities import gigabytes
from pytest_llmbench.core.records import CellRecord

# What a quieter machine, or one set to its full speed, would mend.
_DISTURBED = {
    "busy_machine": "close other programs",
    "imprecise": "close other programs",
    "power_saving": "switch the power saving off",
    "throttled": "let it cool",
}
# A model this much larger would still fit, with room for its context.
_ROOM_FOR_LARGER = 2.5
_NOT_TRIED = {"skipped", "blocked"}


def next_steps(answers: Sequence[Answer], records: Sequence[CellRecord]) -> tuple[str, ...]:
    """Sentences, the most useful first; none is said twice.

    Args:
        records: all of the run, for what was tried.
    """
    steps = [*_quality(answers), *_not_run(answers), *_undecided(answers), *_disturbed(answers)]
    steps += [*_tied(answers), *_smaller(answers), *_larger(answers, records)]
    return tuple(dict.fromkeys(steps))


def _bests(answers: Sequence[Answer]) -> list[Contender]:
    """What is recommended for each use, each configuration once."""
    found = {one.measured.key: one for one in (answer.best for answer in answers) if one is not None}
    return list(found.values())


def _quality(answers: Sequence[Answer]) -> list[str]:
    unknown = [one.measured for one in _bests(answers) if one.measured.metric(QUALITY) is None]
    if not unknown:
        return []
    return [f"measure the quality of {called(unknown)} (pytest -m quality): whether the answers are right is not known"]


def _not_run(answers: Sequence[Answer]) -> list[str]:
    absent = [answer for answer in answers if answer.unmeasured and not answer.ranked and not answer.excluded]
    profiles = dict.fromkeys(name for answer in absent for name in answer.unmeasured if name in PROFILE_NAMES)
    if not profiles:
        return []
    uses = listed([answer.use.title for answer in absent])
    return [f'run what tells of {uses} (pytest -m "{" or ".join(profiles)}")']


def _undecided(answers: Sequence[Answer]) -> list[str]:
    steps = []
    for one in _bests(answers):
        cells = one.measured.of(tuple(one.measured.cells))
        results = [
            r for cell in cells for r in cell.thresholds if r.verdict == "inconclusive" and r.observed is not None
        ]
        if results:
            keys = listed(list(dict.fromkeys(result.key for result in results)))
            steps.append(
                f"measure {one.name} again with more samples (measurement.min_samples, loads; of quality the full set "
                f"of questions): {keys} could not be decided"
            )
    return steps


def _disturbed(answers: Sequence[Answer]) -> list[str]:
    by_remedy: dict[str, list[Measured]] = {}
    for one in _bests(answers):
        flags = {flag for cell in one.measured.of(tuple(one.measured.cells)) for flag in cell.flags}
        for remedy in dict.fromkeys(_DISTURBED[flag] for flag in sorted(flags & _DISTURBED.keys())):
            by_remedy.setdefault(remedy, []).append(one.measured)
    return [
        f"{remedy} and measure {called(several)} again: the numbers may become better, and surer"
        for remedy, several in by_remedy.items()
    ]


def _tied(answers: Sequence[Answer]) -> list[str]:
    steps = []
    for answer in answers:
        if answer.best is not None and len(answer.tied) > 1 and not all(map(_has_loads, answer.tied)):
            names = called([one.measured for one in answer.tied])
            steps.append(f"to tell {names} apart, measure them with measurement.loads: 3 and min_samples: 10")
    return steps


def _has_loads(one: Contender) -> bool:
    """Whether some cell of it was measured over three loads: more would hardly tell what they do not."""
    counts = [cell.sampling.get("loads") for cell in one.measured.of(tuple(one.measured.cells))]
    return any(isinstance(count, int) and count >= 3 for count in counts)


def _smaller(answers: Sequence[Answer]) -> list[str]:
    """For models of which nothing fits, a context that would."""
    steps = []
    for answer in answers:
        ran = {one.measured.key[0] for one in answer.ranked}
        for one in answer.excluded:
            context = one.reason.evidence.get("largest_context") if one.kind == "memory" and one.reason else None
            if one.key[0] not in ran and isinstance(context, int) and context > 0:
                steps.append(f"{one.key[0]} {one.key[1]} would fit with a context of {context} tokens (ctx_size)")
                break
    return steps


def _larger(answers: Sequence[Answer], records: Sequence[CellRecord]) -> list[str]:
    """Where the best is excellent by all limits and most of the memory is left: something larger may answer better.

    Of main memory only: how much of a GPU's would be left is not known.
    """
    for answer in answers:
        best = answer.best
        if best is None or any(cell.rating not in {"excellent", None} for cell in best.measured.of(answer.profiles)):
            continue
        used = [cell.memory for cell in best.measured.of(answer.profiles) if cell.memory is not None]
        if any(memory.device_bytes or memory.observed_device_bytes for memory in used):
            continue
        memory, available = best.measured.value(MEMORY, answer.profiles), available_bytes(best.measured)
        size = best.measured.any_cell.model_size
        tried = any(is_larger_model(one.model_size, size) for one in records if one.status not in _NOT_TRIED)
        if memory and available and available > _ROOM_FOR_LARGER * memory * 1e9 and not tried:
            taken = f"{gigabytes(round(memory * 1e9))} of the {gigabytes(available)} that may be used"
            return [f"try a model larger than {size}: {best.name} has speed to spare and takes {taken}"]
    return []
