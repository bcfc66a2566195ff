"""Which type each tensor of a quantized file has: llama-quantize's rules, without an importance matrix.

A quantization such as Q4_K_M is a mix: most tensors get its base type, and those that suffer most get more bits. The
tests compare every mix with ``llama-quantize --dry-run``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.ggufs.writer import TYPES, Dims

BASES = {
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q4_0": "Q4_0",
    "Q4_1": "Q4_1",
    "Q5_0": "Q5_0",
    "Q5_1": "Q5_1",
    "Q2_K": "Q2_K",
    "Q3_K_S": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K",
    "MXFP4_MOE": "MXFP4",
}
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_EMBEDDINGS = {"token_embd.weight", "per_layer_token_embd.weight"}
_VALUES = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
_SINGLE = re.compile(r"_norm\.weight|ffn_gate_inp\.weight|altup_(correct|predict)|ssm_conv1d|shortconv\.conv\.")
_HALF = re.compile(r"altup|laurel|per_layer_model_proj")
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Traits:
    """What the rules ask of a model.

    Attributes:
        layers: number of layers.
        grouping: query heads per key head in the first layer; 0 where that layer has no attention.
        experts: number of experts; 0 for a dense model.
        is_70b: a Llama or Qwen 2 of 80 layers, whose small value tensors get more bits.
    """

    layers: int
    grouping: int
    experts: int
    is_70b: bool


def types_of(tensors: Iterable[tuple[str, Dims]], quantization: str, traits: Traits) -> list[tuple[str, Dims, str]]:
    """Tensors with their types.

    Args:
        tensors: name and dimensions, in order of the layers.
        quantization: a key of ``BASES``.
    """
    tensors = list(tensors)
    names = [name for name, _ in tensors]
    values = [name for name in names if name.endswith(_VALUES)]
    tied = "output.weight" not in names
    base = BASES[quantization]
    typed = []
    for name, dims in tensors:
        if len(dims) < 2 or not name.endswith("weight") or _SINGLE.search(name):
            kind = "F32"
        elif _HALF.search(name):
            kind = base if base == "BF16" else "F16"  # as converted, before any quantization
        elif base in {"F16", "BF16"}:
            kind = base
        elif name == "output.weight" or (tied and name in _EMBEDDINGS):
            kind = _fitting("Q8_0" if base in {"Q8_0", "MXFP4"} or dims[0] % TYPES[base][1] else "Q6_K", dims)
        elif base == "MXFP4":
            kind = "MXFP4" if len(dims) > 2 else "Q8_0"
        else:
            index = values.index(name) if name in values else -1
            kind = _fitting(_mixed(name, quantization, traits, index, len(values)), dims)
        typed.append((name, dims, kind))
    return typed


def _fitting(kind: str, dims: Dims) -> str:
    """The type, or one with smaller blocks where rows are not a whole number of its blocks."""
    for candidate in (kind, _FALLBACK.get(kind, "F16")):
        if dims[0] % TYPES[candidate][1] == 0:
            return candidate
    return "F16"


def _mixed(name: str, quantization: str, traits: Traits, index: int, values: int) -> str:
    """The type of a tensor within the layers, ``index`` being its place among the ``values``."""
    base, eight = BASES[quantization], traits.experts == 8
    if index >= 0:
        kind = _VALUE_RULES.get(quantization, _keep)(base, index, values, traits)
        if traits.is_70b and kind in {"Q3_K", "Q4_K"}:
            kind = "Q5_K"
        return "Q8_0" if eight else kind
    if name.endswith("attn_k.weight"):
        return "Q8_0" if eight else base
    if "ffn_down" in name:
        layer = _LAYER.match(name)
        assert layer is not None
        return _DOWN_RULES.get(quantization, _keep)(base, int(layer[1]), traits.layers, traits)
    if name.endswith("attn_output.weight"):
        return (_OUTPUT_OF_EIGHT if eight else _OUTPUT).get(quantization, base)
    return base


def _keep(base: str, index: int, count: int, traits: Traits) -> str:
    return base


def _some_in_q6(base: str, index: int, count: int, traits: Traits) -> str:
    """Six bits for the first eighth, the last eighth, and every third between."""
    eighth = count // 8
    return "Q6_K" if index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2 else base


_Rule = Callable[[str, int, int, Traits], str]
_VALUE_RULES: dict[str, _Rule] = {
    "Q2_K": lambda base, index, count, traits: "Q4_K" if traits.grouping >= 4 else "Q3_K",
    "Q3_K_M": lambda base, index, count, traits: "Q5_K" if index < 2 else "Q4_K",
    "Q3_K_L": lambda base, index, count, traits: "Q5_K",
    "Q4_K_S": lambda base, index, count, traits: "Q5_K" if index < 4 else base,
    "Q4_K_M": _some_in_q6,
    "Q5_K_M": _some_in_q6,
}
_DOWN_RULES: dict[str, _Rule] = {
    "Q2_K": lambda base, index, count, traits: "Q3_K",
    "Q3_K_M": lambda base, index, count, traits: "Q5_K" if index < count // 16 else "Q4_K",
    "Q3_K_L": lambda base, index, count, traits: "Q5_K",
    "Q4_K_S": lambda base, index, count, traits: "Q5_K" if index < count // 8 else base,
    "Q4_K_M": _some_in_q6,
    "Q5_K_M": _some_in_q6,
}
_OUTPUT = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
_OUTPUT_OF_EIGHT = dict.fromkeys(["Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"], "Q5_K")
