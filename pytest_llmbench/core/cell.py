"""What a cell is, what it is called, and what server it needs."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass, field
from typing import Any

_NOT_ALLOWED_IN_ID = re.compile(r"[^A-Za-z0-9_.+-]")
_SIZE = re.compile(r"(?:(\d{1,6})x)?(\d{1,6}(?:\.\d{1,6})?)([KMBT])", re.IGNORECASE | re.ASCII)
_SIZE_UNIT = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}

# Q4 first: the usual sweet spot is the answer people want first.
QUANTIZATION_ORDER: tuple[str, ...] = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q3_K_M", "Q2_K", "Q8_0")


@dataclass(frozen=True, slots=True)
class Cell:
    """One item of the matrix: primitives only, because it crosses processes; details are looked up in the matrix.

    Attributes:
        variant: id of the configured variant, None where none are configured.
    """

    model: str
    quantization: str
    profile: str
    variant: str | None = None

    @property
    def id(self) -> str:
        """The part of the node id between brackets."""
        return cell_id(self.model, self.quantization, self.variant)


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """Everything whose change needs another server: the key under which servers are pooled.

    Attributes:
        kind: name of the backend.
        label: names log files and messages; two cells that differ in nothing else share a server.
        model_file: ``<size>/<file name>``, the file below ``model_dir``; None where the server brings its own.
        model_name: the name the server knows the model by, None where we start it on ``model_file``.
        context_size: tokens per request; None: whatever the server has.
        threads: None: one per physical core.
        gpu_layers: layers offloaded to a GPU, None where we do not start the server.
        base_url: address of a server that runs already.
        server_path: the binary of a server we start.
        extra_args: arguments for that binary, as the user wrote them.
        command: how to start a server of the user's choice; None where it runs already.
        start_server: whether to start an Ollama server of our own.
        chat_mode: when an Ollama model is asked through its chat route: ``auto``, ``force`` or ``off``.
    """

    kind: str
    label: str = field(compare=False)
    model_file: str | None = None
    model_name: str | None = None
    context_size: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    server_path: str | None = None
    extra_args: tuple[str, ...] = ()
    command: tuple[str, ...] | None = None
    start_server: bool = False
    chat_mode: str | None = None
    max_load_seconds: float = 300.0

    def as_args(self) -> dict[str, Any]:
        """What was asked for, for records: everything that is set; never a key's value."""
        hidden = {"kind", "label", "model_file", "max_load_seconds"}
        shown = {
            key: value
            for key, value in asdict(self).items()
            if key not in hidden and value is not None and value is not False and value != ()
        }
        return {key: shlex.join(value) if isinstance(value, tuple) else value for key, value in shown.items()}


def cell_id(model: str, quantization: str, variant: str | None) -> str:
    """Name a cell ``<model>-<quant>[-<variant>]`` with only ``[A-Za-z0-9_.+-]``; anything else becomes ``_``."""
    parts = [model, quantization] if variant is None else [model, quantization, variant]
    return safe_name("-".join(parts))


def safe_name(text: str) -> str:
    """Replace what is not allowed in a node id (nor wise in a file name) by ``_``."""
    return _NOT_ALLOWED_IN_ID.sub("_", text)


def parse_model_size(size: str) -> float:
    """Number of parameters in a size label such as ``135M``, ``1.5B`` or ``8x7B``.

    Raises:
        ValueError: the label is not of that form.
    """
    match = _SIZE.fullmatch(size)
    if match is None:
        msg = f"{size!r} is not a model size; write a number and K, M, B or T, for example 135M, 1.5B or 8x7B"
        raise ValueError(msg)
    experts, number, unit = match.groups()
    return int(experts or 1) * float(number) * _SIZE_UNIT[unit.upper()]


def quantization_rank(quantization: str) -> tuple[int, str]:
    """Sort key: the founding order first, then the others by name."""
    try:
        return QUANTIZATION_ORDER.index(quantization), ""
    except ValueError:
        return len(QUANTIZATION_ORDER), quantization
