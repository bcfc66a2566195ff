"""``configuration.md``: every key of the two files, from the models that check them and the comments beside them."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pytest_llmbench.core.config import Config, ModelEntry, Models, NotUsedYet, Source
from pytest_llmbench.core.metrics import FOUNDING_THRESHOLDS
from pytest_llmbench.core.settings import FOUNDING_SETTINGS, QUICK_SETTINGS
from pytest_llmbench.runtime.share import share_dir
from scripts.reference.comments import comments_of
from scripts.reference.text import as_markdown, attributes, described, own_docstring, page, table

INTRODUCTION = """Every key of `configs/config.yaml` and `configs/models.yaml`. All may be left out unless it says
*required*. A mistake is told with file, line and the nearest spelling before anything is measured."""

OF_MODELS = """Which models, and where they come from; `--llmbench-models` chooses another file. By example:
[adding models](../howto-models.md)."""

# Keys whose meaning stands in no docstring, and beside no key of the shipped files.
_WORDS = {
    "variants[].id": "what the variant is called in names of cells and records",
    "variants[].backend": "in place of `backend`",
    "variants[].server_path": "in place of `llama_cpp.server_path`: to compare two builds",
    "variants[].extra_args": "in place of `llama_cpp.extra_args`",
    "variants[].base_url": "in place of the `base_url` of `ollama` or `openai`",
    "variants[].ctx_size": "in place of `default_ctx_size`",
    "variants[].gpu_layers": "in place of `gpu_layers`; -1: all of them",
    "variants[].threads": "in place of `default_threads`",
    "variants[].parallel": "slots of the server",
    "variants[].cache_type_k": "type of the keys in the KV cache; default: the engine's, f16",
    "variants[].cache_type_v": "type of the values in the KV cache; default: the engine's, f16",
    "variants[].thresholds": "limits of this variant; they win over those of the model and of `thresholds`",
    "use_cases.<name>.title": "for people; without one, the name",
    "use_cases.<name>.profiles": "what is measured in all of them is a candidate; []: in all that the run measured",
    "use_cases.<name>.weights": "metric → weight in the score that candidates are ranked by",
    "use_cases.<name>.requires": "min_<metric> or max_<metric> → limit; what misses one is not fit for the use",
    "models": "the models; names must differ",
    "models[].name": "as it is shown and recorded",
    "models[].size": "parameters, such as 135M, 1.5B, 7B or 8x7B: small models run first",
    "models[].source": "where files come from that `repo` does not have: one source, or one per quantization",
    "models[].served": "quantization → the name by which a server that brings its own models knows it",
    "models[].thresholds": "limits of this model; they win over `thresholds`",
    "models[].source.path": "of a file on this machine; relative to the rootdir, or absolute",
    "quick_mode_quants": "the quantizations that quick mode runs, in this order",
    "full_mode_quants": "the quantizations that full mode runs",
    "ollama.base_url": "where Ollama listens",
    "ollama.default_ctx_size": "tokens of context",
    "llama_cpp.default_ctx_size": "tokens of context; must not exceed what the model was trained for",
    "llama_cpp.default_threads": "null: one per physical core that this process may use",
    "settings.batch.num_documents": "how many documents are summarised",
    "settings.batch.output_tokens": "of each summary",
    "settings.long_context.output_tokens": "of each answer",
    "measurement.max_samples": "the most samples of a cell",
    "measurement.target_half_width_percent": "how narrow the interval of the decode rate has to become",
}

_UNDER: dict[Any, str] = {list: "[]", dict: ".<name>"}


def configuration_page() -> str:
    """The page of the configuration.

    Raises:
        LookupError: a key has no words, or words are kept here for one that has its own, or does not exist.
    """
    words = _Words()
    sections = [["## config.yaml"], *_of_section(Config, "", words)]
    sections += [["## models.yaml", "", OF_MODELS, "", *_table(Models, "", words)]]
    for of, prefix, title in ((ModelEntry, "models[].", "Of a model"), (Source, "models[].source.", "Of a source")):
        sections.append([f"### {title}", "", *_table(of, prefix, words)])
    words.require_complete()
    return page("Configuration", INTRODUCTION, *sections)


class _Words:
    """What is said of a key: by its field, its class, the shipped file, or the table above."""

    def __init__(self) -> None:
        self._comments = comments_of((share_dir("configs") / "config.yaml").read_text("utf-8"))
        self._unused = set(_WORDS)
        self._without: list[str] = []

    def block(self, key: str) -> str:
        """The comment above a key of the shipped file."""
        return self._comments.above.get(key, "")

    def of(self, key: str, field: FieldInfo, owner: type[BaseModel]) -> str:
        own = (
            field.description
            or attributes(owner).get(key.rpartition(".")[2])
            or self._comments.beside.get(key)
            or self._comments.above.get(key)
        )
        if own is None:
            self._unused.discard(key)
            own = _WORDS.get(key)
        if own is None:
            self._without.append(key)
        return as_markdown(own or "")

    def require_complete(self) -> None:
        if self._without:
            keys = ", ".join(self._without)
            raise LookupError(
                f"nothing is said of {keys}; say it in a docstring, or beside the key in configs/config.yaml"
            )
        if self._unused:
            keys = ", ".join(sorted(self._unused))
            raise LookupError(f"these keys say themselves what they mean, or are gone; take them from _WORDS: {keys}")


def _of_section(section: type[BaseModel], prefix: str, words: _Words) -> Iterator[list[str]]:
    """The keys of the main file, each under a heading of its own; those that hold keys with a table of these."""
    for name, field in section.model_fields.items():
        key = prefix + name
        lines = [f"### `{key}`", "", *_prose(words.block(key))]
        inner = _section_in(field.annotation)
        if name == "thresholds":
            yield [*lines, *_thresholds()]
        elif name == "settings":
            yield lines
            for profile, of in FOUNDING_SETTINGS.items():
                yield [
                    f"#### `settings.{profile}`",
                    "",
                    *_intro(of),
                    *_table(of, f"settings.{profile}.", words, profile),
                ]
        elif inner is None:
            if not words.block(key):
                lines.append(f"- meaning: {words.of(key, field, section)}")
            yield [*lines, f"- allowed: {_allowed(section, name)}", f"- default: {_default(field)}"]
        else:
            many = _UNDER.get(typing.get_origin(field.annotation), "")
            intro = [] if words.block(key) else _intro(inner)
            yield [*lines, *intro, *_table(inner, f"{key}{many}.", words)]


def _intro(of: type[BaseModel]) -> list[str]:
    """What a section's docstring says, without its list of attributes."""
    lines = described(own_docstring(of), without="Attributes")
    return [*lines, ""] if lines else []


