"""How much memory a server needs for a model, predicted from the GGUF header, part by part.

Weights and caches follow from the header exactly; activations (``compute``) are the live tensors of llama.cpp's largest
graph, told by a formula per kind of layer; overhead is what the engine's process needs beside, measured. The formulas'
sources are named where they stand; ``benchmarks/memory_prediction.py`` compares all of it with the engine.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Literal

from pytest_llmbench.core.gguf import GgufHeader, Tensor
from pytest_llmbench.core.model_shape import Layer, ModelShape, shape_of

MIB = 1024 * 1024
FOUNDING_FACTOR = 1.2  # size of the file × 1.2: the founding design's rule, used only where there is no header to read
_CONTEXT_PADDING_TOKENS = 256
_FLOAT_BYTES = 4

# Bytes per element of a cache: bytes of a block / elements of a block (ggml/src/ggml-common.h).
CACHE_ELEMENT_BYTES: dict[str, float] = {
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}

Device = Literal["cpu", "gpu", "unified"]


@dataclass(frozen=True, slots=True)
class Overhead:
    """What an engine's process needs beside the model's buffers, measured as PSS (x86-64 Linux, see docs/memory.md).

    Attributes:
        base_bytes: program, libraries and their data, threads, buffers of requests.
        per_token_bytes, per_merge_bytes: tables of the tokenizer.
    """

    base_bytes: int
    per_token_bytes: int
    per_merge_bytes: int


_OVERHEADS = {
    "embedded": Overhead(int(31.5 * MIB), 220, 217),
    "llama_cpp": Overhead(int(18 * MIB), 180, 140),
}
_GPU_CONTEXT_BYTES = 450 * MIB  # a CUDA context and its kernels take 300 to 600 MiB of the device


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """How a model is to be served.

    Attributes:
        context_tokens: of all slots together, as llama-server's ``--ctx-size``.
        parallel: slots.
        unified_kv: all slots share one cache, instead of a part each.
        ubatch_tokens: tokens computed at a time while a prompt is read.
        cache_type_k, cache_type_v: keys of :data:`CACHE_ELEMENT_BYTES`.
        gpu_layers: layers on the device, the output layer counted as one; −1 for all.
        device: ``cpu``: none; ``gpu``: with memory of its own; ``unified``: it shares the host's.
        engine: kind of backend, for its overhead; others are taken for ``llama_cpp``.
        repacked_types: tensor types that this CPU keeps a rearranged copy of, with the rows its kernels need them in.
    """

    context_tokens: int
    parallel: int = 1
    unified_kv: bool = False
    ubatch_tokens: int = 512
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attention: bool = True
    gpu_layers: int = 0
    device: Device = "cpu"
    engine: str = "llama_cpp"
    repacked_types: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """Bytes by what they are for."""

    weights_bytes: int = 0
    repacked_bytes: int = 0
    kv_bytes: int = 0
    recurrent_bytes: int = 0
    compute_bytes: int = 0
    output_bytes: int = 0
    overhead_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(getattr(self, part.name) for part in fields(self))

    def largest(self) -> str:
        """Name of the largest part, such as ``kv``."""
        return max(fields(self), key=lambda part: getattr(self, part.name)).name.removesuffix("_bytes")

    def __add__(self, other: MemoryParts) -> MemoryParts:
        return MemoryParts(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))


@dataclass(frozen=True, slots=True)
class Placed:
    """Parts in main memory and on the device. With unified memory all of it is ``host``."""

    host: MemoryParts = MemoryParts()
    device: MemoryParts = MemoryParts()

    @property
    def total_bytes(self) -> int:
        """Host and device together."""
        return self.host.total_bytes + self.device.total_bytes

    def required_host_bytes(self, factor: float = 1.0) -> int:
        """Main memory that has to be there, without what the kernel can drop.

        Args:
            factor: correction of the prediction by earlier runs.
        """
        return max(int(self.host.total_bytes * factor) - self.host.repacked_bytes, 0)

    def required_device_bytes(self, factor: float = 1.0) -> int:
        """Device memory that has to be there."""
        return int(self.device.total_bytes * factor)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """A prediction.

    Attributes:
        least, most: its bounds; both are the same where the architecture is known.
        method: ``header``, or ``file_size`` where there was none to read.
        notes: what is not certain about it.
        placed: how it is spread over host and device is known; else all of it is told as the host's.
    """

    least: Placed
    most: Placed
    method: Literal["header", "file_size"] = "header"
    notes: tuple[str, ...] = ()
    placed: bool = True

    @property
    def host(self) -> MemoryParts:
        """In main memory, at most."""
        return self.most.host

    @property
    def device(self) -> MemoryParts:
        """On the device, at most."""
        return self.most.device

    @property
    def parts(self) -> MemoryParts:
        """Host and device together, at most."""
        return self.most.host + self.most.device

    @property
    def total_bytes(self) -> int:
        """All of it, at most."""
        return self.most.total_bytes

    @property
    def exact(self) -> bool:
        """Whether it is a point, not bounds."""
        return self.least == self.most

    @property
    def reclaimable_bytes(self) -> int:
        """Part of the host's memory that the kernel may drop at no cost: mapped weights that a copy is used of."""
        return self.host.repacked_bytes


