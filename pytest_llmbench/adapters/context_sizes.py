"""Which of the contexts a profile would like to have its server can be given: known before it is started."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_llmbench.adapters.memory import predict
from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.core.cell import Cell, ServerSpec
from pytest_llmbench.errors import ServerError


@dataclass(frozen=True, slots=True)
class ContextChoice:
    """The server to start, and why it has no larger context.

    Attributes:
        refused: size in tokens → why.
    """

    spec: ServerSpec
    refused: dict[int, str] = field(default_factory=dict)


def choose_context(suite: Suite, cell: Cell) -> ContextChoice:
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
        return ContextChoice(spec)
    if spec.model_file is None:
        return ContextChoice(spec if spec.kind == "ollama" else suite.spec(cell, wanted[0]))
    model = suite.matrix.of(cell).model
    found = suite.store.header(model, cell.quantization)
    trained = found.header.context_length if found is not None else None
    refused: dict[int, str] = {}
    for size in reversed(wanted):
        candidate = suite.spec(cell, size)
        if trained is not None and size > trained:
            refused[size] = f"the model was trained for {trained} tokens"
            continue
        prediction = predict(suite, cell, candidate)
        if prediction is None or prediction.verdict != "does_not_fit":
            return ContextChoice(candidate, dict(sorted(refused.items())))
        refused[size] = f"it {prediction.reason(cell.quantization).message}"
    refused.pop(wanted[0])  # what is wrong with the smallest, the checks before a download and a load will tell
    return ContextChoice(suite.spec(cell, wanted[0]), dict(sorted(refused.items())))


def smaller_context(suite: Suite, cell: Cell, choice: ContextChoice, error: ServerError) -> ContextChoice | None:
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
    return ContextChoice(spec, choice.refused | {size: why for size in wanted if size > fitting[-1]})
