"""What a reader of a run's numbers has to know of the run as a whole."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llmbench.reports.run_data import RunData


def remarks(run: RunData) -> list[str]:
    """Sentences, from ``run.json``: that cells are missing, that the configuration was changed in between."""
    description, records, lines = run.description, run.records, []
    selected = description.get("selected_cells")
    if isinstance(selected, int) and selected > len(records):
        missing = selected - len(records)
        lines.append(
            f"the run was cut short: {missing} of {selected} cells {'has' if missing == 1 else 'have'} no record; "
            f"--llmbench-resume {run.run_id} finishes them"
        )
    resumptions = description.get("resumed")
    for resumed in resumptions if isinstance(resumptions, list) else ():
        differences = resumed.get("differences") if isinstance(resumed, Mapping) else None
        if differences and isinstance(differences, list):
            changes = "; ".join(map(str, differences))
            lines.append(f"resumed at {resumed.get('at')} with another configuration, so cells differ in: {changes}")
    return lines + _about_the_baseline(run)


def _about_the_baseline(run: RunData) -> list[str]:
    """That it has none of the cells, and in what its run was made otherwise."""
    baseline = run.description.get("baseline")
    if not isinstance(baseline, Mapping):
        return []
    name = f"the baseline, run {baseline.get('run_id')},"
    if not any(record.comparisons for record in run.records):
        return [f"{name} has none of the cells that were measured, so nothing was compared"]
    told = baseline.get("differences")
    return [f"{name} was made otherwise: {'; '.join(map(str, told))}"] if isinstance(told, list) and told else []
