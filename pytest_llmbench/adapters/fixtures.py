"""The fixtures of a benchmark: ``cell``, ``server``, ``llm``."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from pytest_llmbench.adapters.cell_run import CellRun
from pytest_llmbench.adapters.collection import cell_of
from pytest_llmbench.adapters.llm import LLM
from pytest_llmbench.adapters.memory import check_before_download, check_before_load, observe, watch
from pytest_llmbench.adapters.progress import shown_progress
from pytest_llmbench.adapters.server_choice import (
    ServerChoice,
    choose_server,
    refuse_the_same_again,
    smaller_context,
)
from pytest_llmbench.adapters.state import SUITE_KEY, Suite
from pytest_llmbench.adapters.workers import say, tell_sensors
from pytest_llmbench.backends.base import RunningServer, StartRequest
from pytest_llmbench.calibration import quick_calibration
from pytest_llmbench.core.cell import Cell, ServerSpec
from pytest_llmbench.core.records import Reason
from pytest_llmbench.core.stress_selection import STRESS
from pytest_llmbench.errors import CellError, DoesNotFit, ModelNotDownloaded, SameAsAnother, ServerError
from pytest_llmbench.runtime.devices import CPUS
from pytest_llmbench.runtime.modelstore.store import Progress
from pytest_llmbench.telemetry.process_tree import bytes_read_by

logger = logging.getLogger(__name__)
RUN_KEY = pytest.StashKey[CellRun]()


@pytest.fixture
def cell() -> Cell:
    """The cell a test measures; comes from the matrix through ``@pytest.mark.llmbench(profile=…)``."""
    pytest.fail(
        "mark the test with @pytest.mark.llmbench(profile='interactive') to run it over the matrix", pytrace=False
    )


@pytest.fixture
def server(request: pytest.FixtureRequest, cell: Cell) -> Iterator[RunningServer]:
    """The running server of the cell, with the exclusive right to measure on its device."""
    suite = request.config.stash[SUITE_KEY]
    run = request.node.stash[RUN_KEY]
    try:
        run.server = _provide(suite, cell, run, request.config)
    except (ModelNotDownloaded, DoesNotFit, SameAsAnother) as exc:
        run.skip_reason = Reason(code=exc.code, message=exc.message, evidence=exc.evidence)
        pytest.skip(exc.message)
    try:
        yield run.server
    finally:
        observe(run)


@pytest.fixture
def llm(request: pytest.FixtureRequest, server: RunningServer) -> LLM:  # noqa: ARG001 -- it has to run
    """The model of the cell, ready to be asked and measured."""
    return LLM(request.config.stash[SUITE_KEY], request.node.stash[RUN_KEY])


def _provide(suite: Suite, cell: Cell, run: CellRun, config: pytest.Config) -> RunningServer:
    spec, combination = suite.spec(cell), suite.matrix.of(cell)
    suite.watches.begin(lambda text: say(config, suite, text))
    suite.sensing.begin(suite.file_sample, lambda sensors: tell_sensors(config, suite, sensors))
    suite.folder.require_space()
    if not suite.pool.holds(spec):
        suite.let_go()  # what it takes is not free until it is gone
    waits_for = _what_waits(suite, spec)
    _import_what_judging_needs()
    if waits_for == "all":
        _take_device(suite, spec, run, config)
        with run.phase("calibrate"):
            _calibrate_once(suite)
    choice = choose_server(suite, cell)
    with shown_progress(config) as progress:
        model_path: Path | None = None
        if spec.model_file is not None:
            check_before_download(suite, run, choice.spec)
            with run.phase("fetch"):
                model_path, run.model_file = suite.store.fetch(combination.model, cell.quantization, progress)
            choice = choose_server(suite, cell)  # the header is there now
        refuse_the_same_again(suite, cell, choice)
        if waits_for == "start":
            _take_device(suite, spec, run, config)
        if spec.model_file is not None:
            try:
                check_before_load(suite, run, choice.spec)
            except DoesNotFit:
                if waits_for != "measuring":
                    raise
                _take_device(suite, spec, run, config)  # what another worker measures on is gone then
                choice = choose_server(suite, cell)
                check_before_load(suite, run, choice.spec)
        suite.watches.begin_cell(run)
        suite.sensing.begin_cell(run.nodeid)
        running = _start(suite, run, choice, model_path, progress)
    waited_seconds = run.waited_seconds
    _take_device(suite, run.spec or spec, run, config)
    _alone_where_it_computes(suite, running, run, config)
    if run.waited_seconds > waited_seconds:
        suite.sensing.begin_cell(run.nodeid)  # anew: what was sampled meanwhile is of what others measured
    watch(suite, run, running)
    return running


def _start(
    suite: Suite, run: CellRun, choice: ServerChoice, model_path: Path | None, progress: Progress
) -> RunningServer:
    """The running server of a cell, started if need be; with a smaller context where it turns out to have no larger."""
    combination = suite.matrix.of(run.cell)

    def lease(choice: ServerChoice) -> RunningServer:
        spec = choice.spec
        request = StartRequest(
            spec,
            model_path,
            suite.folder.logs / spec.label,
            quantization=combination.quantization,
            rootdir=suite.rootdir,
            may_download=suite.store.may_download,
            progress=progress.step,
        )
        run.spec, run.refused_sizes = spec, choice.refused
        runs_already = suite.pool.holds(spec)
        with run.phase("load"):
            running = suite.pool.lease(spec, lambda: suite.backends[spec.kind].start(request))
        if not runs_already and running.info.pid is not None:
            run.load_read_bytes = bytes_read_by(running.info.pid)
        return running

    def reload() -> RunningServer:
        suite.pool.release()
        return lease(choice)

    try:
        running = lease(choice)
    except ServerError as exc:
        smaller = smaller_context(suite, run.cell, choice, exc)
        if smaller is None:
            raise
        choice = smaller
        check_before_load(suite, run, choice.spec)  # what was predicted was of the larger one
        running = lease(choice)
    run.reload = reload if running.info.load_seconds is not None or choice.spec.kind == "ollama" else None
    return running


def _what_waits(suite: Suite, spec: ServerSpec) -> Literal["all", "start", "measuring"]:
    """What this cell does not begin before its device is free; ``measurement.overlap`` allows to begin sooner.

    Nothing may begin before the run is calibrated, and a server that will use a leased GPU has to know which.
    """
    overlap = suite.config.measurement.overlap
    if overlap == "none" or (suite.config.measurement.calibrate and not suite.folder.is_calibrated):
        return "all"
    return "start" if overlap == "downloads" or suite.device.is_chosen_by_lease(spec) else "measuring"


def _import_what_judging_needs() -> None:
    """Before a device is taken: seconds of work, which would fall into what others measure, or into this cell."""
    import scipy.stats  # noqa: F401


def _take_device(suite: Suite, spec: ServerSpec, run: CellRun, config: pytest.Config) -> None:
    """Have a device for a server; the one it was started on, or moved to, while it runs."""
    if not (suite.pool.holds(spec) and suite.device.name is not None):
        began = time.monotonic()
        suite.device.take(spec, lambda text: say(config, suite, text))
        run.waited_seconds += time.monotonic() - began
    run.device = suite.device.name


def _alone_where_it_computes(suite: Suite, running: RunningServer, run: CellRun, config: pytest.Config) -> None:
    """A server that was to use a GPU and computes on the CPUs, at least in part, has to have these to itself (P25)."""
    if "partial_gpu_offload" in running.flags and suite.device.name != CPUS:
        began = time.monotonic()
        suite.device.take_cpus(lambda text: say(config, suite, text))
        run.waited_seconds += time.monotonic() - began
        run.device = suite.device.name


def _calibrate_once(suite: Suite) -> None:
    """Measure how precise timing is here, once a run, while this process holds the device and nothing else runs."""
    if not suite.config.measurement.calibrate or suite.folder.is_calibrated:
        return
    suite.pool.release()
    try:
        calibration = quick_calibration()
    except CellError as exc:
        logger.warning("timing could not be calibrated: %s", exc.message)
        return
    suite.folder.keep_calibration(calibration.model_dump(mode="json"))


def release_before(item: pytest.Item, nextitem: pytest.Item | None, suite: Suite) -> None:
    """Stop the running server, and give the device back, unless the next test needs them too.

    A worker whose next cell waits for all others (see :mod:`~pytest_llmbench.adapters.scheduler`) must not keep what
    these may be waiting for.
    """
    ended, following = cell_of(item), cell_of(nextitem)
    waits = suite.controller is not None and _is_stress(following) and not _is_stress(ended)
    if following is None or waits or not suite.pool.holds(suite.spec(following)):
        suite.let_go()


def _is_stress(cell: Cell | None) -> bool:
    return cell is not None and cell.profile == STRESS
