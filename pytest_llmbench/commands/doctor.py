"""``llmbench doctor``: is everything there that a run needs, and how precise is timing on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout

from pytest_llmbench.calibration import calibrate
from pytest_llmbench.commands.check import Check, absent, ok, problem
from pytest_llmbench.commands.doctor_machine import check_machine, check_software
from pytest_llmbench.commands.doctor_servers import check_models, check_servers
from pytest_llmbench.commands.setup import Setup, read_setup
from pytest_llmbench.commands.tables import console, print_calibration
from pytest_llmbench.core.calibration import Calibration
from pytest_llmbench.errors import CellError
from pytest_llmbench.reports.plain import plain
from pytest_llmbench.runtime import host

DOCTOR_VERSION = 1


def run(options: argparse.Namespace) -> int:
    """Run the command. Raises ConfigError for a configuration that can not be used."""
    setup = read_setup(Path.cwd(), options.config, options.models)
    checks, out = [], console()

    def note(check: Check) -> None:
        checks.append(check)
        if not options.json:
            out.print(plain(check.line()), soft_wrap=True)

    for check in _checks(setup):
        note(check)
    check, calibration = _calibrated(wanted=not options.no_calibration)
    note(check)
    if calibration is not None and not options.json:
        out.print()
        print_calibration(calibration)
    usable = all(check.state != "problem" for check in checks)
    if options.json:
        answer = {
            "schema_version": DOCTOR_VERSION,
            "usable": usable,
            "checks": [dataclasses.asdict(check) for check in checks],
            "calibration": calibration.model_dump(mode="json") if calibration is not None else None,
        }
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    return 0 if usable else 1


def _checks(setup: Setup) -> Iterator[Check]:
    yield from check_software()
    count = len(setup.matrix.combinations)
    rows = "1 combination" if count == 1 else f"{count} combinations"
    found = f"{setup.sources[0]} and {setup.sources[1]}: {rows} of models and variants in {setup.config.test_mode} mode"
    yield ok("configuration", found)
    yield from check_servers(setup)
    yield from check_models(setup)
    yield from check_machine()


def _calibrated(*, wanted: bool) -> tuple[Check, Calibration | None]:
    """How precise timing is, measured while nothing else measures here."""
    name = "timing"
    try:
        lock = host.device_lock()
        lock.acquire(timeout=0)
    except Timeout:
        return absent(name, "another benchmark is measuring here now", "run doctor again when it is done"), None
    except CellError as exc:
        return problem(name, exc.message), None
    try:
        if not wanted:
            return absent(name, "not measured; no other benchmark is running here"), None
        calibration = calibrate()
    except CellError as exc:
        return problem(name, exc.message), None
    finally:
        lock.release()
    found = f"measured for {calibration.duration_seconds:.0f} s; no other benchmark was running here"
    return ok(name, found), calibration
