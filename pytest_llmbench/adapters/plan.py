"""``--llmbench-dry-run``: collect as always, then print what a run would do instead of doing it."""

from __future__ import annotations

import json
import shutil
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pytest_llmbench.adapters.collection import cell_of
from pytest_llmbench.adapters.progress import tell
from pytest_llmbench.adapters.server_choice import refuse_the_same_of, trained_tokens
from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.core.cell import Cell, ServerSpec
from pytest_llmbench.core.config import ModelEntry
from pytest_llmbench.core.gguf import GgufHeader, check_header_quantization
from pytest_llmbench.core.memory import estimate_from_size
from pytest_llmbench.core.plan import Expected, Plan, PlannedCell, PlannedMemory, Room, downloads_of, total_bytes
from pytest_llmbench.core.quantities import gigabytes
from pytest_llmbench.core.records import Reason
from pytest_llmbench.errors import CellError, ModelError, ModelNotDownloaded, SameAsAnother, ServerError
from pytest_llmbench.runtime.available import AvailableMemory
from pytest_llmbench.runtime.memory_check import Prediction
from pytest_llmbench.runtime.modelstore.transfer import require_disk_space

_AT_ONCE = 8
_EXPLAINED = 200  # refused servers for which it is told what would help
_LLAMA_CPP_KINDS = {"embedded", "llama_cpp"}
_FITS = {"fits": True, "does_not_fit": False, "uncertain": None}


def wanted(config: pytest.Config) -> bool:
    """Whether this is a dry run; also asked under ``-p no:llmbench``, which has no such option."""
    if not hasattr(config.option, "llmbench_dry_run"):
        return False
    return bool(config.option.llmbench_dry_run or config.getini("llmbench_dry_run"))


def keep_in_this_process(config: pytest.Config) -> None:
    """Undo ``-n``, ``--dist`` and ``--tx`` before xdist reads them: nothing will run, and a plan is printed once."""
    if wanted(config) and hasattr(config.option, "numprocesses"):
        config.option.numprocesses = 0
        config.option.dist, config.option.tx = "no", []


def instead_of_tests(session: pytest.Session, suite: Suite) -> bool | None:
    """Print the plan in place of the tests.

    Returns:
        True where that was done, None where pytest is to go on: in a real run, or to tell that collecting failed.

    Raises:
        pytest.UsageError: the plan can not be written where it should be.
    """
    config = session.config
    if not wanted(config) or (session.testsfailed and not config.option.continue_on_collection_errors):
        return None
    finished = suite.earlier.finished if suite.earlier is not None else {}
    if finished:
        tell(config, f"of run {suite.folder.run_id} {len(finished)} cells are finished; the plan is of what is left")
    plan = _Planner(suite, config).plan([item for item in session.items if item.nodeid not in finished])
    _print(plan, config)
    if (path := config.option.llmbench_plan_file) is not None:
        try:
            Path(config.invocation_params.dir, path).write_text(json.dumps(plan.as_json(), indent=2) + "\n", "utf-8")
        except OSError as exc:
            raise pytest.UsageError(f"--llmbench-plan-file: {path} can not be written: {exc.strerror}") from exc
    return True


def _print(plan: Plan, config: pytest.Config) -> None:
    reporter: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    from pytest_llmbench.reports.plan import render

    reporter.section("llmbench plan", sep="=")
    for line in render(plan, width=reporter._tw.fullwidth, colour=reporter._tw.hasmarkup):
        reporter.line(line)


@dataclass(frozen=True)
class _Outcome:
    """What becomes of a cell, and why."""

    expected: Expected
    reason: Reason | None = None


_RUN = _Outcome("run")


@dataclass(frozen=True)
class _ModelFacts:
    """What is known of a model's file, without its being fetched.

    Attributes:
        size_bytes: of the whole model.
        download_bytes: still to be fetched: 0 where the file is here, None where nobody tells.
        source: where it would be fetched from, None where nothing is to be fetched.
        problem: what a run would tell in place of using it.
    """

    header: GgufHeader | None = None
    size_bytes: int | None = None
    download_bytes: int | None = None
    source: str | None = None
    problem: ModelError | None = None


