"""Which server a cell is given: the largest context that can be had, and nothing that another cell has measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pytest_llmbench.adapters.memory import predict
from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.backends.llama_common import clamp_gpu_layers
from pytest_llmbench.core.cell import Cell, ServerSpec
from pytest_llmbench.core.gguf import GgufHeader
from pytest_llmbench.errors import SameAsAnother, ServerError


@dataclass(frozen=True, slots=True)
class ServerChoice:
    """The server to start, and why it has no larger context.

    Attributes:
        refused: size in tokens → why.
    """

    spec: ServerSpec
    refused: dict[int, str] = field(default_factory=dict)


def choose_server(suite: Suite, cell: Cell) -> ServerChoice:
    """The largest context that the model was trained for and that fits into memory; what a profile needs, for others.

    A server that runs already has the context it has: it only has to offer the smallest, and is asked for its own
    later.

    Where not even the smallest can be had, it is that.

    Raises:
        ModelError: the model's file is not what was expected.
    """
    wanted = suite.context_sizes(cell.profile)
    spec = suite.spec(cell)
    if not wanted:
        return ServerChoice(spec)
    if spec.model_file is None:
        return ServerChoice(spec if spec.kind == "ollama" else suite.spec(cell, wanted[0]))
    model = suite.matrix.of(cell).model
    found = suite.store.header(model, cell.quantization)
    trained = trained_tokens(spec, found.header) if found is not None else None
    refused: dict[int, str] = {}
    for size in reversed(wanted):
        candidate = suite.spec(cell, size)
        if trained is not None and size > trained:
            refused[size] = f"the model was trained for {trained} tokens"
            continue
        # What a running server of ours took is not free any more, and is not needed again.
        prediction = predict(suite, cell, candidate) if not suite.pool.holds(candidate) else None
        if prediction is None or prediction.verdict != "does_not_fit":
            return ServerChoice(candidate, dict(sorted(refused.items())))
        refused[size] = f"it {prediction.reason(cell.quantization).message}"
    refused.pop(wanted[0])  # what is wrong with the smallest, the checks before a download and a load will tell
    return ServerChoice(suite.spec(cell, wanted[0]), dict(sorted(refused.items())))


def trained_tokens(spec: ServerSpec, header: GgufHeader) -> int | None:
    """The context that a model was trained for; None where that is not known, or the server is told to stretch it."""
    scaled = any("rope" in argument or "yarn" in argument for argument in spec.extra_args)
    return None if scaled else header.context_length


def smaller_context(suite: Suite, cell: Cell, choice: ServerChoice, error: ServerError) -> ServerChoice | None:
    """What to try after a server has turned out to have a smaller context than it was asked for; None: nothing."""
    actual = error.evidence.get("actual_tokens")
    wanted = suite.context_sizes(cell.profile)
    fitting = [size for size in wanted if isinstance(actual, int) and size <= actual]
    if error.code != "context_mismatch" or not fitting:
        return None
    spec = suite.spec(cell, fitting[-1])
    if spec == choice.spec:
        return None
    why = f"the server does not give more than {actual} tokens"
    return ServerChoice(spec, choice.refused | {size: why for size in wanted if size > fitting[-1]})


def refuse_the_same_again(suite: Suite, cell: Cell, choice: ServerChoice) -> None:
    """Do not measure once more what another variant's cell has measured, because both go beyond the model (P40).

    Only settings that were cut to what the model has count: two variants that are alike as written are meant so.

    Raises:
        SameAsAnother: with the other cell's name.
    """
    if choice.spec.model_file is None:
        return
    found = suite.store.header(suite.matrix.of(cell).model, cell.quantization)
    refuse_the_same_of(suite, cell, choice.spec, found.header if found is not None else None)


def refuse_the_same_of(suite: Suite, cell: Cell, spec: ServerSpec, header: GgufHeader | None) -> None:
    """The same of a server on a file whose header is known, or known not to be here yet."""
    if not spec.gpu_layers:
        return
    layers = clamp_gpu_layers(spec.gpu_layers, header)[0] if header is not None else spec.gpu_layers
    key = (cell.model, cell.quantization, cell.profile, suite.limits(cell), replace(spec, gpu_layers=layers))
    other, asked = suite.measured.setdefault(key, (cell, spec.gpu_layers))
    if asked != spec.gpu_layers:
        raise SameAsAnother(
            "same_as_another",
            f"the model has {layers} layers, so gpu_layers: {spec.gpu_layers} is the same as {asked}, which "
            f"{other.id} has; look there",
            {"same_as": other.id, "gpu_layers": layers},
        )
