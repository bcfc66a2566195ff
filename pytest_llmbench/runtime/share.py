"""Where the shipped suites, configurations and data are: in an installed wheel, or beside the package in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def share_dir(name: str) -> Path:
    """The shipped folder ``suites``, ``configs`` or ``data``."""
    installed = _PACKAGE / "share" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
