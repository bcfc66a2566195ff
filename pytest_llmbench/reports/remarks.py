"""What a reader of a run's numbers has to know of the run as a whole."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_llmbench.core.records import CellRecord


def description_of(folder: Path) -> dict[str, Any]:
    """``run.json``; nothing where it can not be read."""
    with suppress(OSError, ValueError):
        read = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else {}
    return {}


def remarks(folder: Path, records: Collection[CellRecord]) -> list[str]:
    """Sentences, from ``run.json``: that cells are missing, that the configuration was changed in between."""
    description, lines = description_of(folder), []
    selected = description.get("selected_cells")
    if isinstance(selected, int) and selected > len(records):
        lines.append(
            f"the run was cut short: {selected - len(records)} of {selected} cells have no record; "
            f"--llmbench-resume {folder.resolve().name} finishes them"
        )
    for resumed in description.get("resumed") or []:
        if differences := resumed.get("differences"):
            changes = "; ".join(map(str, differences))
            lines.append(f"resumed at {resumed.get('at')} with another configuration, so cells differ in: {changes}")
    return lines