class _Planner:
    """Asks for each model once, and predicts each server once."""

    def __init__(self, suite: Suite, config: pytest.Config) -> None:
        self._suite = suite
        self._config = config
        self._available: AvailableMemory = suite.memory_check.available()
        self._models: dict[tuple[str, str], _ModelFacts] = {}
        self._memory: dict[tuple[ServerSpec, str, str], tuple[PlannedMemory | None, _Outcome]] = {}
        self._refusals = 0

    def plan(self, items: Sequence[pytest.Item]) -> Plan:
        """One row per cell, in order. A server is kept for the next item only if that needs the same one."""
        self._ask_ahead(items)
        cells: list[PlannedCell] = []
        running: ServerSpec | None = None
        others = 0
        for item in items:
            cell = cell_of(item)
            if cell is None:
                running, others = None, others + 1
                continue
            spec = self._spec(item, cell)
            planned = self._cell(item, cell, spec)
            running = running if running == spec else None
            if planned.expected == "run" and _needs_server(item):
                planned = replace(planned, starts_server=running is None)
                running = spec
            cells.append(planned)
        return Plan(tuple(cells), self._room(tuple(cells)), others)

    def _spec(self, item: pytest.Item, cell: Cell) -> ServerSpec:
        """The server it would get: with the largest context that can be had, for a profile that would like several."""
        specs = [self._suite.spec(cell, size) for size in reversed(self._suite.context_sizes(cell.profile))]
        if not specs or specs[0].model_file is None or not _needs_server(item):
            return self._suite.spec(cell)
        return next((spec for spec in specs if self._predicted(spec, cell)[1] is _RUN), specs[-1])

    def _cell(self, item: pytest.Item, cell: Cell, spec: ServerSpec) -> PlannedCell:
        planned = PlannedCell(
            nodeid=item.nodeid,
            model=cell.model,
            quantization=cell.quantization,
            profile=cell.profile,
            variant=cell.variant,
            backend=spec.kind,
        )
        outcome = _marked(item)
        if spec.model_file is not None and _needs_server(item):
            memory, predicted = self._predicted(spec, cell)
            facts = self._facts(self._suite.matrix.of(cell).model, cell.quantization)
            if outcome is None and predicted is _RUN:
                outcome = self._same_again(cell, spec, facts.header)
            outcome = outcome or predicted
            planned = replace(
                planned,
                memory=memory,
                size_rule_bytes=estimate_from_size(facts.size_bytes).total_bytes if facts.size_bytes else None,
                file=spec.model_file,
                download_bytes=facts.download_bytes,
                source=facts.source,
            )
        outcome = outcome or _RUN
        seconds = self._suite.history.duration_seconds(item.nodeid, spec.kind) if outcome.expected == "run" else None
        return replace(planned, expected=outcome.expected, reason=outcome.reason, expected_seconds=seconds)

    def _same_again(self, cell: Cell, spec: ServerSpec, header: GgufHeader | None) -> _Outcome | None:
        """What a run would find to be measured already, as all that is planned before would be."""
        try:
            refuse_the_same_of(self._suite, cell, spec, header)
        except SameAsAnother as exc:
            return _Outcome("skip", _reason(exc))
        return None

    def _predicted(self, spec: ServerSpec, cell: Cell) -> tuple[PlannedMemory | None, _Outcome]:
        """A server's memory and what follows from it, in the order in which a run finds it out."""
        key = (spec, cell.model, cell.quantization)
        if key not in self._memory:
            facts = self._facts(self._suite.matrix.of(cell).model, cell.quantization)
            prediction = self._prediction(spec, cell, facts)
            memory, refused = None, None
            if prediction is not None:
                memory = PlannedMemory(prediction.record(), _FITS[prediction.verdict])
                if memory.fits is False:
                    refused = self._refusal(cell, prediction)
            self._memory[key] = (memory, _outcome(facts.problem or _beyond_training(spec, cell, facts.header), refused))
        return self._memory[key]

    def _prediction(self, spec: ServerSpec, cell: Cell, facts: _ModelFacts) -> Prediction | None:
        """As a run would make it, but against what is available now, the same for all cells."""
        check = self._suite.memory_check
        prediction = check.predict(spec, cell.model, cell.quantization, facts.header, facts.size_bytes)
        return replace(prediction, available=self._available) if prediction is not None else None

    def _refusal(self, cell: Cell, prediction: Prediction) -> Reason:
        """As the record would have it; what would help is a search of some 15 ms, so not for thousands of servers."""
        self._refusals += 1
        if self._refusals > _EXPLAINED:
            needed = prediction.required_bytes
            text = f"needs {gigabytes(needed)} of memory, more than there is; plan fewer cells to learn what would help"
            reason = Reason(code="does_not_fit", message=text, evidence={"predicted_bytes": needed})
        else:
            reason = prediction.reason(cell.quantization)
        return reason.model_copy(update={"message": f"{cell.model} {cell.quantization} {reason.message}"})

    def _facts(self, model: ModelEntry, quantization: str) -> _ModelFacts:
        key = (model.name, quantization)
        if key not in self._models:
            self._models[key] = self._ask(model, quantization)
        return self._models[key]

    def _ask(self, model: ModelEntry, quantization: str) -> _ModelFacts:
        store, written = self._suite.store, model.source.get(quantization)
        name = f"{model.name} {quantization}"
        here = store.locate(model, quantization) is not None
        if here:
            facts = _ModelFacts(download_bytes=0)
        else:
            promised = written.size_bytes if written is not None else None
            facts = _ModelFacts(size_bytes=promised, source=store.source_of(model, quantization))
        try:
            found = store.header(model, quantization)
            if found is not None:
                facts = replace(facts, header=found.header, size_bytes=found.header.size_bytes)
                check_header_quantization(found.header, quantization, name)
            if not here:
                size_bytes = store.remote(model, quantization).size_bytes
                missing_bytes = store.missing_bytes(model, quantization)
                facts = replace(facts, size_bytes=size_bytes or facts.size_bytes, download_bytes=missing_bytes)
        except ModelError as exc:
            facts = replace(facts, problem=exc)
        return facts

    def _ask_ahead(self, items: Iterable[pytest.Item]) -> None:
        """Ask for all models that are not here, several sources at a time: one that does not answer takes 15 s."""
        pending = deque(self._far(items))
        if not pending:
            return
        import requests  # noqa: F401 -- here, because threads that import one package at once may fail
        from huggingface_hub import HfApi  # noqa: F401

        def ask() -> None:
            with suppress(IndexError):  # nothing is left
                while models := pending.popleft():
                    for (name, quantization), model in models.items():
                        self._models[name, quantization] = self._ask(model, quantization)

        tell(self._config, "asking for the models that are not here …")
        # Not a pool, whose threads a process waits for when it is interrupted.
        threads = [threading.Thread(target=ask, daemon=True) for _ in range(min(_AT_ONCE, len(pending)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _far(self, items: Iterable[pytest.Item]) -> list[dict[tuple[str, str], ModelEntry]]:
        """Models that would be asked for over the network, by where: a repository is listed once."""
        store = self._suite.store
        groups: dict[str, dict[tuple[str, str], ModelEntry]] = defaultdict(dict)
        for cell in dict.fromkeys(cell for cell in map(cell_of, items) if cell is not None):
            model, key = self._suite.matrix.of(cell).model, (cell.model, cell.quantization)
            if not store.may_download or key in groups[model.repo or model.name]:
                continue
            written = model.source.get(cell.quantization)
            asked = model.repo is not None if written is None else written.url is not None
            file_needed = self._suite.spec(cell).model_file is not None
            if asked and file_needed and store.locate(model, cell.quantization) is None:
                groups[model.repo or model.name][key] = model
        return [models for models in groups.values() if models]

    def _room(self, cells: tuple[PlannedCell, ...]) -> Room:
        store = self._suite.store
        folder = next(parent for parent in (store.model_dir, *store.model_dir.absolute().parents) if parent.is_dir())
        needed_bytes, warning = total_bytes(downloads_of(cells)), None
        if needed_bytes:
            try:
                require_disk_space(folder, needed_bytes)
            except ModelError as exc:
                warning = exc.message
        return Room(
            available_bytes=self._available.bytes,
            bound_by=self._available.bound_by,
            model_dir=store.shown(store.model_dir),
            free_bytes=shutil.disk_usage(folder).free,
            disk_warning=warning,
        )


def _needs_server(item: pytest.Item) -> bool:
    """Whether the test asks for a server; one of the user's own may only look at its cell."""
    return "server" in getattr(item, "fixturenames", ())


def _marked(item: pytest.Item) -> _Outcome | None:
    """What the user decided already."""
    marker = item.get_closest_marker("skip")
    if marker is None:
        return None
    text = marker.kwargs.get("reason", marker.args[0] if marker.args else "")
    return _Outcome("skip", Reason(code="marked", message=str(text) or "marked with pytest.mark.skip"))


def _beyond_training(spec: ServerSpec, cell: Cell, header: GgufHeader | None) -> ServerError | None:
    """What llama.cpp's server would be found to be: it gives a slot no more context than the model was trained for."""
    trained = trained_tokens(spec, header) if header is not None else None
    if trained is None or spec.kind not in _LLAMA_CPP_KINDS or (spec.context_size or 0) <= trained:
        return None
    return ServerError(
        "context_mismatch",
        f"{cell.model} {cell.quantization} was trained for a context of {trained} tokens, {spec.context_size} are "
        "wanted; lower ctx_size, or what settings ask for",
        {"asked_tokens": spec.context_size, "trained_tokens": trained},
    )


def _outcome(problem: CellError | None, refused: Reason | None) -> _Outcome:
    """A run looks at the memory first, unless it can not learn about the model at all."""
    if isinstance(problem, ModelError) and not isinstance(problem, ModelNotDownloaded):
        return _Outcome("error", _reason(problem))
    if refused is not None:
        return _Outcome("skip", refused)
    if problem is None:
        return _RUN
    return _Outcome("skip" if problem.status == "skipped" else "error", _reason(problem))


def _reason(exc: CellError) -> Reason:
    return Reason(code=exc.code, message=exc.message, evidence=exc.evidence)
