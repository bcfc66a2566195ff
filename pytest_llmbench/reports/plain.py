"""Text that is not ours, made fit to be shown."""

from __future__ import annotations

from pytest_llmbench.errors import readable


def plain(text: str) -> str:
    """One line in which everything that a terminal obeys, or that is no character, is written as its escape.

    Names come from files and servers, messages from logs: an escape sequence in one of them is not ours to pass on.
    """
    return readable(" ".join(text.split()))
