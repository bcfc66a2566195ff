"""How the founding profiles work: their settings, and what quick mode makes of those that nobody wrote down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pytest_llmbench.core.config import ContextSize, Section


def check_growing(sizes: list[int]) -> list[int]:
    """Accept sizes that differ; they are tried from the smallest on.

    Raises:
        ValueError: a size is listed twice.
    """
    twice = next((size for size in sizes if sizes.count(size) > 1), None)
    if twice is not None:
        msg = f"{twice} is listed twice; each size is tried once"
        raise ValueError(msg)
    return sorted(sizes)


class InteractiveSettings(Section):
    """``short_answers``: how often each short form is asked for; 0 leaves them out."""

    output_tokens: Annotated[int, Field(ge=2)] = 500
    short_answers: Annotated[int, Field(ge=0, le=100)] = 6


class LongContextSettings(Section):
    """``test_sizes`` are tokens of prompt and answer together; ``samples``: cold loads of each size."""

    test_sizes: Annotated[list[ContextSize], Field(min_length=1), AfterValidator(check_growing)] = Field(
        default_factory=lambda: [4096, 8192, 16384, 32768]
    )
    output_tokens: Annotated[int, Field(ge=2)] = 64
    samples: Annotated[int, Field(ge=2, le=100)] = 3


class BatchSettings(Section):
    num_documents: Annotated[int, Field(ge=1, le=10_000)] = 30
    output_tokens: Annotated[int, Field(ge=2)] = 150


class QualitySettings(Section):
    """What is asked, and what other quantizations are compared with.

    Attributes:
        questions: which part of the shipped bank.
        questions_dir: a folder of the user's own questions, asked instead of the bank; relative to the rootdir.
        output_tokens: at most, of one answer.
        baseline: the quantization that others of the same model are compared with; None: the one with the most bits.
    """

    questions: Literal["quick", "full"] = "full"
    questions_dir: Annotated[str | None, Field(min_length=1)] = None
    output_tokens: Annotated[int, Field(ge=2)] = 256
    baseline: Annotated[str | None, Field(min_length=1)] = None


class StressSettings(Section):
    """``duration`` in minutes, ``sample_interval`` in seconds; ``abort_temperature``, in °C, ends it early."""

    duration: Annotated[float, Field(gt=0, le=100_000)] = 30
    sample_interval: Annotated[float, Field(gt=0, le=3600)] = 30
    output_tokens: Annotated[int, Field(ge=2)] = 256
    abort_temperature: Annotated[float, Field(gt=0, le=150)] = 90


# Shapes of the founding profiles' settings. A profile that a user registers brings its own.
FOUNDING_SETTINGS: dict[str, type[Section]] = {
    "interactive": InteractiveSettings,
    "long_context": LongContextSettings,
    "batch": BatchSettings,
    "quality": QualitySettings,
    "stress": StressSettings,
}

# What quick mode takes where the user has written nothing: all five profiles of a small model within three minutes.
QUICK_SETTINGS: dict[str, dict[str, Any]] = {
    "interactive": {"output_tokens": 128, "short_answers": 1},
    "long_context": {"test_sizes": [1024, 2048], "output_tokens": 32, "samples": 2},
    "batch": {"num_documents": 12, "output_tokens": 48},
    "quality": {"questions": "quick", "output_tokens": 128},
    "stress": {"duration": 0.5, "sample_interval": 2, "output_tokens": 128},
}


def settings_in_mode(profile: str, written: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """What was written for a profile, over what quick mode changes of its defaults."""
    return {**(QUICK_SETTINGS.get(profile, {}) if mode == "quick" else {}), **written}
