"""The comments of a YAML file by the keys they belong to, as the shipped configuration is written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_KEY = re.compile(r"^( *)([A-Za-z_]\w*):(?: |$)")


@dataclass
class Comments:
    """``beside``: on a key's own line and those that go on below it; ``above``: the lines before it. By dotted key."""

    beside: dict[str, str] = field(default_factory=dict)
    above: dict[str, str] = field(default_factory=dict)


def comments_of(text: str) -> Comments:
    """Take a file's comments apart.

    Keys below one that is empty, written out as comments that begin with two blanks, are keys too.
    """
    comments = Comments()
    above: list[str] = []
    path: list[tuple[int, str]] = []
    last = ""
    for raw in text.splitlines():
        written_out = raw.startswith("#  ") and last != "" and not above
        line = raw[1:] if written_out else raw
        if match := _KEY.match(line):
            indent = len(match[1])
            path = [*((depth, name) for depth, name in path if depth < indent), (indent, match[2])]
            last = ".".join(name for _, name in path)
            _, hash_, words = line.partition(" #")
            if hash_:
                comments.beside[last] = words.strip()
            if above:
                comments.above[last] = "\n".join(above)
            above = []
        elif line.lstrip().startswith("# ") and line.index("#") > 8 and last:
            so_far = comments.beside.get(last, "")
            comments.beside[last] = f"{so_far} {line.lstrip(' #')}".strip()
        elif line.startswith("#"):
            above.append(line[1:].removeprefix(" "))
        else:
            above, last = [], ""
    return comments