def _table(of: type[BaseModel], prefix: str, words: _Words, profile: str | None = None) -> list[str]:
    quick = QUICK_SETTINGS.get(profile or "", {})
    header = ["key", "allowed", "default", *(["quick"] if profile else []), "meaning"]
    rows = []
    for name, field in of.model_fields.items():
        meaning = words.of(prefix + name, field, of)
        if any(isinstance(mark, NotUsedYet) for mark in field.metadata):
            meaning += "; accepted, without effect in this version"
        row = [f"`{name}`", _allowed(of, name), _default(field), meaning]
        rows.append([*row[:3], _value(quick[name]) if name in quick else "–", meaning] if profile else row)
    return table(header, rows)


def _thresholds() -> list[str]:
    return table(
        ("key", "metric", "default"),
        (
            (f"`{profile}.{key.key}`", f"[`{key.metric}`](metrics.md#{key.metric})", f"{key.default:g}")
            for profile, keys in FOUNDING_THRESHOLDS.items()
            for key in keys
        ),
    )


def _prose(block: str) -> list[str]:
    """A comment of several lines: its text, and what is set off in it as it stands."""
    lines: list[str] = []
    set_off = False
    for line in block.splitlines():
        if line.startswith("  ") != set_off:
            set_off = not set_off
            lines += ["", "```text"] if set_off else ["```", ""]
        lines.append(line[2:] if set_off else as_markdown(line))
    if set_off:
        lines.append("```")
    return [*lines, ""] if lines else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds: itself, in a list, or under names of the user's choice."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) in (list, dict, typing.Union, types.UnionType):
        return next(filter(None, map(_section_in, inner)), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    return _value(field.get_default(call_default_factory=True))


def _value(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{text}`"


def _allowed(of: type[BaseModel], name: str) -> str:
    schema = of.model_json_schema()
    return _in_words(schema["properties"][name], schema.get("$defs", {}))


def _in_words(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What a JSON schema lets pass; checks that schemas do not know are told by the key's meaning."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_in_words(part, definitions) for part in schema["anyOf"]))
    if "$ref" in schema:
        return "keys and values"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        inner = _in_words(schema.get("items", {}), definitions)
        return f"list of {inner}"
    if kind == "object":
        values = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), None)
        inner = _in_words(values if isinstance(values, dict) else {}, definitions)
        return "keys and values" if inner == "see its meaning" else f"key → {inner}"
    if kind in {"integer", "number"}:
        return ("whole number" if kind == "integer" else "number") + _bounds(schema)
    return {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}.get(str(kind), "see its meaning")


def _bounds(schema: dict[str, Any]) -> str:
    parts = [
        f" {words} {schema[key]:.15g}"
        for key, words in (("exclusiveMinimum", "above"), ("minimum", "from"), ("maximum", "to"))
        if key in schema
    ]
    return "".join(parts)
