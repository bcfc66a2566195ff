"""``hooks.md``: the marker, the fixtures, what ``llm`` can do, and the hooks with their examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from pytest_llmbench import hookspecs
from pytest_llmbench.adapters.llm import LLM, Reply
from pytest_llmbench.adapters.registry import BackendRegistry, ProfileRegistry
from pytest_llmbench.backends.base import Backend, RunningServer, StartRequest
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.profiles.base import Measurement, Profile, ProfileContext
from scripts.reference.text import described, own_docstring, page

INTRODUCTION = """What a test of yours may use, and what may be extended. Step by step, with examples that run:
[a profile of your own](../howto-profile.md), [a backend of your own](../howto-backend.md)."""

MARKER = """## The marker

`@pytest.mark.llmbench(profile="interactive")` runs a test once per cell of that profile: model × quantization ×
variant. Inside it, the fixture `llm` is the model on its running server; `server` is that server, and `cell` says which
cell it is. Each cell has its profile's name as a marker too, for `-m`."""

# The classes that those who write tests, profiles and backends meet, and what an object of each is called in examples.
_SHOWN: tuple[tuple[type, str], ...] = (
    (LLM, "llm"),
    (Reply, "reply"),
    (Profile, "profile"),
    (ProfileContext, "context"),
    (Generation, "generation"),
    (RequestRecord, "record"),
    (Measurement, "measurement"),
    (ProfileRegistry, "registry"),
    (Backend, "backend"),
    (StartRequest, "request"),
    (ServerSpec, "spec"),
    (RunningServer, "server"),
    (BackendRegistry, "registry"),
)


def hooks_page() -> str:
    """The page of hooks and fixtures."""
    hooks = [
        ["## Hooks"],
        *(
            [f"### `{name}`", "", f"`{name}{_signature(hook)}`", "", *described(inspect.getdoc(hook) or "")]
            for name, hook in vars(hookspecs).items()
            if name.startswith("pytest_llmbench_")
        ),
    ]
    classes = (_of_class(of, variable) for of, variable in _SHOWN)
    return page("Fixtures and hooks", INTRODUCTION, [MARKER], *hooks, ["## Classes"], *classes)


def _of_class(of: type, variable: str) -> list[str]:
    lines = [f"### `{of.__name__}`", "", *described(own_docstring(of))]
    if hasattr(of, "__dataclass_fields__") or hasattr(of, "model_fields"):
        fields = (f"`{name}: {kind}`" for name, kind in of.__annotations__.items() if not name.startswith("_"))
        lines += ["", f"Fields: {', '.join(fields)}"]
    for name, member in _members(of):
        lines += [
            "",
            f"#### `{variable}.{name}{_signature(member)}`" if callable(member) else f"#### `{variable}.{name}`",
        ]
        target = member.fget if isinstance(member, property) else member
        lines += ["", *described(inspect.getdoc(target) or "")]
    return lines


def _members(of: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that the class itself defines and explains."""
    for name, member in vars(of).items():
        function = member.fget if isinstance(member, property) else member
        if inspect.isfunction(function) and function.__doc__ and not name.startswith("_"):
            yield name, member


def _signature(function: Callable[..., Any]) -> str:
    """As it is written, without ``self``."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=_AsWritten(parameter.annotation))
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    return str(signature.replace(parameters=parameters, return_annotation=_AsWritten(signature.return_annotation)))


class _AsWritten(str):
    """An annotation that is not evaluated, shown without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
