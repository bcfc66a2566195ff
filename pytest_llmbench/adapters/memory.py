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


def predict(suite: Suite, cell: Cell, spec: ServerSpec) -> Prediction | None:
    """What a cell's server would need; None where it brings its model, or nobody tells before a download.

    Raises:
        ModelError: the model's file, or where it would come from, is not what was expected.
    """
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


def check_before_download(suite: Suite, run: CellRun, spec: ServerSpec) -> None:
    """Do not fetch what can not fit.

    Raises:
        DoesNotFit: with the figures.
        ModelError: there is no source, or it can not be asked: fetching would tell the same, once more.
    """
    if suite.store.locate(suite.matrix.of(run.cell).model, run.cell.quantization) is not None:
        return  # nothing is fetched; the other check follows at once
    _refuse(run, predict(suite, run.cell, spec))


def check_before_load(suite: Suite, run: CellRun, spec: ServerSpec) -> None:
    """Do not start a server that can not fit into what is free now, unless it runs already.

    Raises:
        DoesNotFit: with the figures.
        ModelError: the file is not what was expected.
    """
    prediction = predict(suite, run.cell, spec)
    if suite.pool.holds(spec):
        run.memory = prediction.record() if prediction is not None else None
    else:
        _refuse(run, prediction)


def _refuse(run: CellRun, prediction: Prediction | None) -> None:
    if prediction is None:
        return
    run.memory = prediction.record()
    if prediction.verdict == "does_not_fit":
        cell, reason = run.cell, prediction.reason(run.cell.quantization)
        raise DoesNotFit(reason.code, f"{cell.model} {cell.quantization} {reason.message}", reason.evidence)


def watch(suite: Suite, run: CellRun, server: RunningServer) -> None:
    """Begin to observe a server of ours; one that others started has no process here."""
    suite.sensing.follow(server.info.pid)
    if server.info.pid is not None and run.memory_watch is None:
        from pytest_llmbench.telemetry.process import MemoryWatch

        run.memory_watch = MemoryWatch(server.info.pid)
        run.memory_watch.start()


def observe(run: CellRun) -> None:
    """End that, and put what was seen beside the prediction; of several loads the most. Safe to call again."""
    memory_watch, run.memory_watch = run.memory_watch, None
    peak = memory_watch.stop() if memory_watch is not None else None
    if peak is None:
        return
    memory = run.memory or MemoryRecord()
    observed: dict[str, int | str | None] = {
        "observed_peak_bytes": _most(memory.observed_peak_bytes, peak.peak_pss_bytes),
        "observed_source": peak.source,
        "observed_max_rss_bytes": _most(memory.observed_max_rss_bytes, peak.peak_rss_bytes),
        "observed_swap_bytes": _most(memory.observed_swap_bytes, peak.swap_bytes),
        "observed_device_bytes": _most(memory.observed_device_bytes, peak.device_bytes),
    }
    run.memory = memory.model_copy(update=observed)


def _most(*sizes: int | None) -> int | None:
    return max((size for size in sizes if size is not None), default=None)


def note_tested(suite: Suite, run: CellRun) -> None:
    """Keep with the model's file that it was measured now, and what it was predicted to need."""
    predicted = run.memory.predicted_bytes if run.memory is not None else None
    suite.store.note_tested(suite.matrix.of(run.cell).model, run.cell.quantization, predicted)
