"""The Pareto front of quality, speed and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_llmbench.core.measured import MEMORY, QUALITY, SPEED, Measured
from pytest_llmbench.core.recommendations import Point

_Values = tuple[float | None, float | None, float | None]  # each the larger the better


def points(found: Sequence[Measured]) -> tuple[Point, ...]:
    """Every configuration of which one of the three is known, in their order.

    On the front is what no other of the same host beats: none is at least as good in all that is known of it, and
    better in one. What is not known of the other beats nothing; what is not known of itself is left out.
    """
    values = {one.key: _values(one) for one in found}
    known = [one for one in found if any(value is not None for value in values[one.key])]
    front: dict[str, list[_Values]] = {}
    is_on_front = set()
    # What beats another comes before it in this order, and whatever it beats, one on the front beats too.
    for one in sorted(known, key=lambda one: _order(values[one.key])):
        mine, host = values[one.key], one.key[-1]
        if not any(_beats(other, mine) for other in front.setdefault(host, [])):
            front[host].append(mine)
            is_on_front.add(one.key)
    return tuple(
        Point(one.name, one.value(QUALITY), one.value(SPEED), one.value(MEMORY), one.key in is_on_front)
        for one in known
    )


def _values(one: Measured) -> _Values:
    memory = one.value(MEMORY)
    return one.value(QUALITY), one.value(SPEED), -memory if memory is not None else None


def _order(values: _Values) -> tuple[float, ...]:
    known = sum(value is not None for value in values)
    return (-known, *(-value if value is not None else math.inf for value in values))


def _beats(one: _Values, other: _Values) -> bool:
    better = False
    for ours, theirs in zip(one, other, strict=True):
        if theirs is None:
            continue
        if ours is None or ours < theirs:
            return False
        better = better or ours > theirs
    return better
