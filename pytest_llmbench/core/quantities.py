"""How sizes are shown to people."""

from __future__ import annotations


def gigabytes(size_bytes: int) -> str:
    """Bytes in decimal gigabytes, as disks and models are sold: ``14.0 GB``, with more digits below one."""
    value = size_bytes / 1e9
    return f"{value:.1f} GB" if value >= 1 else f"{value:.3f} GB" if value >= 0.001 else f"{size_bytes} bytes"
