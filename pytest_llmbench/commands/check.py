"""One thing that was checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "problem", "absent"]
SYMBOLS: dict[State, str] = {"ok": "✓", "problem": "✗", "absent": "–"}


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what was found, and what to do next.

    Attributes:
        state: ``problem`` where a run would fail; ``absent`` where it would only know or do less.
        advice: what to do, None where there is nothing to do, or where ``found`` says it.
    """

    name: str
    state: State
    found: str
    advice: str | None = None

    def line(self) -> str:
        """For people."""
        return f"{SYMBOLS[self.state]} {self.name}: {self.found}{f'; {self.advice}' if self.advice else ''}"


def ok(name: str, found: str, advice: str | None = None) -> Check:
    """It is as it should be."""
    return Check(name, "ok", found, advice)


def problem(name: str, found: str, advice: str | None = None) -> Check:
    """A run would fail of it."""
    return Check(name, "problem", found, advice)


def absent(name: str, found: str, advice: str | None = None) -> Check:
    """It is not there, or not ideal; a run works without."""
    return Check(name, "absent", found, advice)
