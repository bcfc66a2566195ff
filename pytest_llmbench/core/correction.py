"""What stored runs of this host teach about the next prediction: how far observed peaks were from the predicted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

# A prediction is moved by no more than this: what is further off is another case, or a fault to be found. Downwards by
# little, because a peak that was observed is only what those requests needed; longer prompts touch more of the buffers.
MAX_UPWARDS = 0.15
MAX_DOWNWARDS = 0.03
_SIMILAR_SIZE = 2.0
_NEWEST = 20


@dataclass(frozen=True, slots=True)
class Observation:
    """A stored run: what was predicted for a cell, before any correction, and the peak that was then observed."""

    backend: str
    model: str
    quantization: str
    predicted_bytes: int
    observed_bytes: int


@dataclass(frozen=True, slots=True)
class Correction:
    """Multiply a prediction by ``factor``; learnt from so many runs."""

    factor: float
    samples: int


def correction_for(
    observations: Iterable[Observation], *, backend: str, model: str, quantization: str, predicted_bytes: int
) -> Correction | None:
    """Learn from similar cells, None where there are none.

    Similar are cells on the same kind of server whose prediction was at least half and at most twice this one: what a
    process needs beside its buffers does not grow with them, so a small model teaches nothing about a large one. Among
    them, runs of the very same model and quantization count alone where there are any.

    Args:
        observations: of this host, newest first.
        predicted_bytes: what is to be corrected.
    """
    similar = [
        seen
        for seen in observations
        if seen.backend == backend
        and seen.predicted_bytes > 0
        and predicted_bytes / _SIMILAR_SIZE <= seen.predicted_bytes <= predicted_bytes * _SIMILAR_SIZE
    ]
    same = [seen for seen in similar if (seen.model, seen.quantization) == (model, quantization)]
    used = (same or similar)[:_NEWEST]
    if not used:
        return None
    ratio = median(seen.observed_bytes / seen.predicted_bytes for seen in used)
    return Correction(min(max(ratio, 1 - MAX_DOWNWARDS), 1 + MAX_UPWARDS), len(used))
