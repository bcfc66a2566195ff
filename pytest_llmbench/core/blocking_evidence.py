"""What the blocking rules reason about: a cell that may run, its size, and evidence filed where a rule finds it."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

from pytest_llmbench.core.cell import parse_model_size
from pytest_llmbench.core.fitting import RELATIVE_SIZE
from pytest_llmbench.core.gguf_types import TENSOR_TYPES_BY_NAME, known_quantization
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.core.thresholds import Limit
from pytest_llmbench.errors import Primitive

_F16_BITS = 16
# Labels are rounded (a 7B has 6.7 to 7.6 billion parameters), and how large a quantization becomes differs by some
# percent from model to model; what is not larger by this factor may well be smaller.
_CLEARLY = 1.1
# Mixtures of experts: 8x7B, or 30B-A3B, of which 3B are active.
_MIXTURE = re.compile(r"\d+x\d|(?:^|[^A-Za-z0-9])A\d+(?:\.\d+)?[MB](?:$|[^A-Za-z0-9])", re.IGNORECASE | re.ASCII)
_BITS_IN_NAME = re.compile(r"\d+", re.ASCII)
RUN_ANYWAY = "run it all the same with --llmbench-no-blocking"
_E = TypeVar("_E")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A cell that may be worth running.

    Attributes:
        model_size: the label, such as ``7B``.
        host: fingerprint of the machine that would run it; another machine's outcome says nothing about this one.
        settings: what is asked of the server (``ServerSpec.as_args()``), with ``context_size`` where one is asked for.
        limits: the thresholds in force for it.
    """

    nodeid: str
    model: str
    model_size: str
    quantization: str
    profile: str
    variant: str | None
    backend: str
    host: str
    settings: Mapping[str, Primitive]
    limits: tuple[Limit, ...]


class Filed(Generic[_E]):
    """Evidence of one rule, by what it may be compared with; at most one piece per cell."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, dict[str, _E]] = {}
        self._group_of: dict[str, Hashable] = {}

    def put(self, nodeid: str, group: Hashable, evidence: _E) -> None:
        """File a cell's evidence, in place of what was filed for it before."""
        self.drop(nodeid)
        self._group_of[nodeid] = group
        self._groups.setdefault(group, {})[nodeid] = evidence

    def drop(self, nodeid: str) -> Hashable | None:
        """Forget a cell's evidence; returns the group it was in, None where there was none."""
        group = self._group_of.pop(nodeid, None)
        if group is not None:
            del self._groups[group][nodeid]
        return group

    def of(self, group: Hashable) -> Collection[_E]:
        """All evidence of a group, in no order that means anything."""
        return self._groups.get(group, {}).values()


def asked(cell: Candidate | CellRecord, *but: str) -> Hashable:
    """What is asked of the server but for some settings, and always but for what the server calls the model."""
    kept = (item for item in cell.settings.items() if item[0] != "model_name" and item[0] not in but)
    return tuple(sorted(kept))


def context_size(cell: Candidate | CellRecord) -> int | None:
    """Tokens of context asked for; None where the server has its own."""
    value = cell.settings.get("context_size")
    return value if isinstance(value, int) else None


def called(cell: Candidate | CellRecord) -> str:
    """A cell's name within a sentence: model, quantization and variant."""
    return " ".join(part for part in (cell.model, cell.quantization, cell.variant) if part is not None)


@lru_cache(maxsize=4096)
def parameters(model_size: str) -> float | None:
    """Number of parameters by the label; None for one that can not be read."""
    try:
        return parse_model_size(model_size)
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def is_mixture(model: str, model_size: str) -> bool:
    """Whether it is a mixture of experts by its name or label.

    Such a model computes with a part of its parameters, and ``8x7B`` counts shared ones eight times: neither its speed
    nor its memory can be told from the label.
    """
    return _MIXTURE.search(model) is not None or _MIXTURE.search(model_size) is not None


@lru_cache(maxsize=4096)
def nominal_bits(quantization: str) -> float | None:
    """Usual bits per weight of a whole model in this quantization; None for a name that is not known."""
    name = known_quantization(quantization)
    if name is None:
        return None
    if name in RELATIVE_SIZE:
        return RELATIVE_SIZE[name] * _F16_BITS
    kind = TENSOR_TYPES_BY_NAME.get(name)
    return kind.block_bytes * 8 / kind.block_values if kind is not None else None


@lru_cache(maxsize=4096)
def rough_bits(quantization: str) -> float:
    """Bits per weight good enough for an order: nominal, else the first number in the name (``int4``), else 16."""
    bits = nominal_bits(quantization)
    if bits is not None:
        return bits
    number = _BITS_IN_NAME.search(quantization)
    return float(number[0]) if number is not None else float(_F16_BITS)


def is_larger_model(size: str, than: str) -> bool:
    """Whether a label says clearly more parameters than another; False where one can not be read."""
    return _is_clearly_larger(parameters(size), parameters(than))


def is_larger_quantization(quantization: str, than: str) -> bool:
    """Whether a quantization clearly makes larger files than another; False where one's size is not known."""
    return _is_clearly_larger(nominal_bits(quantization), nominal_bits(than))


def _is_clearly_larger(value: float | None, than: float | None) -> bool:
    return value is not None and than is not None and value >= _CLEARLY * than
