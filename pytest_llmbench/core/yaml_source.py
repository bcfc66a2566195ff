"""YAML files that remember on which line each key stands, so that an error can say so."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import Reader

from pytest_llmbench.errors import ConfigError, readable

Location = Sequence[str | int]

# The C loader is some ten times faster; a PyYAML built without libyaml still works.
_FastestLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxlong = _repr.maxother = 120


class _Loader(_FastestLoader):  # type: ignore[misc]  # which of the two is known at run time only
    """Remembers on which line it is, so that a value that can not be built has a line too."""

    line = 1

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        self.line = node.start_mark.line + 1
        return super().construct_object(node, deep=deep)


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
        return _complaint(self.name, self.line_of(location), f"{key}: {message}" if key else message)


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
    if unreadable := Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, unreadable.start()) + 1
        raise ConfigError(
            _complaint(name, line, f"not valid YAML: the character {unreadable.group()!r} is not allowed")
        )
    loader = _Loader(text)
    try:
        root: Node | None = loader.get_single_node()
        if root is None:
            return YamlDocument(name, None)
        _reject_repeated_keys(root, name)
        _reject_cycles(root, name)
        return YamlDocument(name, loader.construct_document(root), root)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = min(mark.line + 1, len(text.splitlines())) if mark else 1  # the end of the file is a line too far
        problem = " ".join(filter(None, (exc.context, exc.problem)))
        raise ConfigError(
            _complaint(name, line, f"not valid YAML: {problem}; check indentation, colons and quotes")
        ) from exc
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as exc:
        # PyYAML lets through whatever its constructors raise: for 2024-99-99, for `!!bool maybe`, for `!!int ""`.
        problem = f"this value does not fit its type ({type(exc).__name__}: {exc})"
        raise ConfigError(_complaint(name, loader.line, f"not valid YAML: {problem}")) from exc
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


def shown(value: Any) -> str:
    """A value as messages show it: its repr, cut where it would fill the screen."""
    try:
        return _repr.repr(value)
    except ValueError:  # Python refuses to print an integer of more than 4300 digits
        return f"a huge {type(value).__name__}"


def _complaint(name: str, line: int, message: str) -> str:
    """One line whatever a key or a value holds: line breaks, control characters and lone surrogates are escaped."""
    return f"{name}:{line}: {readable(message)}"


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
                    first = lines[key.value]
                    raise ConfigError(
                        _complaint(name, line, f"{key.value}: written twice (first on line {first}); keep one")
                    )
                lines[key.value] = line


def _reject_cycles(root: Node, name: str) -> None:
    """An anchor that holds itself is legal YAML and endless data."""
    above: set[int] = set()
    finished: set[int] = set()
    pending: list[tuple[Node, bool]] = [(root, False)]
    while pending:
        node, leaving = pending.pop()
        if leaving:
            above.discard(id(node))
            finished.add(id(node))
            continue
        if id(node) in above:
            raise ConfigError(_complaint(name, node.start_mark.line + 1, "this part contains itself; write it out"))
        if id(node) in finished or isinstance(node, ScalarNode):
            continue
        above.add(id(node))
        pending.append((node, True))
        children = node.value if isinstance(node, SequenceNode) else [part for pair in node.value for part in pair]
        pending.extend((child, False) for child in children)
