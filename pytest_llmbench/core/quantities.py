"""How memory is told to people."""

from __future__ import annotations

# Parts of a prediction, and what bounds the memory that may be used, by their names in records.
PART_WORDS = {
    "weights_bytes": "weights",
    "repacked_bytes": "repacked copy",
    "kv_bytes": "KV cache",
    "recurrent_bytes": "recurrent state",
    "compute_bytes": "compute",
    "output_bytes": "output",
    "overhead_bytes": "overhead",
}
BOUND_WORDS = {
    "machine": "free on this machine now",
    "cgroup": "left in this control group",
    "max_memory_gb": "limits.max_memory_gb",
    "pressure": "stalled for want of memory",
}


def gigabytes(size_bytes: int) -> str:
    """Bytes in decimal gigabytes, as disks and models are sold: ``14.0 GB``, with more digits below one."""
    value = size_bytes / 1e9
    return f"{value:.1f} GB" if value >= 1 else f"{value:.3f} GB" if value >= 0.001 else f"{size_bytes} bytes"
