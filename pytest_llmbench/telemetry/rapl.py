"""Energy of the CPU packages by the counters of RAPL (Intel, and AMD since Zen), as Linux shows them in powercap."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pytest_llmbench.errors import Primitive
from pytest_llmbench.telemetry.files import names_in, read_integer, read_word

_VALUE = "package_energy_joules_total"
_NO_COUNTER = (
    "no energy counter of the CPU (RAPL): this is a virtual machine or another kind of processor, or the driver is not "
    "loaded; on a machine of your own try: sudo modprobe intel_rapl_msr"
)


class Rapl:
    """All packages together. The zones below them (cores, memory) and beside them (psys) are not counted.

    A counter starts again at zero after ``max_energy_range_uj``, some ten minutes at full power. That is made good,
    if it is read at least that often.

    Args:
        sys: where sysfs is mounted.
    """

    name = "RAPL"

    def __init__(self, *, sys: Path = Path("/sys")) -> None:
        zones = [_Zone(folder) for folder in _packages(sys / "class" / "powercap")]
        unreadable = [zone for zone in zones if zone.joules() is None]
        self._zones = zones if not unreadable else []
        self.why_not: dict[str, str] = {}
        if unreadable:
            self.why_not[_VALUE] = (
                f"{unreadable[0].file} may be read by root only; to allow it until the next start: "
                "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
            )
        elif not zones:
            self.why_not[_VALUE] = _NO_COUNTER

    def read(self) -> Mapping[str, float]:
        """See :class:`~pytest_llmbench.telemetry.base.Source`."""
        joules = [zone.joules() for zone in self._zones]
        if not joules or None in joules:
            return {}
        return {_VALUE: sum(one for one in joules if one is not None)}

    def facts(self) -> Mapping[str, Primitive]:
        """Whose energy it is."""
        return {"energy_packages": ", ".join(zone.name for zone in self._zones)} if self._zones else {}


class _Zone:
    """One counter, in µJ, made to go on where it starts again."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "energy_uj"
        self.name = read_word(folder / "name") or folder.name
        self._range_uj = read_integer(folder / "max_energy_range_uj") or 0
        self._last_uj: int | None = None
        self._added_uj = 0

    def joules(self) -> float | None:
        now_uj = read_integer(self.file)
        if now_uj is None:
            return None
        if self._last_uj is not None and now_uj < self._last_uj:
            self._added_uj += self._range_uj
        self._last_uj = now_uj
        return (self._added_uj + now_uj) / 1e6


def _packages(powercap: Path) -> list[Path]:
    """``intel-rapl:0`` and so on, whatever the maker; ``intel-rapl-mmio`` shows the same packages again."""
    found = []
    for name in names_in(powercap):
        kind, _, number = name.partition(":")
        is_package = (read_word(powercap / name / "name") or "").startswith("package")
        if kind == "intel-rapl" and number.isdecimal() and is_package:
            found.append(powercap / name)
    return found
