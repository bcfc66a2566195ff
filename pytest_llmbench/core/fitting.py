"""Does it fit, how large a context does, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from pytest_llmbench.core.gguf import GgufHeader
from pytest_llmbench.core.memory import MemoryEstimate, MemoryParts, Placed, ServingSettings, estimate_memory
from pytest_llmbench.core.model_shape import shape_of

Verdict = Literal["fits", "does_not_fit", "uncertain"]
_CACHE_BLOCK = 32  # elements that q8_0, q4_0 and their kin quantize together
_STEP_TOKENS = 256  # llama.cpp pads a context to a multiple of this
_MOST_TOKENS = 1 << 24  # where the header names no trained context

# Size of a model's weights by quantization, relative to F16: of an 8B Llama, whose tensors llama-quantize mixes as it
# does those of most dense models. Others of 7B and more are from 7 % smaller to 5 % larger; below that embeddings weigh
# more, which makes a Q4 up to 7 % and a Q2_K up to 18 % larger.
RELATIVE_SIZE = {
    "F16": 1.0,
    "BF16": 1.0,
    "Q8_0": 0.531,
    "Q6_K": 0.410,
    "Q5_K_M": 0.356,
    "Q4_K_M": 0.306,
    "Q4_0": 0.290,
    "Q3_K_M": 0.250,
    "Q2_K": 0.197,
}


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that may be used: of main memory, and of the device (None where there is none)."""

    host_bytes: int
    device_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """One change that would make a model fit.

    Attributes:
        change: such as ``context 8192`` or ``KV cache q8_0``.
        total_bytes: what would then be required, of main memory and device together.
        about: the figure is a rule of thumb, not computed from a header.
    """

    change: str
    total_bytes: int
    about: bool = False


def verdict(estimate: MemoryEstimate, room: Room, factor: float = 1.0) -> Verdict:
    """Compare a prediction with the room there is; ``uncertain`` where the room lies between the prediction's bounds.

    Args:
        factor: correction of the prediction by earlier runs.
    """
    if not _is_enough(estimate.least, estimate, room, factor):
        return "does_not_fit"
    if estimate.method == "file_size":
        return "uncertain"  # a long context is not in it
    return "fits" if _is_enough(estimate.most, estimate, room, factor) else "uncertain"


def _is_enough(placed: Placed, estimate: MemoryEstimate, room: Room, factor: float) -> bool:
    device = room.device_bytes
    if device is None or not estimate.placed:
        needed = placed.required_host_bytes(factor) + placed.required_device_bytes(factor)
        return needed <= room.host_bytes + (device or 0)
    return placed.required_host_bytes(factor) <= room.host_bytes and placed.required_device_bytes(factor) <= device