def estimate_from_size(size_bytes: int, *, gpu: bool = False) -> MemoryEstimate:
    """The founding rule, for a file whose header can not be read before it is fetched: its size × 1.2.

    Args:
        gpu: a part of it, nobody knows which, is to be on a device.
    """
    total = int(size_bytes * FOUNDING_FACTOR)
    placed = Placed(MemoryParts(weights_bytes=size_bytes, overhead_bytes=total - size_bytes))
    note = "from the file's size × 1.2, because there is no header to read yet; a long context is not in it"
    return MemoryEstimate(placed, placed, "file_size", (note,), placed=not gpu)


def estimate_memory(header: GgufHeader, settings: ServingSettings) -> MemoryEstimate:
    """Predict the memory of a server for a model.

    A model whose architecture is unknown gets bounds: at least its weights, at most full attention in every layer and
    twice the activations.

    Args:
        header: of the whole model, all its shards.
    """
    shape = shape_of(header)
    if shape is None:
        return _without_shape(header, settings)
    placed = _placed(header, shape, settings)
    if settings.device == "unified":
        placed = Placed(placed.host + placed.device)
    if shape.known:
        return MemoryEstimate(placed, placed)
    note = (
        f"the architecture {shape.architecture!r} is not known here: it needs between the weights alone and full "
        "attention in every layer"
    )
    least = Placed(_least(placed.host), _least(placed.device))
    most = Placed(_most(placed.host), _most(placed.device))
    return MemoryEstimate(least, most, notes=(note,))


def _placed(header: GgufHeader, shape: ModelShape, settings: ServingSettings) -> Placed:
    split = _Split(header, settings)
    layers = range(len(shape.layers))
    kv = [_kv_bytes(layer, settings, shape) for layer in shape.layers]
    state = [_FLOAT_BYTES * layer.state_elements * max(1, settings.parallel) for layer in shape.layers]
    away = [split.on_device(index) for index in layers]
    compute = _compute_bytes(shape, settings)
    host, device = _place_weights(header.tensors, split, settings, len(shape.layers))
    overhead = _overhead(settings)
    host += MemoryParts(
        kv_bytes=sum(kv[index] for index in layers if not away[index]),
        recurrent_bytes=sum(state[index] for index in layers if not away[index]),
        compute_bytes=_input_bytes(shape, settings) if all(away) else compute,
        output_bytes=_FLOAT_BYTES * shape.vocabulary * max(1, settings.parallel),
        overhead_bytes=overhead.base_bytes
        + overhead.per_token_bytes * shape.vocabulary
        + overhead.per_merge_bytes * shape.merges,
    )
    if split.output_on_device:
        device += MemoryParts(
            kv_bytes=sum(kv[index] for index in layers if away[index]),
            recurrent_bytes=sum(state[index] for index in layers if away[index]),
            compute_bytes=compute,
            overhead_bytes=_GPU_CONTEXT_BYTES,
        )
    return Placed(host, device)


