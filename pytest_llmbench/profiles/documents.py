"""The documents that the batch profile has summarised."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llmbench.errors import CellError
from pytest_llmbench.profiles.base import ProfileContext

DOCUMENTS_FILE = "documents/documents.json"
_TASK = "Summarise the following text in plain words. Say what it is about, what matters in it, and what follows.\n\n"
_BEGIN = "\n\nSummary:\n"


@dataclass(frozen=True, slots=True)
class Document:
    """A text with a name that no other has."""

    id: str
    text: str

    def prompt(self, beginning: str) -> str:
        """What asks for its summary, after a beginning that no cache has seen."""
        return f"{beginning}{_TASK}{self.text}{_BEGIN}"


def read_documents(context: ProfileContext) -> Sequence[Document]:
    """The documents in the order of their file, one or more.

    Raises:
        CellError: ``documents_unusable``: there is no such file, or it does not hold what it should.
    """
    try:
        return _parse(context.read_data(DOCUMENTS_FILE))
    except FileNotFoundError as exc:
        raise _unusable("it is in none of the data folders; `llmbench init` copies it") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise _unusable(str(exc)) from exc


def _parse(text: str) -> Sequence[Document]:
    """Raises ValueError."""
    data = json.loads(text)
    entries = data.get("documents") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        msg = 'it must be an object whose "documents" is a list of one or more'
        raise ValueError(msg)
    found: dict[str, Document] = {}
    for number, entry in enumerate(entries, 1):
        name, body = (entry.get(key) if isinstance(entry, dict) else None for key in ("id", "text"))
        if not (isinstance(name, str) and name and isinstance(body, str) and body.strip()):
            msg = f'document {number} needs an "id" and a "text", neither of them empty'
            raise ValueError(msg)
        if name in found:
            msg = f"document {number} has the id {name!r}, which another has already"
            raise ValueError(msg)
        found[name] = Document(name, body)
    return tuple(found.values())


def _unusable(why: str) -> CellError:
    return CellError("documents_unusable", f"data/{DOCUMENTS_FILE} can not be used: {why}")
