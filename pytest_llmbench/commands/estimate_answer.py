"""What ``llmbench estimate`` has to say of one file, and its form as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pytest_llmbench.commands.estimate_subject import Subject
from pytest_llmbench.core.fitting import Way
from pytest_llmbench.core.model_shape import shape_of
from pytest_llmbench.runtime.memory_check import Prediction

NO_SIZE = "nobody tells its size before it is downloaded; `llmbench models download` fetches it"


@dataclass(frozen=True)
class Answer:
    """A prediction and what belongs to it.

    Attributes:
        prediction: None where nothing can be said; ``problem`` tells why.
        engine: kind of server it is for.
        ways: what would make it fit; empty where it does.
        notes: what is not certain.
    """

    subject: Subject
    prediction: Prediction | None
    engine: str
    ways: tuple[Way, ...]
    notes: tuple[str, ...]

    @property
    def problem(self) -> str | None:
        """Why nothing can be said, None where something is."""
        if self.prediction is not None:
            return None
        return self.subject.problem or f"{self.subject.model} {self.subject.quantization}: {NO_SIZE}"

    @property
    def largest_context(self) -> int | None:
        """Tokens of context that fit; None where the header does not describe what a context needs."""
        header = self.prediction.header if self.prediction is not None else None
        if self.prediction is None or header is None or shape_of(header) is None:
            return None
        return self.prediction.largest_context

    @property
    def bounds_bytes(self) -> tuple[int, int]:
        """Main memory that has to be there, at least and at most; equal where the prediction is no bounds.

        Raises:
            ValueError: nothing was predicted.
        """
        if self.prediction is None:
            raise ValueError(self.problem)
        estimate, factor = self.prediction.estimate, self.prediction.factor
        return self.prediction.required_bytes, estimate.most.required_host_bytes(factor)


@dataclass(frozen=True)
class EstimateRecord:
    """An object of ``llmbench estimate --json``; its keys are promises. None where something is not known.

    Attributes:
        problem: why nothing is known, of one of several quantizations.
        total_bytes: the parts together, of host and device, not corrected; ``low_bytes`` and ``high_bytes`` bound it.
        reclaimable_bytes: of the host's memory, what the kernel drops when it is short.
        required_bytes: main memory that has to be there: corrected, without the device's part and without that.
        device_bytes: device memory that has to be there, corrected.
        device_free_bytes: of GPUs with a memory of their own.
        fits: None: uncertain.
        largest_context: that would fit, in tokens.
        bound_by: what bounds ``available_bytes``: ``machine``, ``cgroup`` or ``max_memory_gb``.
        correction_factor: by earlier runs on this machine; None where there are none like it.
        ways: changes that would make it fit, each ``{change, total_bytes, about}``.
    """

    model: str
    quantization: str | None
    origin: str
    problem: str | None = None
    fits: bool | None = None
    weights_bytes: int | None = None
    repacked_bytes: int | None = None
    kv_bytes: int | None = None
    recurrent_bytes: int | None = None
    compute_bytes: int | None = None
    output_bytes: int | None = None
    overhead_bytes: int | None = None
    total_bytes: int | None = None
    low_bytes: int | None = None
    high_bytes: int | None = None
    reclaimable_bytes: int | None = None
    required_bytes: int | None = None
    available_bytes: int | None = None
    bound_by: str | None = None
    device_bytes: int | None = None
    device_free_bytes: int | None = None
    largest_context: int | None = None
    method: str | None = None
    architecture: str | None = None
    engine: str | None = None
    context_tokens: int | None = None
    parallel: int | None = None
    unified_kv: bool | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    ubatch: int | None = None
    gpu_layers: int | None = None
    flash_attention: bool | None = None
    correction_factor: float | None = None
    correction_samples: int = 0
    notes: tuple[str, ...] = ()
    ways: tuple[Way, ...] = ()

    @classmethod
    def of(cls, answer: Answer) -> EstimateRecord:
        """The record of an answer."""
        subject, prediction = answer.subject, answer.prediction
        if prediction is None:
            return cls(subject.model, subject.quantization, subject.origin, answer.problem)
        estimate, settings, correction = prediction.estimate, prediction.settings, prediction.correction
        parts: dict[str, Any] = asdict(estimate.parts)
        return cls(
            subject.model,
            subject.quantization,
            subject.origin,
            fits={"fits": True, "does_not_fit": False, "uncertain": None}[prediction.verdict],
            **parts,
            total_bytes=estimate.total_bytes,
            low_bytes=estimate.least.total_bytes,
            high_bytes=estimate.most.total_bytes,
            reclaimable_bytes=estimate.reclaimable_bytes,
            required_bytes=prediction.required_bytes,
            available_bytes=prediction.available.bytes,
            bound_by=prediction.available.bound_by,
            device_bytes=prediction.device_bytes,
            device_free_bytes=prediction.room.device_bytes,
            largest_context=answer.largest_context,
            method=estimate.method,
            architecture=prediction.header.architecture if prediction.header is not None else None,
            engine=answer.engine,
            context_tokens=settings.context_tokens,
            parallel=settings.parallel,
            unified_kv=settings.unified_kv,
            cache_type_k=settings.cache_type_k,
            cache_type_v=settings.cache_type_v,
            ubatch=settings.ubatch_tokens,
            gpu_layers=settings.gpu_layers,
            flash_attention=settings.flash_attention,
            correction_factor=correction.factor if correction is not None else None,
            correction_samples=correction.samples if correction is not None else 0,
            notes=answer.notes,
            ways=answer.ways,
        )
