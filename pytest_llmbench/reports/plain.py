"""Text that is not ours, made fit to be shown."""

from __future__ import annotations


def plain(text: str) -> str:
    """One line in which everything that a terminal obeys, or that is no character, is written as its escape.

    Names come from files and servers, messages from logs: an escape sequence in one of them is not ours to pass on.
    """
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in words)
