"""Energy counters, on fake trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llmbench.telemetry.rapl import Rapl
from tests.unit.telemetry.trees import write

NAME = "package_energy_joules_total"


def zone(root: Path, folder: str, name: str, microjoules: object, most: int = 1_000_000_000) -> None:
    files = {"name": name, "energy_uj": microjoules, "max_energy_range_uj": most}
    write(root / "class/powercap" / folder, files)


def test_packages_and_nothing_else(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 7_500_000)
    zone(tmp_path, "intel-rapl:2", "psys", 99_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)
    write(tmp_path / "class/powercap/intel-rapl", {"enabled": 1})
    source = Rapl(sys=tmp_path)
    assert source.read() == {NAME: pytest.approx(12.5)}
    assert source.facts() == {"energy_packages": "package-0, package-1"}
    assert source.why_not == {}


def test_a_counter_that_starts_again(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 990_000_000)
    source = Rapl(sys=tmp_path)
    first = source.read()[NAME]
    for microjoules, risen in ((999_000_000, 9), (4_000_000, 14), (4_000_000, 14), (500_000_000, 510), (1, 1010)):
        zone(tmp_path, "intel-rapl:0", "package-0", microjoules)
        assert source.read()[NAME] - first == pytest.approx(risen, abs=1e-5)


def test_for_root_only(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (tmp_path / "class/powercap/intel-rapl:0/energy_uj").unlink()  # root, as which tests may run, reads everything
    source = Rapl(sys=tmp_path)
    assert (source.read(), source.facts()) == ({}, {})
    assert "chmod" in source.why_not[NAME]


def test_none(tmp_path: Path) -> None:
    source = Rapl(sys=tmp_path)
    assert (source.read(), source.facts()) == ({}, {})
    assert "virtual machine" in source.why_not[NAME]


def test_one_that_is_lost_meanwhile(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    zone(tmp_path, "intel-rapl:1", "package-1", 1)
    source = Rapl(sys=tmp_path)
    write(tmp_path / "class/powercap/intel-rapl:1", {"energy_uj": ""})
    assert source.read() == {}
