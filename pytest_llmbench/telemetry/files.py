"""Small files of the kernel, read as cheaply as Python can: tens of microseconds each, in which others may run."""

from __future__ import annotations

import os
from pathlib import Path

_READ_BYTES = 65536
_MOST_BYTES = 1 << 20


def read_text(path: str | Path) -> str:
    """All of a file; empty where it does not exist, is not ours to read, or its driver fails just now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        parts = []
        size = 0
        while size < _MOST_BYTES and (part := os.read(fd, _READ_BYTES)):  # procfs gives long files a page at a time
            parts.append(part)
            size += len(part)
        return b"".join(parts).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def read_word(path: str | Path) -> str | None:
    """Its text without white space around it; None where there is none."""
    return read_text(path).strip() or None


def read_integer(path: str | Path) -> int | None:
    """The number it holds; None where it holds none."""
    try:
        return int(read_text(path))
    except ValueError:
        return None


def names_in(folder: str | Path) -> list[str]:
    """The names in a folder, sorted; none where there is no such folder."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 -- several times as fast as paths
    except OSError:
        return []
