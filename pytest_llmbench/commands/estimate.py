"""``llmbench estimate``: how much memory a model needs on given settings, whether that fits, and what would."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_llmbench.commands.estimate_answer import Answer, EstimateRecord
from pytest_llmbench.commands.estimate_subject import Finder, Subject
from pytest_llmbench.commands.estimate_text import print_answer, print_answers
from pytest_llmbench.commands.setup import Setup, read_setup
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.config import Config
from pytest_llmbench.core.correction import Observation, correction_for
from pytest_llmbench.core.fitting import Way
from pytest_llmbench.core.memory import ServingSettings, estimate_memory
from pytest_llmbench.errors import ConfigError, ModelError
from pytest_llmbench.runtime import host
from pytest_llmbench.runtime.available import AvailableMemory
from pytest_llmbench.runtime.history import History
from pytest_llmbench.runtime.memory_check import MemoryCheck, Prediction, settings_of

ESTIMATE_VERSION = 1
_MOST = 2**31 - 1  # what the engine's options hold
_MOST_BYTES = 2**62  # a limit beyond this limits nothing
_UNQUANTIZED = {"f32", "f16", "bf16"}
_ENGINES = {"embedded", "llama_cpp"}


def run(options: argparse.Namespace) -> int:
    """Run the command; a model at several quantizations fits if one of them does.

    Raises:
        ConfigError: options, configuration or a name that can not be used, or nothing can be said of what it names.
    """
    setup = read_setup(Path.cwd(), options.config, options.models)
    estimator = _Estimator(setup, _serving(options, setup.config), options.memory)
    finder = Finder(setup, options.revision)
    try:
        subjects = finder.find(options.what)
    except ModelError as exc:
        raise ConfigError(exc.message) from exc  # no answer, which is not the answer "no"
    answers = estimator.answers(subjects, finder)
    problems = [answer.problem for answer in answers if answer.problem is not None]
    if len(problems) == len(answers):
        raise ConfigError(problems[0])
    if options.json:
        records = [asdict(EstimateRecord.of(answer)) for answer in answers]
        facts: dict[str, Any] = records[0] if len(records) == 1 else {"models": records}
        sys.stdout.write(json.dumps({"schema_version": ESTIMATE_VERSION, **facts}, indent=2) + "\n")
    elif len(answers) == 1:
        print_answer(answers[0])
    else:
        print_answers(answers)
    verdicts = {answer.prediction.verdict for answer in answers if answer.prediction is not None}
    return 1 if verdicts == {"does_not_fit"} else 0


@dataclass(frozen=True)
class _Serving:
    """How a model is to be served.

    Attributes:
        spec: as it is configured.
        changes: fields of :class:`ServingSettings` that the command line says, and that win.
    """

    spec: ServerSpec
    changes: dict[str, Any]

    def settings(self, configured: ServingSettings) -> ServingSettings:
        """Configured settings with the changes."""
        return replace(configured, **self.changes)


def _serving(options: argparse.Namespace, config: Config) -> _Serving:
    """Options before configuration. Raises ConfigError for what the engine would refuse."""
    for name in ("ctx", "parallel", "ubatch", "gpu_layers"):
        if (getattr(options, name) or 0) > _MOST:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} {getattr(options, name)} is more than any engine takes; write at most {_MOST}")
    kind = options.engine or (config.backend if config.backend in _ENGINES else "embedded")
    section = config.llama_cpp if kind == "llama_cpp" else config.embedded
    spec = ServerSpec(
        kind=kind,
        label=kind,
        context_size=options.ctx or section.default_ctx_size,
        gpu_layers=section.gpu_layers if options.gpu_layers is None else options.gpu_layers,
        extra_args=tuple(config.llama_cpp.extra_args) if kind == "llama_cpp" else (),
    )
    given = {
        "parallel": options.parallel,
        "unified_kv": options.unified_kv or None,
        "ubatch_tokens": options.ubatch,
        "cache_type_k": options.cache_type_k,
        "cache_type_v": options.cache_type_v,
        "flash_attention": None if options.flash_attention is None else options.flash_attention == "on",
    }
    serving = _Serving(spec, {name: value for name, value in given.items() if value is not None})
    settings = serving.settings(settings_of(spec, None))
    if not settings.flash_attention and settings.cache_type_v not in _UNQUANTIZED:
        raise ConfigError(
            f"llama.cpp refuses a V cache of {settings.cache_type_v} without flash attention; use --flash-attention "
            "on, or --cache-type-v f16"
        )
    return serving


class _Estimator:
    """Predicts, compares with what there is, and looks for what would fit."""

    def __init__(self, setup: Setup, serving: _Serving, limit_gb: float | None) -> None:
        limit_gb = setup.config.limits.max_memory_gb if limit_gb is None else limit_gb
        limit_bytes = int(min(limit_gb * 1e9, _MOST_BYTES)) if limit_gb is not None else None
        self._output_dir = setup.rootdir / Path(setup.config.output.dir).expanduser()
        self._serving = serving
        self._configured = setup.config.backend
        self._check = MemoryCheck(limit_bytes, lambda: self._observations)
        self._available: AvailableMemory | None = None

    @cached_property
    def _observations(self) -> Sequence[Observation]:
        return History(self._output_dir, host.fingerprint(host.describe_hardware())).observations

    def answers(self, subjects: Sequence[Subject], finder: Finder) -> list[Answer]:
        """What is to be said of each. Other quantizations are looked at where they could be an advice."""
        predicted = [(subject, self._predict(subject)) for subject in subjects]
        answers = []
        for subject, prediction in predicted:
            ways: tuple[Way, ...] = ()
            if prediction is not None and prediction.verdict != "fits":
                others = predicted
                if len(subjects) == 1:
                    others = [(other, self._predict(other)) for other in finder.others(subject)]
                ways = _ways(subject, prediction, others)
            answers.append(Answer(subject, prediction, self._serving.spec.kind, ways, self._notes(prediction)))
        return answers

    def _predict(self, subject: Subject) -> Prediction | None:
        """None where neither header nor size is known. All are compared with the memory there was for the first."""
        spec, header = self._serving.spec, subject.header
        model, quantization = subject.model, subject.quantization or ""
        if subject.problem is not None:
            return None
        found = self._check.predict(spec, model, quantization, header, subject.size_bytes)
        if found is None:
            return None
        self._available = self._available or found.available
        settings = self._serving.settings(found.settings)
        if found.device is None:
            settings = replace(settings, gpu_layers=0)
        found = replace(found, settings=settings, available=self._available)
        if header is None:
            return found
        estimate = estimate_memory(header, settings)
        correction = correction_for(
            self._observations,
            backend=spec.kind,
            model=model,
            quantization=quantization,
            predicted_bytes=estimate.total_bytes,
        )
        return replace(found, estimate=estimate, correction=correction)

    def _notes(self, prediction: Prediction | None) -> tuple[str, ...]:
        """What a reader has to know to believe the figures."""
        if prediction is None:
            return ()
        notes = [*prediction.estimate.notes]
        if self._configured not in _ENGINES:
            engine = self._serving.spec.kind
            notes.append(f"counted for the engine {engine}; the configured backend is {self._configured!r}")
        if self._serving.spec.gpu_layers and prediction.device is None:
            notes.append("no GPU was found; counted for the CPU")
        settings, header = prediction.settings, prediction.header
        trained = header.context_length if header is not None else None
        if trained is not None and settings.context_tokens > trained * settings.parallel:
            per_slot = " per slot" if settings.parallel > 1 else ""
            notes.append(
                f"context {settings.context_tokens} is more than the {trained} tokens{per_slot} that the model was "
                "trained for"
            )
        return tuple(notes)


def _ways(
    subject: Subject, prediction: Prediction, others: Sequence[tuple[Subject, Prediction | None]]
) -> tuple[Way, ...]:
    """What would make it fit. A rule of thumb about a quantization gives way to the figures of real ones."""
    ways = prediction.ways(subject.quantization)
    fitting = [
        Way(f"quantization {other.quantization}", _total_bytes(found), about=found.header is None)
        for other, found in others
        if found is not None and found.verdict == "fits"
    ]
    known = {f"quantization {name}" for name in (subject.entry.files if subject.entry is not None else ())}
    kept = [way for way in ways if not way.about or not (fitting or way.change in known)]
    return (*kept, *sorted(fitting, key=lambda way: -way.total_bytes))


def _total_bytes(prediction: Prediction) -> int:
    """What is required at most, of main memory and device together: as the other ways tell it."""
    estimate = prediction.estimate
    return estimate.most.required_host_bytes(prediction.factor) + prediction.device_bytes
