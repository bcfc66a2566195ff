"""Markdown out of what stands in the code: tables, docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence

GENERATED = "<!-- Written by `python -m scripts.reference`; change the code that it is made of, not this page. -->"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; a cell's line breaks become spaces, and its bars stay text."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return lines


def page(title: str, introduction: str, *sections: Sequence[str]) -> str:
    """A whole page: its title, whence it comes, and its sections, a blank line between each two."""
    parts = [f"# {title}", GENERATED, introduction, *("\n".join(section) for section in sections)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def as_markdown(text: str) -> str:
    """Text of a docstring or a comment as Markdown: roles and double backticks as code, and no HTML outside of it."""
    text = re.sub(r":\w+:`~?\.?([\w.]+)`", r"`\1`", text)
    text = re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "\\<") for part in parts)


def attributes(of: type) -> dict[str, str]:
    """What a class's docstring says of each of its attributes, under ``Attributes:``."""
    return {
        name: words
        for title, text in _sections(own_docstring(of))
        for name, words in _entries(text)
        if title == "Attributes"
    }


def own_docstring(of: type) -> str:
    """A class's own docstring, not one it inherits."""
    return inspect.cleandoc(of.__dict__.get("__doc__") or "")


def described(docstring: str, *, without: str = "") -> list[str]:
    """A docstring as lines of Markdown: its text, an example as Python, and its sections as lists, but for one."""
    lines: list[str] = []
    for title, text in _sections(docstring):
        if title and title != without:
            lines += ["", f"{title}:", ""]
            lines += [f"- `{name}`: {as_markdown(words)}" for name, words in _entries(text)] or [as_markdown(text)]
        elif not title:
            prose, _, example = text.partition("::\n\n")
            lines += ["", as_markdown(prose) + (":" if example else "")]
            if example:
                lines += ["", "```python", textwrap.dedent(example), "```"]
    return lines[1:]


def _sections(docstring: str) -> list[tuple[str, str]]:
    """Title and text of each section, in their order; the title of plain text is empty.

    A section is what is indented below its title.
    """
    sections: list[tuple[str, list[str]]] = [("", [])]
    for line in docstring.splitlines():
        if title := re.fullmatch(r"(Args|Attributes|Raises|Returns):", line):
            sections.append((title[1], []))
            continue
        if sections[-1][0] and line and not line.startswith(" "):
            sections.append(("", []))
        sections[-1][1].append(line)
    texts = ((title, textwrap.dedent("\n".join(lines)).strip("\n")) for title, lines in sections)
    return [(title, text) for title, text in texts if text]


def _entries(section: str) -> list[tuple[str, str]]:
    """``name: text`` of each entry; further lines of an entry are indented more."""
    entries: list[tuple[str, str]] = []
    for line in section.splitlines():
        name, colon, words = line.partition(": ")
        if colon and re.fullmatch(r"[\w, `.]+", name) and not line.startswith(" "):
            entries += [(each.strip("` "), words) for each in name.split(",")]
        elif entries and line.strip():
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {line.strip()}")
    return entries
