"""A run as its files tell it: what every report is made of, at the end of a run and whenever it is asked for again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pytest_llmbench.core.recommendations import Recommendations
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.runtime.run_folder import read_cells


@dataclass(frozen=True)
class RunData:
    """One run.

    Attributes:
        folder: where its files are, and reports are written to. Nothing of its path gets into one, but of a run that
            tells no id, its name.
        description: ``run.json``; empty where it can not be read.
        records: of its cells, as they were recorded.
    """

    folder: Path
    description: Mapping[str, Any]
    records: Sequence[CellRecord]

    @classmethod
    def read(cls, folder: Path) -> RunData:
        """A run's folder. Raises RecordError as :func:`~pytest_llmbench.runtime.run_folder.read_cells`."""
        return cls(folder, description_of(folder), tuple(read_cells(folder)))

    @property
    def run_id(self) -> str:
        """As it was given; a folder may have another name by now, such as that of an artefact of a CI job."""
        told = self.description.get("run_id")
        return told if isinstance(told, str) and told else self.folder.resolve().name

    @cached_property
    def recommendations(self) -> Recommendations:
        """What to run for which use, and why."""
        from pytest_llmbench.core.recommend import recommend, use_cases_of

        return recommend(self.records, use_cases_of(self.description))

    def lines(self, table: Literal["requests", "telemetry"]) -> Iterator[dict[str, Any]]:
        """The objects of ``<table>.jsonl``, one at a time; what is no JSON object is passed over."""
        with suppress(OSError), (self.folder / f"{table}.jsonl").open("rb") as file:
            for line in file:
                if isinstance(found := _parsed(line), dict):
                    yield found

    @cached_property
    def conclusions(self) -> list[str]:
        """What the cells come to together, in sentences."""
        from pytest_llmbench.reports.conclusions import conclusions

        return conclusions(self)


def _parsed(line: bytes) -> Any:
    """A line of JSON; None for what is none. What the fast reader refuses, lone surrogates above all, another takes."""
    import orjson

    try:
        return orjson.loads(line)
    except ValueError:
        with suppress(ValueError, RecursionError):
            return json.loads(line)
    return None


def description_of(folder: Path) -> dict[str, Any]:
    """``run.json``; nothing where it can not be read."""
    with suppress(OSError, ValueError):
        read = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else {}
    return {}
