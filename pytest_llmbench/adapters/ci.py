"""Where a CI service offers a page for a job, the summary goes there, too."""

from __future__ import annotations

import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)
MAX_BYTES = 900_000  # GitHub drops a summary of more than 1 MiB, whole
_NOTE = "\n\n… the rest is left out here; `summary.md` of the run has it\n"


def append_job_summary(folder: Path) -> None:
    """Append a run's ``summary.md`` to the file that ``GITHUB_STEP_SUMMARY`` names; nothing where nothing does.

    What is in that file counts towards the limit. A summary that can not be written is told in the log, and is no
    reason for the run to fail.
    """
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if not target:
        return
    try:
        summary = (folder / "summary.md").read_bytes()
        with Path(target).open("ab") as file:
            file.write(_cut(summary, MAX_BYTES - file.tell()))
    except OSError as exc:
        logger.warning("the job summary can not be written: %s", exc)


def _cut(summary: bytes, room_bytes: int) -> bytes:
    """As many whole lines as there is room for."""
    if len(summary) <= room_bytes:
        return summary
    note = _NOTE.encode()
    room_bytes -= len(note)
    if room_bytes <= 0:
        return b""
    return summary[:room_bytes].rpartition(b"\n")[0] + note
