"""The documentation as data: its pages, headings, links, code blocks and command lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"^ *```(.*)\n((?:.*\n)*?)^ *```$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        language: the first word after the fence; ``words``: what follows it.
    """

    path: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = path.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, *words = match[1].split() or [""]
        found.append(Block(path, text.count("\n", 0, match.start()) + 1, language, tuple(words), match[2]))
    return found


def prose_of(path: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", path.read_text("utf-8"))


def inline_code(path: Path) -> list[str]:
    """What stands between backticks in a page's prose."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose_of(path))]


def links_of(path: Path) -> list[str]:
    """Where a page's links and images lead, as they are written."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose_of(path)))


def anchors_of(path: Path) -> set[str]:
    """What links may name after ``#``: the headings, as GitHub and GitLab make names of them."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose_of(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        numbered = (name if number == 0 else f"{name}-{number}" for number in range(100))
        anchors.add(next(anchor for anchor in numbered if anchor not in anchors))
    return anchors


def command_lines(block: Block) -> Iterator[str]:
    """The simple commands of a block of shell, or of what a terminal shows; no comments, no environment, no folder."""
    text = block.text.replace("\\\n", " ")
    lines = text.splitlines()
    if block.language == "console":
        lines = [line.partition("$ ")[2] for line in lines if re.match(r"^\w*\$ ", line)]
    for line in lines:
        for command in re.split(r"&&|\|\||[|;]", re.sub(r"(^|\s)#.*", "", line)):
            words = re.sub(r"^(\s*\w+=\S*)*\s*(\S*/bin/)?(python3? -m (?=pytest))?", "", command).strip()
            if words:
                yield words
