"""One table that turns numbers into a rating and into plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pytest_llmbench.core.records import MetricValue, Rating, ThresholdResult

# Upper bound of each band (exclusive) and what a value in it feels like. Bands follow the founding design's
# translation table; the two ranges it leaves open (below 2, 30 to 40 tokens/s) are filled. Those of quality are ours.
INTERPRETATIONS: dict[str, tuple[tuple[float, str], ...]] = {
    "decode_tokens_per_second": (
        (2, "too slow to follow as it appears"),
        (5, "slow but readable, at dictation pace"),
        (10, "unhurried, fine for a patient reader"),
        (15, "about as fast as people read"),
        (20, "faster than people read"),
        (30, "very fast"),
        (40, "faster than anyone can follow"),
        (math.inf, "most answers appear almost at once"),
    ),
    "ttft_seconds": (
        (2, "starts answering at once"),
        (5, "starts after a short pause"),
        (10, "starts after a pause one notices"),
        (30, "starts after a wait that breaks the flow"),
        (math.inf, "takes too long to start for interactive use"),
    ),
    "context_load_seconds": (
        (5, "the largest context loads without breaking the flow"),
        (15, "the largest context takes a brief pause to load"),
        (30, "one waits for the largest context to load"),
        (60, "the largest context loads while one fetches a coffee"),
        (math.inf, "the largest context takes too long to load to be worked with"),
    ),
    "documents_per_hour": (
        (10, "only for a handful of documents"),
        (30, "documents for a night, not for a day"),
        (60, "moderate batches of documents in reasonable time"),
        (120, "documents in bulk"),
        (math.inf, "documents in bulk, with ease"),
    ),
    "quality_score_percent": (
        (50, "gets more wrong than right"),
        (75, "gets much wrong: for drafts that somebody checks"),
        (90, "gets most right"),
        (math.inf, "gets nearly all right"),
    ),
    "cpu_temperature_celsius": (
        (70, "the machine stays cool"),
        (80, "the machine becomes warm, and stays safe"),
        (85, "the machine becomes hot: see to its airflow"),
        (90, "the machine comes close to its thermal limit"),
        (math.inf, "the machine becomes too hot: reduce the load"),
    ),
}
# What every cell knows says something about the use only where that is what the profile is about.
_ONLY_OF = {"cpu_temperature_celsius": "stress"}


def interpret(metrics: Mapping[str, MetricValue], profile: str) -> str | None:
    """Plain words for the metrics of a profile that have a table, joined; None when there are none."""
    phrases = []
    for name, bands in INTERPRETATIONS.items():
        if name in metrics and _ONLY_OF.get(name, profile) == profile:
            phrases.append(next(words for bound, words in bands if metrics[name].value < bound))
    text = "; ".join(phrases)
    return text[:1].upper() + text[1:] if text else None


def rate(results: Sequence[ThresholdResult]) -> Rating | None:
    """Usability from the margins: all +50 % excellent, all +20 % good, all met acceptable, else poor or failed.

    A limit missed that the profile calls critical means *failed*, any other *poor*. An inconclusive comparison is
    neither met with ease nor missed: at best *acceptable*. A limit of 0 has no relative margin: met, it counts as met
    with ease. None when none is missed, and one could not be compared at all.
    """
    missed = [result for result in results if result.verdict == "fail"]
    if missed:
        return "failed" if any(result.critical for result in missed) else "poor"
    if not results or any(result.observed is None for result in results):
        return None
    if any(result.verdict == "inconclusive" for result in results):
        return "acceptable"
    margin = min(result.margin_percent if result.margin_percent is not None else math.inf for result in results)
    if margin >= 50:
        return "excellent"
    return "good" if margin >= 20 else "acceptable"
