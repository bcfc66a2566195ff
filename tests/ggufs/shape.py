"""A model's shape, and files of that shape without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

from pytest_llmbench.core.gguf import FILE_TYPES
from tests.ggufs.layers import Tensors
from tests.ggufs.mixes import Traits, types_of
from tests.ggufs.writer import Dims, Value, tensor_bytes, vocabulary, write_gguf

_NUMBERS = {name: number for number, name in FILE_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Shape:
    """A model without its weights.

    Attributes:
        layer: gives the tensors of a layer by its index.
        metadata: keys below the architecture, besides those that follow from the other attributes.
        tied: whether the embedding is also the output's matrix.
        beside: tensors outside the layers, besides embedding, output and the last norm.
        tokenizer: ``gpt2`` or ``llama``; ``merges`` are pairs of the former.
    """

    architecture: str
    layers: int
    embedding: int
    vocabulary: int
    context: int
    layer: Callable[[int], Tensors]
    metadata: Mapping[str, Value]
    tied: bool = False
    beside: Tensors = field(default_factory=dict)
    last_norm: str = "output_norm.weight"
    tokenizer: Literal["gpt2", "llama"] = "gpt2"
    merges: int = 0

    def tensors(self) -> Iterator[tuple[str, Dims]]:
        """Name and dimensions of each tensor, in order of the layers."""
        yield "token_embd.weight", (self.embedding, self.vocabulary)
        yield from self.beside.items()
        for index in range(self.layers):
            for name, dims in self.layer(index).items():
                yield f"blk.{index}.{name}", dims
        yield self.last_norm, (self.embedding,)
        if not self.tied:
            yield "output.weight", (self.embedding, self.vocabulary)

    def typed_tensors(self, quantization: str) -> list[tuple[str, Dims, str]]:
        """The same with the name of each one's type."""
        return types_of(self.tensors(), quantization, self._traits())

    def weight_bytes(self, quantization: str) -> int:
        """Bytes of all tensors, without padding."""
        return sum(tensor_bytes(dims, kind) for _, dims, kind in self.typed_tensors(quantization))

    def parameter_count(self) -> int:
        """Number of weights, without tables of rotary factors."""
        return sum(prod(dims) for name, dims in self.tensors() if not name.startswith("rope_"))

    def header(self, quantization: str, vocabulary_kind: Literal["realistic", "none"]) -> dict[str, Value]:
        """All metadata of a file."""
        own: dict[str, Value] = {
            "block_count": self.layers,
            "context_length": self.context,
            "embedding_length": self.embedding,
            **self.metadata,
        }
        if vocabulary_kind == "none":
            own["vocab_size"] = self.vocabulary
        kind = "none" if vocabulary_kind == "none" else self.tokenizer
        return {
            "general.architecture": self.architecture,
            "general.type": "model",
            "general.file_type": _NUMBERS[quantization],
            "general.quantization_version": 2,
            **{f"{self.architecture}.{key}": value for key, value in own.items()},
            **vocabulary(kind, self.vocabulary, self.merges or self.vocabulary),
        }

    def _traits(self) -> Traits:
        heads, kv_heads = self.metadata.get("attention.head_count"), self.metadata.get("attention.head_count_kv")
        first = kv_heads[0] if isinstance(kv_heads, list) else kv_heads
        grouping = heads // first if isinstance(heads, int) and isinstance(first, int) and first else 0
        count = self.metadata.get("expert_count", 0)
        assert isinstance(count, int)
        return Traits(
            layers=self.layers,
            grouping=grouping,
            experts=count,
            is_70b=self.layers == 80 and grouping > 1 and self.architecture in {"llama", "qwen2"},
        )


def write_shape(
    path: Path,
    shape: Shape,
    quantization: str = "Q4_K_M",
    *,
    vocabulary: Literal["realistic", "none"] = "realistic",
) -> Path:
    """Write a file of a shape, its weights a hole.

    Args:
        quantization: a key of ``mixes.BASES``.
        vocabulary: ``none`` makes a header of some 100 kB instead of several MB, and loads faster.
    """
    return write_gguf(path, shape.header(quantization, vocabulary), shape.typed_tensors(quantization))
