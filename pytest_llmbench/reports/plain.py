"""Text that is not ours, made fit to be shown."""

from __future__ import annotations

import re

from pytest_llmbench.errors import readable

# What means something to Markdown, to HTML or to mathematics in the middle of a line.
_ACTIVE = re.compile(r"([\\`*_{}\[\]<>#|~!&$@])")


def plain(text: str) -> str:
    """One line in which everything that a terminal obeys, or that is no character, is written as its escape.

    Names come from files and servers, messages from logs: an escape sequence in one of them is not ours to pass on.
    """
    return readable(" ".join(text.split()))


def markdown_text(text: str) -> str:
    """The same as Markdown that shows it as it is."""
    return _ACTIVE.sub(r"\\\1", plain(text))
