"""What only its owner should know, left out of what others are shown or what is committed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# What keeps a secret by its name; names of environment variables may be read by anyone.
_SECRET_KEY = re.compile(r"(?:api[_-]?key|secret|password|passwd|token|authorization)$", re.IGNORECASE)
_SECRET_OPTION = re.compile(r"^(-{1,2}[\w-]*(?:api-?key|secret|password|token|auth)[\w-]*)(=.*)?$", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")
HIDDEN = "(hidden)"


def redacted(value: Any) -> Any:
    """A value of the configuration without what only its owner should know: keys, passwords, names in addresses."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(inner, str) and _SECRET_KEY.search(str(key)) else redacted(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return _options_redacted(value)
    if isinstance(value, str):
        words = [str(word) for word in _options_redacted(value.split(" "))] if " --" in f" {value}" else [value]
        return _IN_ADDRESS.sub(f"{HIDDEN}@", " ".join(words))
    return value


def _options_redacted(values: Sequence[Any]) -> list[Any]:
    """A command line's words: what follows an option for a secret is one."""
    kept: list[Any] = []
    hide_next = False
    for value in values:
        option = _SECRET_OPTION.match(value) if isinstance(value, str) else None
        if hide_next and not (isinstance(value, str) and value.startswith("-")):
            kept.append(HIDDEN)
            hide_next = False
        elif option is not None:
            kept.append(f"{option[1]}={HIDDEN}" if option[2] else value)
            hide_next = option[2] is None
        else:
            kept.append(
                value if isinstance(value, str) and " " not in value and "://" not in value else redacted(value)
            )
            hide_next = False
    return kept
