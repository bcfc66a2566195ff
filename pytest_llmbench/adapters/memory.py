"""A cell's memory: predicted and compared before it is tried, observed while it runs."""

from __future__ import annotations

from urllib.parse import urlsplit

from pytest_llmbench.adapters.cell_run import CellRun
from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.backends.base import RunningServer
from pytest_llmbench.core.cell import Cell, ServerSpec
from pytest_llmbench.core.gguf import GgufHeader
from pytest_llmbench.core.records import MemoryRecord
from pytest_llmbench.errors import DoesNotFit
from pytest_llmbench.runtime.memory_check import Prediction


def predict(suite: Suite, cell: Cell) -> Prediction | None:
    """What a cell's server would need; None where it brings its model, or nobody tells before a download.

    Raises:
        ModelError: the model's file, or where it would come from, is not what was expected.
    """
    spec = suite.spec(cell)
    if spec.model_file is None or not is_here(spec):
        return None
    model = suite.matrix.of(cell).model
    found = suite.store.header(model, cell.quantization)
    header: GgufHeader | None = found.header if found is not None else None
    source = model.source.get(cell.quantization)
    size_bytes = source.size_bytes if source is not None else None
    return suite.memory_check.predict(spec, model.name, cell.quantization, header, size_bytes)


def is_here(spec: ServerSpec) -> bool:
    """Whether the server would run on this machine: an Ollama that is asked to import a file may be elsewhere."""
    return spec.base_url is None or urlsplit(spec.base_url).hostname in {"127.0.0.1", "::1", "localhost"}


def check_before_download(suite: Suite, cell: Cell, run: CellRun) -> None:
    """Do not fetch what can not fit.

    Raises:
        DoesNotFit: with the figures.
        ModelError: there is no source, or it can not be asked: fetching would tell the same, once more.
    """
    if suite.store.locate(suite.matrix.of(cell).model, cell.quantization) is not None:
        return  # nothing is fetched; the other check follows at once
    _refuse(cell, run, predict(suite, cell))


def check_before_load(suite: Suite, cell: Cell, run: CellRun) -> None:
    """Do not start a server that can not fit into what is free now, unless it runs already.

    Raises:
        DoesNotFit: with the figures.
        ModelError: the file is not what was expected.
    """
    prediction = predict(suite, cell)
    if suite.pool.holds(suite.spec(cell)):
        run.memory = prediction.record() if prediction is not None else None
    else:
        _refuse(cell, run, prediction)


def _refuse(cell: Cell, run: CellRun, prediction: Prediction | None) -> None:
    if prediction is None:
        return
    run.memory = prediction.record()
    if prediction.verdict == "does_not_fit":
        reason = prediction.reason(cell.quantization)
        raise DoesNotFit(reason.code, f"{cell.model} {cell.quantization} {reason.message}", reason.evidence)


def watch(run: CellRun, server: RunningServer) -> None:
    """Begin to observe a server of ours; one that others started has no process here."""
    if server.info.pid is not None and run.memory_watch is None:
        from pytest_llmbench.telemetry.process import MemoryWatch

        run.memory_watch = MemoryWatch(server.info.pid)
        run.memory_watch.start()


def observe(run: CellRun) -> None:
    """End that, and put what was seen beside the prediction. Safe to call again."""
    memory_watch, run.memory_watch = run.memory_watch, None
    peak = memory_watch.stop() if memory_watch is not None else None
    if peak is None:
        return
    observed = {
        "observed_peak_bytes": peak.peak_pss_bytes,
        "observed_source": peak.source,
        "observed_max_rss_bytes": peak.peak_rss_bytes,
        "observed_swap_bytes": peak.swap_bytes,
        "observed_device_bytes": peak.device_bytes,
    }
    run.memory = (run.memory or MemoryRecord()).model_copy(update=observed)


def note_tested(suite: Suite, run: CellRun) -> None:
    """Keep with the model's file that it was measured now, and what it was predicted to need."""
    predicted = run.memory.predicted_bytes if run.memory is not None else None
    suite.store.note_tested(suite.matrix.of(run.cell).model, run.cell.quantization, predicted)
