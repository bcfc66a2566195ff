"""What a reader of a run's numbers has to know of the run as a whole."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llmbench.reports.run_data import RunData


def remarks(run: RunData) -> list[str]:
    """Sentences, from ``run.json``: that cells are missing, that the configuration was changed in between."""
    description, records, lines = run.description, run.records, []
    selected = description.get("selected_cells")
    if isinstance(selected, int) and selected > len(records):
        lines.append(
            f"the run was cut short: {selected - len(records)} of {selected} cells have no record; "
            f"--llmbench-resume {run.run_id} finishes them"
        )
    for resumed in description.get("resumed") or []:
        if differences := resumed.get("differences"):
            changes = "; ".join(map(str, differences))
            lines.append(f"resumed at {resumed.get('at')} with another configuration, so cells differ in: {changes}")
    return [*lines, *_about_the_baseline(description.get("baseline"))]


def _about_the_baseline(baseline: object) -> list[str]:
    """In what the run that cells were compared with was made otherwise."""
    told = baseline.get("differences") if isinstance(baseline, Mapping) else None
    if not isinstance(baseline, Mapping) or not isinstance(told, list) or not told:
        return []
    return [f"the baseline, run {baseline.get('run_id')}, was made otherwise: {'; '.join(map(str, told))}"]
