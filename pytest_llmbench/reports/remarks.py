"""What a reader of a run's numbers has to know of the run as a whole."""

from __future__ import annotations

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
    return lines
