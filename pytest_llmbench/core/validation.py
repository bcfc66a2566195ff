"""From a parsed file to a valid model; errors name file, line, key, what is allowed and the nearest spelling."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pytest_llmbench.core.config import Config, NotUsedYet, Section
from pytest_llmbench.core.metrics import SETTINGS_AMONG_THRESHOLDS
from pytest_llmbench.core.yaml_source import Location, YamlDocument, dotted, nearest, shown
from pytest_llmbench.errors import ConfigError

# What the patterns of the models mean, in words.
_FORMS = {
    r"^[A-Za-z_][A-Za-z0-9_]*$": "the name of an environment variable: letters, digits and _ only",
    r"^[A-Za-z0-9_.+-]+$": "letters, digits and _ . + - only",
    r"^[0-9a-f]{64}$": "the 64 hexadecimal digits of a SHA-256",
    r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+$": "a name and an exact version, name==version",
}

SectionT = typing.TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class Loaded(typing.Generic[SectionT]):
    """A validated file together with the document it came from, so that later checks can still point at a line."""

    value: SectionT
    document: YamlDocument


def validate(model: type[SectionT], document: YamlDocument, location: Location = (), data: Any = None) -> SectionT:
    """Validate a document, or the part of it at ``location``.

    Raises:
        ConfigError: one line per problem, each with file, line, key and what is allowed.
    """
    if data is None:
        data = document.data if document.data is not None else {}
    if not isinstance(data, dict):
        raise document.error(location, f"must hold keys and values, not {type(data).__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        lines = []
        for error in exc.errors():
            where = (*location, *error["loc"])
            if error["type"] != "extra_forbidden":  # there, the last step is a key of the file whatever its name
                where = _without_type_names(where)
            lines.append(document.complaint(where, _explain(model, error)))
        raise ConfigError("\n".join(dict.fromkeys(lines))) from exc


def _without_type_names(location: Sequence[str | int]) -> tuple[str | int, ...]:
    """Pydantic puts the names of union members and ``[key]`` into locations; they are not in the file."""
    return tuple(step for step in location if step not in {"str", "list[str]", "[key]"})


def _explain(model: type[BaseModel], error: Any) -> str:
    kind, value, location = error["type"], error["input"], error["loc"]
    if kind == "extra_forbidden":
        allowed = sorted(_keys_at(model, location[:-1]))
        return f"unknown key{nearest(str(location[-1]), allowed)}; allowed: {', '.join(allowed)}"
    if kind == "literal_error":
        expected = error["ctx"]["expected"]
        near = nearest(value, expected.split("'")[1::2]) if isinstance(value, str) else ""
        return f"{shown(value)} is not allowed{near}; allowed: {expected}"
    if kind == "missing":
        return "is required"
    if kind in {"model_type", "dict_type"}:
        return f"must hold keys and values, not {shown(value)}"
    if kind == "string_pattern_mismatch":
        return f"{shown(value)} is not allowed; write {_FORMS[error['ctx']['pattern']]}"
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:] if message.startswith("Input") else message
    instead = "" if isinstance(value, (dict, list)) or kind == "value_error" else f", not {shown(value)}"
    return message.replace("input should", "should") + instead


def _keys_at(model: type[BaseModel], location: Sequence[str | int]) -> set[str]:
    """The keys a section allows, following ``location`` down from ``model``."""
    current: Any = model
    for step in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[str(step)].annotation
        else:
            current = typing.get_args(current)[-1]
        if typing.get_origin(current) in (typing.Union, types.UnionType):
            current = next(arg for arg in typing.get_args(current) if arg is not type(None))
    return set(current.model_fields)


def resolve_path(value: str, rootdir: Path, document: YamlDocument, location: Location) -> Path:
    """Resolve a configured folder or file: absolute as it is, relative below ``rootdir`` and not out of it.

    Raises:
        ConfigError: a relative path that climbs out.
    """
    path = Path(value).expanduser()
    if path.is_absolute():
        return path
    if ".." in path.parts or not value or "\0" in value:
        raise document.error(
            location, f"{value!r} may not climb out of {rootdir}; write an absolute path to go elsewhere"
        )
    return rootdir / path


def split_settings(config: Loaded[Config]) -> dict[str, dict[str, Any]]:
    """Settings by profile, including those the founding file keeps among the thresholds (``settings`` wins)."""
    merged: dict[str, dict[str, Any]] = {}
    for profile, keys in SETTINGS_AMONG_THRESHOLDS.items():
        table = config.value.thresholds.get(profile) or {}
        moved = {key: table[key] for key in keys if key in table}
        if moved:
            merged[profile] = moved
    for profile, table in config.value.settings.items():
        merged[profile] = {**merged.get(profile, {}), **table}
    return merged


def keys_not_used_yet(section: BaseModel, location: tuple[str | int, ...] = ()) -> Iterator[str]:
    """Keys the user wrote whose feature does not exist yet, dotted; defaults are not mentioned."""
    for name in sorted(section.model_fields_set):
        field = type(section).model_fields[name]
        where = (*location, name)
        if any(isinstance(mark, NotUsedYet) for mark in field.metadata):
            yield dotted(where)
            continue
        yield from _inside(getattr(section, name), where)


def _inside(value: Any, location: tuple[str | int, ...]) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from keys_not_used_yet(value, location)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _inside(inner, (*location, str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _inside(inner, (*location, index))
