"""YAML files that remember on which line each key stands, so that an error can say so."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pytest_llmbench.errors import ConfigError

Location = Sequence[str | int]

# The C loader is some ten times faster; a PyYAML built without libyaml still works.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class YamlDocument:
    """A parsed file: its data, and where each part of it stands.

    Attributes:
        name: the path as messages show it.
        data: the document as plain Python, None when empty.
    """

    name: str
    data: Any
    root: Node | None = field(repr=False, default=None)

    def line_of(self, location: Location) -> int:
        """1-based line of the key at ``location``, or of its deepest ancestor that exists in the file."""
        line, node = 1, self.root
        for step in location:
            found = _child(node, step)
            if found is None:
                continue  # a step that only our models know, for example the quantization of a single source
            line, node = found
        return line

    def error(self, location: Location, message: str) -> ConfigError:
        """A ConfigError that names file, line and key."""
        return ConfigError(self.complaint(location, message))

    def complaint(self, location: Location, message: str) -> str:
        """``file:line: key: message``, one line."""
        key = dotted(location)
        return f"{self.name}:{self.line_of(location)}: {key + ': ' if key else ''}{message}"


def load_yaml(path: Path, name: str) -> YamlDocument:
    """Read a YAML file.

    Raises:
        ConfigError: the file can not be read, is not YAML, or holds a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{name}: can not be read: {reason}") from exc
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str) -> YamlDocument:
    """Parse YAML text; see :func:`load_yaml`."""
    loader = _Loader(text)
    try:
        root: Node | None = loader.get_single_node()
        if root is None:
            return YamlDocument(name, None)
        _reject_repeated_keys(root, name)
        return YamlDocument(name, loader.construct_document(root), root)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        problem = " ".join(filter(None, (exc.context, exc.problem)))
        raise ConfigError(f"{name}:{line}: not valid YAML: {problem}; check indentation, colons and quotes") from exc
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as exc:
        # ValueError: a date such as 2024-99-99; YAMLError without a mark: a control character.
        raise ConfigError(f"{name}:1: not valid YAML: {str(exc).splitlines()[0] or type(exc).__name__}") from exc
    finally:
        loader.dispose()


def dotted(location: Location) -> str:
    """``('models', 0, 'size')`` → ``models[0].size``."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` when an allowed word is close, else nothing."""
    match = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _child(node: Node | None, step: str | int) -> tuple[int, Node] | None:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if isinstance(key, ScalarNode) and key.value == str(step):
                return key.start_mark.line + 1, value
    if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
        child = node.value[step]
        return child.start_mark.line + 1, child
    return None


def _reject_repeated_keys(root: Node, name: str) -> None:
    """YAML lets the last of two equal keys win in silence; a limit someone wrote would then be ignored."""
    seen_nodes: set[int] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if id(node) in seen_nodes:
            continue
        seen_nodes.add(id(node))
        if isinstance(node, SequenceNode):
            pending.extend(node.value)
        elif isinstance(node, MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                pending.append(value)
                if not isinstance(key, ScalarNode):
                    continue
                line = key.start_mark.line + 1
                if key.value in lines and key.value != "<<":
                    raise ConfigError(
                        f"{name}:{line}: {key.value}: written twice (first on line {lines[key.value]}); keep one"
                    )
                lines[key.value] = line
