"""What collecting a large matrix costs, against a plain parametrized suite of the same size.

Collects 10,000 cells (100 models × 1 quantization × 100 variants) with ``pytest --collect-only -q``, and beside them
10,000 plain tests with the same ids, parametrized with equal frozen dataclasses and ``-p no:llmbench``; then 1,000
cells (10 models × 100 variants), to see how the cost grows. Each collection is a process of its own, the three take
turns, and what is compared is the median, over the rounds, of the ratio within one round: a machine that slows down
for a while slows all three. Nothing is downloaded and no server starts.

Bounds: at most 1.5 times the time and 2 times the peak memory of the plain suite; ten times the cells in at most 11
times the time. Exit status: 0 inside the bounds, 1 outside, 2 when something other than the wanted tests was collected.

    python benchmarks/collection.py [--runs N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
MODELS, SMALL_MODELS, VARIANTS = 100, 10, 100
MAX_TIME_RATIO = 1.5
MAX_MEMORY_RATIO = 2.0
MAX_GROWTH = 11.0
# macOS counts bytes, everyone else kibibytes.
RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024

PLAIN_SUITE = """\
from dataclasses import dataclass

import pytest


@dataclass(frozen=True, slots=True)
class Cell:
    model: str
    quantization: str
    profile: str
    variant: str


CELLS = [
    Cell(f"model-{{model:03}}", "Q4_K_M", "interactive", f"v{{variant:03}}")
    for model in range({models})
    for variant in range({variants})
]


@pytest.mark.parametrize("cell", CELLS, ids=[f"{{c.model}}-{{c.quantization}}-{{c.variant}}" for c in CELLS])
def test_interactive(cell):
    pass
"""


@dataclass
class Case:
    """One suite, and what each collection of it took."""

    name: str
    folder: Path
    tests: int
    options: list[str]
    seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "pytest", "--collect-only", "-q", *self.options]


@dataclass(frozen=True)
class Comparison:
    """A ratio, and the most it may be."""

    name: str
    ratio: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.ratio <= self.bound


def write_matrix(folder: Path, models: int) -> None:
    """A benchmark folder as a user has it: two YAML files, one line in the root conftest, one suite file."""
    configs, suites = folder / "configs", folder / "suites"
    configs.mkdir(parents=True)
    suites.mkdir()
    variants = "".join(f"  - {{id: v{index:03}, ctx_size: {1024 + index}}}\n" for index in range(VARIANTS))
    (configs / "config.yaml").write_text(f"profiles: [interactive]\nvariants:\n{variants}", encoding="utf-8")
    entries = "".join(
        f"  - name: model-{index:03}\n    size: 1B\n    files: {{Q4_K_M: model-{index:03}.gguf}}\n"
        for index in range(models)
    )
    (configs / "models.yaml").write_text(f"models:\n{entries}", encoding="utf-8")
    (folder / "conftest.py").write_text('pytest_plugins = ["pytest_llmbench.suite"]\n', encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")  # settles the rootdir
    shutil.copy(REPOSITORY / "suites" / "test_interactive.py", suites)


def write_plain(folder: Path, models: int) -> None:
    suites = folder / "suites"
    suites.mkdir(parents=True)
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (suites / "test_interactive.py").write_text(PLAIN_SUITE.format(models=models, variants=VARIANTS), encoding="utf-8")


def environment() -> dict[str, str]:
    """Ours, without what would change a pytest run or keep it from caching bytecode."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHONDONTWRITE"))}


def check(case: Case) -> None:
    """Collect once, unmeasured: it must be the wanted number of tests, and bytecode gets cached."""
    done = subprocess.run(case.command, cwd=case.folder, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode or f"\n{case.tests} tests collected" not in done.stdout:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        print(f"{case.name}: {case.tests} tests should have been collected, but:\n{tail}", file=sys.stderr)
        sys.exit(2)


def collect(case: Case) -> None:
    """Collect once and note time and peak memory. (This process must stay smaller: a child starts at its peak.)"""
    start = time.perf_counter()
    process = subprocess.Popen(
        case.command, cwd=case.folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen did not see it end
    if process.returncode:
        print(f"{case.name}: pytest ended with {process.returncode}", file=sys.stderr)
        sys.exit(2)
    case.seconds.append(elapsed)
    case.peak_mib.append(usage.ru_maxrss * RSS_UNIT_BYTES / 2**20)


def ratio(above: list[float], below: list[float]) -> float:
    """Median, over the rounds, of the ratio within a round."""
    return median(a / b for a, b in zip(above, below, strict=True))


def measure(runs: int) -> tuple[list[Case], list[Comparison]]:
    with TemporaryDirectory(prefix="llmbench-collection-") as temporary:
        root = Path(temporary)
        ours = Case("matrix", root / "matrix", MODELS * VARIANTS, [])
        plain = Case("plain", root / "plain", MODELS * VARIANTS, ["-p", "no:llmbench"])
        small = Case("small matrix", root / "small", SMALL_MODELS * VARIANTS, [])
        write_matrix(ours.folder, MODELS)
        write_plain(plain.folder, MODELS)
        write_matrix(small.folder, SMALL_MODELS)
        cases = [ours, plain, small]
        for case in cases:
            check(case)
        for index in range(runs):
            for case in cases if index % 2 == 0 else reversed(cases):
                collect(case)
    return cases, [
        Comparison("time, matrix / plain", ratio(ours.seconds, plain.seconds), MAX_TIME_RATIO),
        Comparison("peak memory, matrix / plain", ratio(ours.peak_mib, plain.peak_mib), MAX_MEMORY_RATIO),
        Comparison("time, matrix / small matrix", ratio(ours.seconds, small.seconds), MAX_GROWTH),
    ]


def as_json(cases: list[Case], comparisons: list[Comparison]) -> dict[str, Any]:
    return {
        "benchmark": "collection",
        "cases": [
            {
                "name": case.name,
                "tests": case.tests,
                "median_seconds": median(case.seconds),
                "median_peak_mib": median(case.peak_mib),
                "seconds": case.seconds,
                "peak_mib": case.peak_mib,
            }
            for case in cases
        ],
        "comparisons": [
            {"name": c.name, "median_ratio": c.ratio, "bound": c.bound, "holds": c.holds} for c in comparisons
        ],
        "holds": all(c.holds for c in comparisons),
    }


def print_tables(cases: list[Case], comparisons: list[Comparison]) -> None:
    print(f"{'suite':<14}{'tests':>8}{'median s':>11}{'range s':>16}{'peak MiB':>11}   of {len(cases[0].seconds)} runs")
    for case in cases:
        spread = f"{min(case.seconds):.2f} to {max(case.seconds):.2f}"
        print(f"{case.name:<14}{case.tests:>8,}{median(case.seconds):>11.2f}{spread:>16}{median(case.peak_mib):>11.1f}")
    print(f"\n{'comparison':<30}{'ratio':>9}{'at most':>9}")
    for c in comparisons:
        print(f"{c.name:<30}{c.ratio:>9.2f}{c.bound:>9.1f}   {'ok' if c.holds else 'MISSED'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="collections of each suite (default: 5)")
    parser.add_argument("--json", action="store_true", help="write JSON instead of tables")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    cases, comparisons = measure(arguments.runs)
    if arguments.json:
        print(json.dumps(as_json(cases, comparisons), indent=2))
    else:
        print_tables(cases, comparisons)
    return 0 if all(c.holds for c in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
