"""How a report gets onto the disk: whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

PARTIAL = ".partial"


@contextmanager
def replaced(path: Path, encoding: str = "utf-8") -> Iterator[TextIO]:
    """A file to write to, which takes the place of ``path`` when all is written: a full disk spoils no earlier report.

    Lines end as they are written. What the encoding does not know is written as a question mark.

    Raises:
        OSError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with temporary.open("w", encoding=encoding, errors="replace", newline="") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
