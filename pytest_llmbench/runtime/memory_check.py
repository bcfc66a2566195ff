"""Whether a server would fit, before it is tried: its prediction against the memory there is at that moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.correction import Correction, Observation, correction_for
from pytest_llmbench.core.fitting import Room, Verdict, Way, largest_context, verdict, ways_to_fit
from pytest_llmbench.core.gguf import GgufHeader
from pytest_llmbench.core.memory import (
    Device,
    MemoryEstimate,
    ServingSettings,
    estimate_from_size,
    estimate_memory,
)
from pytest_llmbench.core.model_shape import shape_of
from pytest_llmbench.core.quantities import BOUND_WORDS, PART_WORDS, gigabytes
from pytest_llmbench.core.records import MemoryRecord, Reason
from pytest_llmbench.errors import Primitive
from pytest_llmbench.runtime.available import AvailableMemory, DeviceMemory, available_memory, devices
from pytest_llmbench.runtime.host import repacked_types

# Options of llama-server in extra_args that change its memory; what they set is used instead. Cache types and slots can
# not be among them, because the backend sets these itself.
_NUMBER_OPTIONS = {"-ub": "ubatch_tokens", "--ubatch-size": "ubatch_tokens"}


@dataclass(frozen=True)
class Prediction:
    """What a server would need, and what there is.

    Attributes:
        header, settings: what it was computed from; no header: from the file's size.
        device: the GPUs it would use together, None where it would use none.
    """

    estimate: MemoryEstimate
    settings: ServingSettings
    header: GgufHeader | None
    correction: Correction | None
    available: AvailableMemory
    device: DeviceMemory | None

    @property
    def factor(self) -> float:
        """By which earlier runs move the prediction."""
        return self.correction.factor if self.correction is not None else 1.0

    @property
    def room(self) -> Room:
        """What may be used."""
        free = self.device.free_bytes if self.device is not None and not self.device.unified else None
        return Room(self.available.bytes, free)

    @property
    def verdict(self) -> Verdict:
        """Whether it fits."""
        return verdict(self.estimate, self.room, self.factor)

    @property
    def required_bytes(self) -> int:
        """Main memory that has to be there; at least, where the estimate is bounds."""
        return self.estimate.least.required_host_bytes(self.factor)

    @property
    def device_bytes(self) -> int:
        """Device memory that has to be there, likewise."""
        return self.estimate.least.required_device_bytes(self.factor)

    @cached_property
    def largest_context(self) -> int | None:
        """Tokens of context that would fit; None where no header describes the model's layers."""
        if self.header is None or shape_of(self.header) is None:
            return None
        return largest_context(self.header, self.settings, self.room, self.factor)

    def ways(self, quantization: str | None) -> tuple[Way, ...]:
        """What would make it fit; nothing without a header."""
        if self.header is None:
            return ()
        return ways_to_fit(self.header, self.settings, self.room, self.factor, quantization)

    @property
    def too_big(self) -> str:
        """The largest part, in words."""
        on_device = self.room.device_bytes is not None and self.device_bytes > self.room.device_bytes
        parts = self.estimate.least.device if on_device else self.estimate.least.host
        return PART_WORDS[f"{parts.largest()}_bytes"]

    def record(self) -> MemoryRecord:
        """For the cell's record."""
        return MemoryRecord(
            method=self.estimate.method,
            predicted_bytes=self.estimate.total_bytes,
            predicted_low_bytes=self.estimate.least.total_bytes,
            predicted_high_bytes=self.estimate.most.total_bytes,
            required_bytes=self.required_bytes,
            device_bytes=self.device_bytes,
            parts={name: getattr(self.estimate.parts, name) for name in PART_WORDS},
            correction_factor=self.correction.factor if self.correction else None,
            correction_samples=self.correction.samples if self.correction else 0,
            available_bytes=self.available.bytes,
            bound_by=self.available.bound_by,
            device_free_bytes=self.room.device_bytes,
        )

    def reason(self, quantization: str | None) -> Reason:
        """Why it is not tried: needed, available, the part that is too big, and what would help."""
        return Reason(code="does_not_fit", message=self._message(quantization), evidence=self._evidence())

    def _message(self, quantization: str | None) -> str:
        needed = f"{gigabytes(self.required_bytes)} of memory"
        short_of_host = self.required_bytes > self.available.bytes
        bounds = [f"{gigabytes(self.available.bytes)} may be used ({BOUND_WORDS[self.available.bound_by]})"]
        if self.room.device_bytes is not None:
            short_of_device = self.device_bytes > self.room.device_bytes
            needed = f"{gigabytes(self.required_bytes)} of main memory and {gigabytes(self.device_bytes)} of the GPU's"
            bounds = bounds if short_of_host or not short_of_device else []
            bounds += [f"{gigabytes(self.room.device_bytes)} are free on the GPU"]
        least = "at least " if not self.estimate.exact else ""
        context = f" with a context of {self.settings.context_tokens} tokens" if self.header is not None else ""
        lines = [f"needs {least}{needed}{context} ({self.breakdown()})", *bounds, f"largest part: {self.too_big}"]
        ways = self.ways(quantization)
        if ways:
            lines.append("it would fit with " + ", or ".join(tell(way) for way in ways))
        elif self.header is not None:
            lines.append("no context, cache type or quantization known here makes it fit")
        return "; ".join(lines)

    def breakdown(self) -> str:
        """The parts that are worth naming, largest first; a copy of weights takes the place of what it is a copy of."""
        least = self.estimate.least.host + self.estimate.least.device
        parts = {name: getattr(least, name) for name in PART_WORDS if name != "repacked_bytes"}
        worth = [(size, name) for name, size in parts.items() if size * 100 > self.required_bytes + self.device_bytes]
        told = [f"{PART_WORDS[name]} {gigabytes(size)}" for size, name in sorted(worth, reverse=True)]
        if self.correction is not None:
            told.append(f"by earlier runs × {self.factor:.2f}")
        return ", ".join(told)

    def _evidence(self) -> dict[str, Primitive]:
        return {
            "required_bytes": self.required_bytes,
            "available_bytes": self.available.bytes,
            "bound_by": self.available.bound_by,
            "device_bytes": self.device_bytes,
            "device_free_bytes": self.room.device_bytes,
            "largest_part": self.too_big,
            "predicted_bytes": self.estimate.total_bytes,
            "method": self.estimate.method,
            "correction_factor": self.correction.factor if self.correction else None,
            "context_tokens": self.settings.context_tokens,
            "largest_context": self.largest_context,
            **{name: getattr(self.estimate.parts, name) for name in PART_WORDS},
        }