def _least(parts: MemoryParts) -> MemoryParts:
    return replace(parts, kv_bytes=0, recurrent_bytes=0, compute_bytes=0)


def _most(parts: MemoryParts) -> MemoryParts:
    return replace(parts, compute_bytes=2 * parts.compute_bytes)


def _without_shape(header: GgufHeader, settings: ServingSettings) -> MemoryEstimate:
    """A header that names no layers: the weights are sure, the rest is at most the founding rule's fifth of them."""
    least = MemoryParts(weights_bytes=header.tensor_bytes, overhead_bytes=_overhead(settings).base_bytes)
    fifth = int(header.tensor_bytes * (FOUNDING_FACTOR - 1))
    most = replace(least, overhead_bytes=max(least.overhead_bytes, fifth))
    note = "the header does not describe the model's layers: at least the weights, at most by guess a fifth more"
    return MemoryEstimate(Placed(least), Placed(most), notes=(note,), placed=settings.device == "cpu")


def _overhead(settings: ServingSettings) -> Overhead:
    return _OVERHEADS.get(settings.engine, _OVERHEADS["llama_cpp"])


class _Split:
    """Which layers are on the device: the last ones, the output layer before all others (llama.cpp's load_tensors)."""

    def __init__(self, header: GgufHeader, settings: ServingSettings) -> None:
        everything = (header.block_count or 0) + 1
        wanted = settings.gpu_layers if settings.gpu_layers >= 0 else everything
        count = min(wanted, everything) if settings.device != "cpu" else 0
        self._first = everything - count
        self.output_on_device = count > 0

    def on_device(self, index: int) -> bool:
        return self.output_on_device and index >= self._first


def _place_weights(
    tensors: Collection[Tensor], split: _Split, settings: ServingSettings, layers: int
) -> tuple[MemoryParts, MemoryParts]:
    """Host's and device's weights. The embedding of tokens stays on the host; tied to the output, it is there twice.

    Args:
        layers: how many are loaded; those that come after them are for speculative decoding.
    """
    repacks = dict(settings.repacked_types)
    host = repacked = device = 0
    tied = not any(tensor.name == "output.weight" for tensor in tensors)
    for tensor in tensors:
        place, index = _place_of(tensor.name)
        if place == "block" and index >= layers:
            continue
        away = split.on_device(index) if place == "block" else split.output_on_device if place == "output" else False
        if away:
            device += tensor.size_bytes
            continue
        host += tensor.size_bytes
        if place == "input" and tied and tensor.name == "token_embd.weight":
            if split.output_on_device:
                device += tensor.size_bytes
            elif is_repacked(tensor, repacks):
                repacked += tensor.size_bytes
        elif place != "input" and is_repacked(tensor, repacks):
            repacked += tensor.size_bytes
    return MemoryParts(weights_bytes=host, repacked_bytes=repacked), MemoryParts(weights_bytes=device)


def _place_of(name: str) -> tuple[Literal["input", "block", "output"], int]:
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal():
        return "block", int(parts[1])
    return ("output", 0) if parts[0].startswith("output") else ("input", 0)


def is_repacked(tensor: Tensor, repacks: dict[str, int]) -> bool:
    """Whether the CPU keeps a copy: matrices, and experts' stacks of them, in the right type, with enough rows."""
    rows = repacks.get(tensor.type)
    is_product = len(tensor.dimensions) == 2 or (len(tensor.dimensions) == 3 and "_exps." in tensor.name)
    return rows is not None and is_product and tensor.dimensions[1] % rows == 0


