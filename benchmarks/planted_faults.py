"""Faults planted into a server: which of them the profiles find, and what they find where nothing is wrong.

A server that drifts (``tests/servers/drifting.py``) runs in a process of its own and counts words; everything else is
as in a run: the client, the profile, the memory that is read of the server's process. Each fault is planted several
times with another seed of noise; clean servers are measured as often as ``--clean`` says, per profile. The noise of the
machine that this runs on comes on top of the server's own.

  leak        batch    1 MB more with every request, beside 20 MB that are touched for the first time
  slow-down   batch    every document takes 1 % of the first one's time longer than the one before
  heat        batch    from the middle on the rate is a fifth lower
  stall       batch    the stream of one document rests for 1.2 s
  heat        stress   the same, of answers that follow each other without a pause
  stall       stress   the same

The batches have 30 documents. What finds a fault is a flag or a count of the profile's own record, and the same flag of
a clean one is a false alarm. Exit status: 0 when everything planted was found and there was no false alarm, else 1.

    python benchmarks/planted_faults.py [--clean 50] [--times 5] [--only batch,stress]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # the server lies with the tests

from pytest_llmbench.core.settings import StressSettings  # noqa: E402
from pytest_llmbench.profiles.base import Measurement  # noqa: E402
from pytest_llmbench.profiles.stress import StressProfile  # noqa: E402
from tests.servers.drifting import DriftingServer, Faults  # noqa: E402
from tests.servers.drifting_machine import context_on, measure_batch  # noqa: E402

DOCUMENTS, TOKENS = 30, 32
STRESS_SECONDS = 4.0
Sign = Callable[[Measurement], bool]


@dataclass(frozen=True)
class Case:
    """A fault, and the sign of it in a measurement."""

    profile: str
    name: str
    faults: Faults
    sign: str


def flag(code: str) -> Sign:
    return lambda measurement: code in measurement.flags


def stalled(measurement: Measurement) -> bool:
    return bool(measurement.sampling["stalls"])


SIGNS: dict[str, Sign] = {"leaking": flag("leaking"), "degrading": flag("degrading"), "stalls": stalled}
CLEAN = {
    "batch": Faults(token_seconds=0.002, settling_mb=20),
    "stress": Faults(token_seconds=0.002),
}
CASES = (
    Case("batch", "leak", replace(CLEAN["batch"], leak_mb=1), "leaking"),
    Case("batch", "slow-down", replace(CLEAN["batch"], slower_percent=1), "degrading"),
    Case("batch", "heat", replace(CLEAN["batch"], hot_from=1 + DOCUMENTS // 2), "degrading"),
    Case("batch", "stall", replace(CLEAN["batch"], stalls={12: 1.2}), "stalls"),
    Case("stress", "heat", replace(CLEAN["stress"], hot_from=25), "degrading"),
    Case("stress", "stall", replace(CLEAN["stress"], stalls={12: 1.2}), "stalls"),
)


def stress(server: DriftingServer) -> Measurement:
    """Some seconds of it; heat is planted, so it does not end the run."""
    settings = StressSettings(
        duration=STRESS_SECONDS / 60, sample_interval=0.5, output_tokens=TOKENS, abort_temperature=150
    )
    return StressProfile().run(context_on(server, settings))


PROFILES: dict[str, Callable[[DriftingServer], Measurement]] = {
    "batch": lambda server: measure_batch(server, documents=DOCUMENTS, tokens=TOKENS),
    "stress": stress,
}


def measure(profile: str, faults: Faults) -> Measurement:
    with DriftingServer(faults) as server:
        return PROFILES[profile](server)


def main() -> int:
    """Plant, measure, and print the table. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clean", type=int, default=50, metavar="N", help="clean servers, per profile")
    parser.add_argument("--times", type=int, default=5, metavar="N", help="how often each fault is planted")
    parser.add_argument("--only", default=",".join(PROFILES), metavar="NAME,…", help="profiles")
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if unknown := set(only) - set(PROFILES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PROFILES)}")
    good = True
    print(f"{'profile':8} {'planted':10} {'sign':10} {'times':>5} {'found':>5}   seconds each")
    for case in (case for case in CASES if case.profile in only):
        began = time.monotonic()
        runs = [measure(case.profile, replace(case.faults, seed=seed)) for seed in range(arguments.times)]
        found = sum(map(SIGNS[case.sign], runs))
        seconds = (time.monotonic() - began) / max(1, len(runs))
        good &= found == len(runs)
        print(f"{case.profile:8} {case.name:10} {case.sign:10} {len(runs):5} {found:5}   {seconds:.1f}", flush=True)
    for profile in (name for name in PROFILES if name in only):
        began = time.monotonic()
        alarms = dict.fromkeys(SIGNS, 0)
        for seed in range(arguments.clean):
            measurement = measure(profile, replace(CLEAN[profile], seed=1000 + seed))
            for name, sign in SIGNS.items():
                if sign(measurement):
                    alarms[name] += 1
                    print(f"  false alarm, seed {1000 + seed}: {name}: {measurement.notes}", flush=True)
        seconds = (time.monotonic() - began) / max(1, arguments.clean)
        good &= not any(alarms.values())
        told = ", ".join(f"{name} {count}" for name, count in alarms.items())
        print(
            f"{profile:8} nothing               {arguments.clean:5}         {seconds:.1f}; false alarms: {told}",
            flush=True,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
