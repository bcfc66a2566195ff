"""The fixtures of a benchmark: ``cell``, ``server``, ``llm``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import BaseFileLock, Timeout

from pytest_llmbench.adapters.collection import cell_of
from pytest_llmbench.adapters.llm import LLM, CellRun
from pytest_llmbench.adapters.memory import check_before_download, check_before_load, observe, watch
from pytest_llmbench.adapters.progress import shown_progress, tell
from pytest_llmbench.adapters.setup import SUITE_KEY, Suite
from pytest_llmbench.backends.base import RunningServer, StartRequest
from pytest_llmbench.calibration import quick_calibration
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.records import Reason
from pytest_llmbench.errors import CellError, DoesNotFit, ModelNotDownloaded
from pytest_llmbench.runtime import host

logger = logging.getLogger(__name__)
RUN_KEY = pytest.StashKey[CellRun]()
_PATIENCE_SECONDS = 2.0


@pytest.fixture
def cell() -> Cell:
    """The cell a test measures; comes from the matrix through ``@pytest.mark.llmbench(profile=…)``."""
    pytest.fail(
        "mark the test with @pytest.mark.llmbench(profile='interactive') to run it over the matrix", pytrace=False
    )


@pytest.fixture
def server(request: pytest.FixtureRequest, cell: Cell) -> Iterator[RunningServer]:
    """The running server of the cell, with the exclusive right to measure on this host's device."""
    suite = request.config.stash[SUITE_KEY]
    run = request.node.stash[RUN_KEY]
    with _device(request.config):
        try:
            run.server = _provide(suite, cell, run, request.config)
        except (ModelNotDownloaded, DoesNotFit) as exc:
            run.skip_reason = Reason(code=exc.code, message=exc.message, evidence=exc.evidence)
            pytest.skip(exc.message)
        try:
            yield run.server
        finally:
            observe(run)


@pytest.fixture
def llm(request: pytest.FixtureRequest, server: RunningServer) -> LLM:
    """The model of the cell, ready to be asked and measured."""
    return LLM(request.config.stash[SUITE_KEY], request.node.stash[RUN_KEY], server)


def _provide(suite: Suite, cell: Cell, run: CellRun, config: pytest.Config) -> RunningServer:
    spec, combination = suite.spec(cell), suite.matrix.of(cell)
    backend = suite.backends[spec.kind]
    _calibrate_once(suite)
    if not suite.pool.holds(spec):
        suite.pool.release()  # what it takes is not free until it is gone
    with shown_progress(config) as progress:
        model_path: Path | None = None
        if spec.model_file is not None:
            check_before_download(suite, cell, run)
            model_path, run.model_file = suite.store.fetch(combination.model, cell.quantization, progress)
            check_before_load(suite, cell, run)
        request = StartRequest(
            spec,
            model_path,
            suite.folder.logs / spec.label,
            quantization=cell.quantization,
            rootdir=suite.rootdir,
            may_download=suite.store.may_download,
            progress=progress.step,
        )
        running = suite.pool.lease(spec, lambda: backend.start(request))
    watch(run, running)
    return running


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


@contextmanager
def _device(config: pytest.Config) -> Iterator[None]:
    """Hold the device: a server that starts beside a measurement would falsify it."""
    lock = host.device_lock()
    _acquire(lock, config)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, config: pytest.Config) -> None:
    try:
        lock.acquire(timeout=_PATIENCE_SECONDS)
    except Timeout:
        text = f"another benchmark measures on this machine; waiting for it ({lock.lock_file})"
        logger.info(text)
        tell(config, text)
        lock.acquire()


def release_before(nextitem: pytest.Item | None, suite: Suite) -> None:
    """Stop the running server unless the next test needs it too."""
    following = cell_of(nextitem)
    if following is None or not suite.pool.holds(suite.spec(following)):
        suite.pool.release()
