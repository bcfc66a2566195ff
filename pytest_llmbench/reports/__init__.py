"""One file per format; each is derived from the records alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from pytest_llmbench.errors import RecordError
from pytest_llmbench.reports.csv_table import write_csv
from pytest_llmbench.reports.files import PARTIAL
from pytest_llmbench.reports.html_report import write_html
from pytest_llmbench.reports.json_report import write_json
from pytest_llmbench.reports.markdown import write_markdown
from pytest_llmbench.reports.run_data import RunData

logger = logging.getLogger(__name__)
WRITERS: dict[str, Callable[[RunData], Path]] = {
    "json": write_json,
    "csv": write_csv,
    "markdown": write_markdown,
    "html": write_html,
}


def write_reports(folder: Path, formats: Iterable[str]) -> list[Path]:
    """Write the derived reports of these formats, from a run's folder; returns their paths.

    The same bytes whenever it is called: nothing but the run's files is looked at, and no clock.

    A report that fails takes no other with it.

    Raises:
        RecordError: some could not be written; and as :meth:`RunData.read`.
    """
    run, written, failed = RunData.read(folder), [], []
    for name in dict.fromkeys(formats):
        try:
            written.append(WRITERS[name](run))
        except Exception as exc:  # whatever a record holds: the other reports do not depend on it
            logger.info("report %s of %s can not be written", name, folder, exc_info=exc)
            failed.append(_told(name, exc))
    if failed:
        again = f"llmbench report {folder.resolve().name} tries again"
        msg = f"these reports can not be written: {', '.join(failed)}; {again}"
        raise RecordError(msg)
    return written


def _told(name: str, exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.filename is not None:
        return f"{Path(exc.filename).name.removeprefix('.').removesuffix(PARTIAL)} ({exc.strerror})"
    return f"{name} ({type(exc).__name__}: {exc})"
