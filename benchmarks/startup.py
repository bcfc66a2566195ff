"""What it costs every other pytest run of an environment that pytest-llmbench is installed in it.

Runs a suite of one passing test that has nothing to do with benchmarks in two environments that differ in one thing:
folders of symbolic links to everything installed beside this interpreter, without pytest-llmbench and with it, put on
the path of ``python -S -m pytest``. (``-p no:llmbench`` would be no comparison: the entry point would still be found.)
The two run in pairs, in alternating order, and what is judged is the median of the differences within the pairs.

Bound: 15 ms. Exit status: 0 inside the bound, 1 outside, 2 when the plugin was not loaded in the one environment or
was in the other.

    python benchmarks/startup.py [--pairs N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import distribution
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pytest_llmbench
from pytest_llmbench.core.statistics import Interval, median_interval

MAX_MILLISECONDS = 15.0
LEAST_PAIRS = 6  # fewer have no 95 % interval
OURS = re.compile(r"pytest[_-]llmbench", re.IGNORECASE)


def link_environment(folder: Path, *, with_ours: bool) -> None:
    """Fill a folder with links to everything that is installed, with pytest-llmbench or without.

    Ours is written as a wheel would install it, whether or not it is installed so: ``.pth`` files, by which editable
    installs work, do nothing below ``-S``.
    """
    folder.mkdir()
    for site_packages in {Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))}:
        for entry in site_packages.iterdir():
            if not OURS.search(entry.name) and entry.name != "__pycache__":
                (folder / entry.name).symlink_to(entry)
    if not with_ours:
        return
    package, installed = Path(pytest_llmbench.__file__).parent, distribution("pytest-llmbench")
    (folder / package.name).symlink_to(package)
    info = folder / f"pytest_llmbench-{installed.version}.dist-info"
    info.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (info / name).write_text(installed.read_text(name) or "", encoding="utf-8")
    files = sorted(path.relative_to(package.parent) for path in package.rglob("*.py"))
    (info / "RECORD").write_text(
        "".join(f"{path.as_posix()},,\n" for path in files), encoding="utf-8"
    )  # pytest reads it


def command(*options: str) -> list[str]:
    return [sys.executable, "-S", "-m", "pytest", *options]


def environment(packages: Path) -> dict[str, str]:
    """Ours, without what would change a Python or pytest run, and with these packages.

    Bytecode goes beside them: through the links it would land in the real environment, and name paths of this one.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(packages), "PYTHONPYCACHEPREFIX": f"{packages}-bytecode"}


def check(suite: Path, packages: Path, *, with_ours: bool) -> None:
    """The plugin must be loaded, or must not; then one unmeasured run, so that bytecode gets cached."""
    shown = subprocess.run(
        command("--version", "--version"),
        cwd=suite,
        env=environment(packages),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    loaded = re.search(r"^\s*pytest-llmbench-\S+ at .*plugin\.py", shown.stdout, re.MULTILINE) is not None
    if shown.returncode or loaded != with_ours:
        state = "is" if loaded else "is not"
        print(f"with{'' if with_ours else 'out'} pytest-llmbench: the plugin {state} loaded:", file=sys.stderr)
        print(shown.stdout, file=sys.stderr)
        sys.exit(2)
    run(suite, packages)


def run(suite: Path, packages: Path) -> float:
    """Milliseconds that one run of the suite takes, from start to end of its process."""
    start = time.perf_counter()
    done = subprocess.run(
        command("-q"),
        cwd=suite,
        env=environment(packages),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    elapsed = 1000 * (time.perf_counter() - start)
    if done.returncode:
        print(f"pytest ended with {done.returncode} for a suite that passes", file=sys.stderr)
        sys.exit(2)
    return elapsed


def measure(pairs: int) -> tuple[list[float], list[float]]:
    """Times without and with pytest-llmbench, pair by pair."""
    without: list[float] = []
    with_ours: list[float] = []
    with TemporaryDirectory(prefix="llmbench-startup-") as temporary:
        root = Path(temporary)
        suite = root / "suite"
        suite.mkdir()
        (suite / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")  # settles the rootdir
        (suite / "test_unrelated.py").write_text("def test_unrelated():\n    assert 1 + 1 == 2\n", encoding="utf-8")
        sides = [(root / "without", without), (root / "with", with_ours)]
        for packages, times in sides:
            link_environment(packages, with_ours=times is with_ours)
            check(suite, packages, with_ours=times is with_ours)
        for index in range(pairs):
            for packages, times in sides if index % 2 == 0 else reversed(sides):
                times.append(run(suite, packages))
    return without, with_ours


def as_json(without: list[float], with_ours: list[float], difference: float, interval: Interval) -> dict[str, Any]:
    return {
        "benchmark": "startup",
        "pairs": len(without),
        "median_without_ms": median(without),
        "median_with_ms": median(with_ours),
        "median_ratio": median(b / a for a, b in zip(without, with_ours, strict=True)),
        "median_difference_ms": difference,
        "interval_95_ms": [interval.low, interval.high],
        "bound_ms": MAX_MILLISECONDS,
        "holds": difference <= MAX_MILLISECONDS,
        "interval_contains_bound": interval.low <= MAX_MILLISECONDS <= interval.high,
        "without_ms": without,
        "with_ms": with_ours,
    }


def print_table(result: dict[str, Any]) -> None:
    low, high = result["interval_95_ms"]
    print(f"one unrelated test, median of {result['pairs']} pairs")
    print(f"{'without pytest-llmbench':<26}{result['median_without_ms']:>9.1f} ms")
    print(f"{'with pytest-llmbench':<26}{result['median_with_ms']:>9.1f} ms")
    print(f"{'ratio':<26}{result['median_ratio']:>9.3f}")
    print(f"{'difference':<26}{result['median_difference_ms']:>9.1f} ms   95 % interval {low:.1f} to {high:.1f} ms")
    print(f"{'at most':<26}{result['bound_ms']:>9.1f} ms   {'ok' if result['holds'] else 'MISSED'}")
    if result["interval_contains_bound"]:
        print("The interval contains the bound, so this could come out the other way; more --pairs narrow it.")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20, metavar="N", help="pairs of runs (default: 20)")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    arguments = parser.parse_args()
    if arguments.pairs < LEAST_PAIRS:
        parser.error(f"--pairs must be at least {LEAST_PAIRS}, or there is no 95 % interval")
    without, with_ours = measure(arguments.pairs)
    differences = [b - a for a, b in zip(without, with_ours, strict=True)]
    interval = median_interval(differences)
    assert interval is not None
    result = as_json(without, with_ours, median(differences), interval)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print_table(result)
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