def tell(way: Way) -> str:
    """A way to make it fit, for people."""
    return f"{way.change} ({'about ' if way.about else ''}{gigabytes(way.total_bytes)})"


@dataclass(frozen=True)
class MemoryCheck:
    """Predicts and compares.

    Attributes:
        limit_bytes: ``limits.max_memory_gb``.
        observations: of this host's earlier runs, newest first; asked for when they are needed.
    """

    limit_bytes: int | None = None
    observations: Callable[[], Sequence[Observation]] = field(default=tuple)

    def available(self) -> AvailableMemory:
        """What there is now."""
        return available_memory(self.limit_bytes)

    def predict(
        self, spec: ServerSpec, model: str, quantization: str, header: GgufHeader | None, size_bytes: int | None
    ) -> Prediction | None:
        """What a server of ours would need, and what there is now; None where neither header nor size is known.

        Args:
            model, quantization: the names under which earlier runs are looked up.
            size_bytes: of the file, for when there is no header.
        """
        by_itself = spec.kind == "ollama" and spec.gpu_layers is None  # puts as much on the GPU as it sees fit
        device = _together(devices()) if spec.gpu_layers or by_itself else None
        settings = settings_of(spec, device)
        if spec.context_size is None and header is not None and header.context_length is not None:
            settings = replace(settings, context_tokens=header.context_length)  # what llama.cpp takes then
        if header is not None:
            estimate = estimate_memory(header, settings)
        elif size_bytes is not None:
            estimate = estimate_from_size(size_bytes, gpu=device is not None)
        else:
            return None
        if by_itself and device is not None:
            estimate = replace(estimate, placed=False)
        correction = None
        if estimate.method == "header":
            correction = correction_for(
                self.observations(),
                backend=spec.kind,
                model=model,
                quantization=quantization,
                predicted_bytes=estimate.total_bytes,
            )
        return Prediction(estimate, settings, header, correction, self.available(), device)


def settings_of(spec: ServerSpec, device: DeviceMemory | None) -> ServingSettings:
    """How a server of a spec serves, as far as its memory depends on it."""
    kind: Device = "cpu" if device is None else "unified" if device.unified else "gpu"
    settings = ServingSettings(
        context_tokens=spec.context_size or 0,
        cache_type_k=spec.cache_type_k or "f16",
        cache_type_v=spec.cache_type_v or "f16",
        gpu_layers=spec.gpu_layers or 0,
        device=kind,
        engine=spec.kind,
        repacked_types=repacked_types(),
    )
    return _with_arguments(settings, spec.extra_args)


def _with_arguments(settings: ServingSettings, arguments: Sequence[str]) -> ServingSettings:
    """Obey those of a binary's arguments that change its memory."""
    changes: dict[str, Any] = {}
    for option, value in pairwise(arguments):
        if option in _NUMBER_OPTIONS and value.isdecimal() and int(value):
            changes[_NUMBER_OPTIONS[option]] = int(value)
        elif option in {"-fa", "--flash-attn"}:
            changes["flash_attention"] = value not in {"off", "0", "false"}
    return replace(settings, **changes)


def _together(found: Sequence[DeviceMemory]) -> DeviceMemory | None:
    """All GPUs as one, since a model is spread over them; unified memory is there only once."""
    if not found:
        return None
    if any(device.unified for device in found):
        return next(device for device in found if device.unified)
    total, free = (sum(getattr(device, name) for device in found) for name in ("total_bytes", "free_bytes"))
    return DeviceMemory(found[0].index, ", ".join(device.name for device in found), total, free, unified=False)
