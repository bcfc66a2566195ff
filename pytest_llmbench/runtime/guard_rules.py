"""What is too much memory: the guard's figures, and the errors that tell a server's user why it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pytest_llmbench.core.quantities import BOUND_WORDS, gigabytes
from pytest_llmbench.errors import Primitive, ServerError
from pytest_llmbench.runtime.available import AvailableMemory, available_memory

_MIB = 2**20
# What is available is the kernel's estimate, and when little is left it is made of file pages in use, so 2 % are left
# alone. 128 MiB are what a server that allocates 1 GiB/s takes while it is noticed and killed; where they are more than
# 5 %, that is too much to give away. Beyond 1 GiB nothing is gained.
_FLOOR_SHARE, _FLOOR_BYTES, _FLOOR_BYTES_SHARE, _LARGEST_FLOOR_BYTES = 0.02, 128 * _MIB, 0.05, 1024 * _MIB
ALLOWED_SWAP_BYTES = 16 * _MIB  # what an idle corner of a server may lose without a measurement noticing
STALL_PERCENT = 25.0
_SMALLER = "choose a smaller context, quantization or model"


class Usage(Protocol):
    """Memory of a process: ``pytest_llmbench.telemetry.process_tree.Usage`` is one."""

    @property
    def total_bytes(self) -> int: ...
    @property
    def anonymous_bytes(self) -> int | None: ...
    @property
    def shmem_bytes(self) -> int | None: ...
    @property
    def swap_bytes(self) -> int | None: ...


class Named(Protocol):
    """As much of a server as a message needs."""

    @property
    def pid(self) -> int: ...
    @property
    def name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Holding:
    """What processes hold that the kernel can not drop: anonymous and shared memory, resident and swapped out.

    Mapped files, such as the weights of a model, are left out, as a prediction's required memory leaves them out.
    ``is_exact`` is False where a system tells no such parts (macOS): then all resident memory stands in for it.
    """

    bytes: int
    anonymous_bytes: int
    shmem_bytes: int
    swap_bytes: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Left:
    """What may still be allocated of the machine, or of the tightest control group, before the kernel has to kill."""

    bound_by: Literal["machine", "cgroup"]
    bytes: int
    total_bytes: int
    folder: str | None = None  # of the control group

    @property
    def floor_bytes(self) -> int:
        """What has to be left: 2 % and at least 128 MiB, but no more than 1 GiB, nor than 5 % for these 128 MiB."""
        least = min(_FLOOR_BYTES, _FLOOR_BYTES_SHARE * self.total_bytes)
        return int(min(_LARGEST_FLOOR_BYTES, max(_FLOOR_SHARE * self.total_bytes, least)))

    @property
    def headroom_bytes(self) -> int:
        """How much more can be allocated before that is touched; negative where it was."""
        return self.bytes - self.floor_bytes


def held_by(usages: Iterable[Usage]) -> Holding:
    """What these processes hold together. What several of them share counts for each, so it may be less."""
    anonymous = shmem = swap = stand_in = 0
    is_exact = True
    for usage in usages:
        if usage.anonymous_bytes is None or usage.shmem_bytes is None:
            is_exact = False
            stand_in += usage.total_bytes
        else:
            anonymous += usage.anonymous_bytes
            shmem += usage.shmem_bytes
        swap += usage.swap_bytes or 0
    return Holding(anonymous + shmem + swap + stand_in, anonymous, shmem, swap, is_exact)


def memory_left(ask: Callable[[], AvailableMemory] = available_memory) -> tuple[Left, ...]:
    """Of the machine, and of the tightest control group around us where any has a limit.

    Unlike before a load, all cached file pages of the group count as free: the kernel drops them, also the mapped
    weights of a server that works, before it kills. What that costs shows as pressure.
    """
    available = ask()
    details = available.details
    left = [Left("machine", details["machine_available"], details["machine_total"])]
    if available.cgroup is not None:
        active = _active_file_bytes(Path(available.cgroup))
        free = min(details["cgroup_available"] + active, details["cgroup_limit"])
        left.append(Left("cgroup", free, details["cgroup_limit"], available.cgroup))
    return tuple(left)


def processes_of(folder: str) -> Iterator[int]:
    """The processes in a control group and in those below it."""
    for file in Path(folder).rglob("cgroup.procs"):
        try:
            text = file.read_text(encoding="ascii")
        except OSError:  # the group has been removed, or is threaded
            continue
        yield from (int(word) for word in text.split() if word.isdecimal())


def over_limit(server: Named, holding: Holding, limit_bytes: int) -> ServerError:
    """It holds more than ``limits.max_memory_gb``."""
    return ServerError(
        "memory_exhausted",
        f"{_who(server)} was stopped: it held {_amount(holding)}, more than the {_precisely(limit_bytes)} of "
        f"{BOUND_WORDS['max_memory_gb']}; {_SMALLER}, or raise that limit",
        {**_evidence(server, holding), "limit_bytes": limit_bytes, "bound_by": "max_memory_gb"},
    )


def almost_full(server: Named, holding: Holding, left: Left) -> ServerError:
    """There is too little left for the kernel, because of it."""
    of = "this machine" if left.bound_by == "machine" else "this control group"
    return ServerError(
        "memory_exhausted",
        f"{_who(server)} was stopped before the kernel would have to: only {gigabytes(left.bytes)} of the "
        f"{gigabytes(left.total_bytes)} of {of} were left, where {gigabytes(left.floor_bytes)} are kept free, and it "
        f"held {_amount(holding)}; {_SMALLER}, or end what else uses memory",
        {
            **_evidence(server, holding),
            "limit_bytes": max(0, holding.bytes + left.headroom_bytes),
            "bound_by": left.bound_by,
            "available_bytes": left.bytes,
            "floor_bytes": left.floor_bytes,
            "total_bytes": left.total_bytes,
        },
    )


def stalled(server: Named, holding: Holding, percent: float, source: str) -> ServerError:
    """The kernel spends its time on finding memory, because of it."""
    of = "of this machine" if source == "machine" else "of our control group"
    return ServerError(
        "memory_exhausted",
        f"{_who(server)} was stopped: in {percent:.0f} % of the last 10 s all processes {of} waited for memory "
        f"(at most {STALL_PERCENT:.0f} % are borne), and it held {_amount(holding)}; {_SMALLER}, or end what else uses "
        "memory",
        {
            **_evidence(server, holding),
            "limit_bytes": None,
            "bound_by": "pressure",
            "pressure_percent": percent,
            "pressure_limit_percent": STALL_PERCENT,
            "pressure_source": source,
        },
    )


def swapping(server: Named, holding: Holding, swapped_bytes: int, machine_bytes: int | None) -> ServerError:
    """A part of it was swapped out while a cell ran."""
    return ServerError(
        "swapping",
        f"{_who(server)} was stopped: {gigabytes(swapped_bytes)} of its memory were swapped out since the cell began "
        f"(at most {gigabytes(ALLOWED_SWAP_BYTES)} are borne), so its speed is that of the disk; {_SMALLER}, end what "
        "else uses memory, or set limits.allow_swap: true to have it measured and flagged",
        {
            **_evidence(server, holding),
            "limit_bytes": ALLOWED_SWAP_BYTES,
            "bound_by": "swap",
            "swapped_bytes": swapped_bytes,
            "machine_swapped_bytes": machine_bytes,
        },
    )


def _who(server: Named) -> str:
    return f"the server ({server.name}, process {server.pid})"


def _amount(holding: Holding) -> str:
    swapped = f", {_precisely(holding.swap_bytes)} of it swapped out" if holding.swap_bytes else ""
    return f"{_precisely(holding.bytes)} of memory{swapped}"


def _precisely(size_bytes: int) -> str:
    """Near a limit one decimal says nothing."""
    return f"{size_bytes / 1e9:.3f} GB"


def _evidence(server: Named, holding: Holding) -> dict[str, Primitive]:
    return {
        "pid": server.pid,
        "observed_bytes": holding.bytes,
        "anonymous_bytes": holding.anonymous_bytes,
        "shmem_bytes": holding.shmem_bytes,
        "swap_bytes": holding.swap_bytes,
    }


def _active_file_bytes(folder: Path) -> int:
    """File pages in recent use; version 1 counts those of the groups below apart."""
    try:
        text = (folder / "memory.stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    sizes = dict(line.split(" ", 1) for line in text.splitlines() if line.count(" ") == 1)
    found = sizes.get("total_active_file", sizes.get("active_file", "0"))
    return int(found) if found.isdecimal() else 0