def _padded(tokens: int) -> int:
    return -(-tokens // _CONTEXT_PADDING_TOKENS) * _CONTEXT_PADDING_TOKENS


def _cells(layer_window: int | None, settings: ServingSettings) -> tuple[int, int]:
    """Tokens that a layer caches per stream, and the number of streams (llama-kv-cache-iswa.cpp, llama-context.cpp)."""
    streams = 1 if settings.unified_kv else max(1, settings.parallel)
    tokens = _padded(settings.context_tokens)
    if streams > 1:
        tokens = _padded(tokens // streams)
    if layer_window is not None:
        shared = settings.parallel if settings.unified_kv else 1
        tokens = _padded(min(tokens, layer_window * shared + settings.ubatch_tokens))
    return tokens, streams


def _kv_bytes(layer: Layer, settings: ServingSettings, shape: ModelShape) -> int:
    """Cache of one layer: ``cells · streams · kv_heads · (key_length · b_k + value_length · b_v)``."""
    if not layer.kv_heads:
        return 0
    tokens, streams = _cells(layer.window_tokens, settings)
    keys = layer.kv_heads * layer.key_length * CACHE_ELEMENT_BYTES[settings.cache_type_k]
    values = layer.kv_heads * layer.value_length
    if values and not settings.flash_attention:  # then values lie transposed, all layers as wide as the widest
        values = max(other.kv_heads * other.value_length for other in shape.layers)
    return int(tokens * streams * (keys + values * CACHE_ELEMENT_BYTES[settings.cache_type_v]))


def _input_bytes(shape: ModelShape, settings: ServingSettings) -> int:
    """Inputs of the graph: the masks of full and of sliding attention, and a few numbers per token."""
    element = 2 if settings.flash_attention else _FLOAT_BYTES
    windows = {layer.window_tokens for layer in shape.layers if layer.kv_heads}
    masks = sum(_cells(window, settings)[0] for window in windows)
    return settings.ubatch_tokens * (element * masks + 32)


def _compute_bytes(shape: ModelShape, settings: ServingSettings) -> int:
    """Activations alive at the widest point of the graph, beside its inputs.

    The graph's tensors share one buffer, each from where it is made to where it is last read (ggml-alloc.c), so the
    buffer is as large as the widest point of the widest layer. Which tensors live there was read off the graphs
    (llama-graph.cpp) and checked against the sizes that the engine reports for thirty models.
    """
    widest = max((_live_bytes(shape, layer, settings) for layer in shape.layers), default=0)
    beside = _FLOAT_BYTES * settings.ubatch_tokens * shape.side_width
    logits = _FLOAT_BYTES * shape.vocabulary * max(1, settings.parallel)
    return _input_bytes(shape, settings) + max(widest + beside, logits)


def _live_bytes(shape: ModelShape, layer: Layer, settings: ServingSettings) -> int:
    per_token = max(_feed_forward_floats(shape, layer), _attention_floats(shape, layer, settings))
    recurrent = settings.ubatch_tokens * _recurrent_floats(shape, layer)
    states = max(1, settings.parallel) * layer.state_elements
    return _FLOAT_BYTES * max(settings.ubatch_tokens * per_token, recurrent + states)


def _feed_forward_floats(shape: ModelShape, layer: Layer) -> int:
    """Gate, up and their product beside five copies of the residual stream; of all experts used for a token.

    The experts' outputs take the place of gate and up where they fit there.
    """
    dense = 3 * layer.feed_forward + 5 * shape.embedding
    if not shape.experts_used or not layer.experts:
        return dense
    outputs = shape.experts_used * shape.embedding if shape.embedding > 2 * shape.expert_width else 0
    return 3 * shape.experts_used * shape.expert_width + outputs + 5 * shape.embedding


def _attention_floats(shape: ModelShape, layer: Layer, settings: ServingSettings) -> int:
    """Without flash attention every head's scores over the whole cache, beside queries, keys and values."""
    if not layer.kv_heads or settings.flash_attention:
        return 0
    queries = layer.heads * layer.key_length
    cached = layer.kv_heads * (layer.key_length + layer.value_length)
    scores = layer.heads * _cells(layer.window_tokens, settings)[0]
    return scores + 3 * shape.embedding + 3 * queries + cached


def _recurrent_floats(shape: ModelShape, layer: Layer) -> int:
    """Gate, convolution and scan of a state-space layer: some seven times its width, beside the residual stream."""
    if not layer.state_elements:
        return 0
    return max(7 * shape.inner_width, 6 * shape.convolution_width) + shape.embedding