def largest_context(header: GgufHeader, settings: ServingSettings, room: Room, factor: float = 1.0) -> int:
    """The most tokens of context that fit, in all slots together; 0 where not even the shortest does.

    It ends at what the model was trained for, per slot. Bounds count as their upper end.
    """
    trained = (header.context_length or _MOST_TOKENS) * max(1, settings.parallel)

    def fits(steps: int) -> bool:
        tokens = min(steps * _STEP_TOKENS, trained)
        return _fits(header, replace(settings, context_tokens=tokens), room, factor)

    steps = _largest(fits, -(-trained // _STEP_TOKENS))
    return min(steps * _STEP_TOKENS, trained)


def ways_to_fit(
    header: GgufHeader, settings: ServingSettings, room: Room, factor: float = 1.0, quantization: str | None = None
) -> tuple[Way, ...]:
    """Single changes that would make it fit, mildest first, and where none does, a smaller cache and context together.

    Args:
        quantization: of the file where its header names none, to say what another would need.
    """
    context = largest_context(header, settings, room, factor)
    shorter = replace(settings, context_tokens=context)
    if settings.context_tokens > (header.context_length or _MOST_TOKENS) * max(1, settings.parallel):
        # No server gives that much, so nothing else is worth a try before.
        return (_way(f"context {context}", header, shorter, factor),) if context else ()
    ways = [*_cache_ways(header, settings, room, factor)]
    if 0 < context < settings.context_tokens:
        ways.append(_way(f"context {context}", header, shorter, factor))
    ways += _layer_ways(header, settings, room, factor)
    ways += _quantization_ways(header, settings, room, factor, header.file_type or quantization)
    if ways:
        return tuple(ways)
    if not _can_quantize_cache(header):
        return ()
    smallest = replace(settings, cache_type_k="q8_0", cache_type_v="q8_0", flash_attention=True)
    context = largest_context(header, smallest, room, factor)
    if context:
        change = f"KV cache q8_0 and context {context}"
        return (_way(change, header, replace(smallest, context_tokens=context), factor),)
    return ()


def _cache_ways(header: GgufHeader, settings: ServingSettings, room: Room, factor: float) -> list[Way]:
    present = estimate_memory(header, settings).parts.kv_bytes
    also = "" if settings.flash_attention else " with flash attention"  # which a quantized cache needs
    ways = []
    for name in ("q8_0", "q4_0") if _can_quantize_cache(header) else ():
        changed = replace(settings, cache_type_k=name, cache_type_v=name, flash_attention=True)
        if estimate_memory(header, changed).parts.kv_bytes < present and _fits(header, changed, room, factor):
            ways.append(_way(f"KV cache {name}{also}", header, changed, factor))
    return ways


def _can_quantize_cache(header: GgufHeader) -> bool:
    """Whether every head is a whole number of blocks; llama.cpp refuses others (llama-context.cpp)."""
    shape = shape_of(header)
    lengths = (length for layer in shape.layers for length in (layer.key_length, layer.value_length)) if shape else ()
    return not any(length % _CACHE_BLOCK for length in lengths)


def _layer_ways(header: GgufHeader, settings: ServingSettings, room: Room, factor: float) -> list[Way]:
    """Another number of layers on the device: fewer where it is too small, some where the host is."""
    if room.device_bytes is None or settings.device != "gpu" or header.block_count is None:
        return []
    everything = header.block_count + 1
    fitting = [
        count for count in range(everything + 1) if _fits(header, replace(settings, gpu_layers=count), room, factor)
    ]
    if not fitting or max(fitting) == (settings.gpu_layers if settings.gpu_layers >= 0 else everything):
        return []
    changed = replace(settings, gpu_layers=max(fitting))
    return [_way(f"{max(fitting)} of {everything} layers on the GPU", header, changed, factor)]


def _quantization_ways(
    header: GgufHeader, settings: ServingSettings, room: Room, factor: float, quantization: str | None
) -> list[Way]:
    """The largest smaller quantizations that would fit, by their usual size."""
    present = RELATIVE_SIZE.get(quantization or "")
    if present is None:
        return []
    estimate = estimate_memory(header, settings)
    ways = []
    for name, size in RELATIVE_SIZE.items():
        smaller = Placed(*(_scaled(parts, size / present) for parts in (estimate.host, estimate.device)))
        if size < present and _is_enough(smaller, estimate, room, factor):
            total = smaller.required_host_bytes(factor) + smaller.required_device_bytes(factor)
            ways.append(Way(f"quantization {name}", total, about=True))
    return ways[:1]


def _scaled(parts: MemoryParts, share: float) -> MemoryParts:
    weights, repacked = int(parts.weights_bytes * share), int(parts.repacked_bytes * share)
    return replace(parts, weights_bytes=weights, repacked_bytes=repacked)


def _way(change: str, header: GgufHeader, settings: ServingSettings, factor: float) -> Way:
    most = estimate_memory(header, settings).most
    return Way(change, most.required_host_bytes(factor) + most.required_device_bytes(factor))


def _fits(header: GgufHeader, settings: ServingSettings, room: Room, factor: float) -> bool:
    return verdict(estimate_memory(header, settings), room, factor) == "fits"


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` for which a condition holds that holds for all smaller ones; 0 for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
