"""What is remembered of model files: ``metadata.json`` for people and tools, checksums so that none is read twice.

Both are only notes: where they can not be written or read, things take longer, and nothing fails.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

METADATA_VERSION = 1
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Metadata:
    """``model_dir/metadata.json``: an object per file, by its path below ``model_dir`` (the full path elsewhere).

    Keys of an object: ``path``, ``size_bytes``, ``sha256``, ``model``, ``model_size``, ``family`` (the header's
    architecture), ``quantization``, ``origin``, ``revision``, ``downloaded_at``, ``last_tested_at`` (both ISO 8601,
    UTC) and ``estimated_memory_bytes``; what is not known is absent.
    """

    model_dir: Path

    def read(self) -> dict[str, dict[str, Any]]:
        """All entries; none where the file is absent or not ours."""
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            files = data["files"] if data["schema_version"] == METADATA_VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return {str(key): one for key, one in files.items() if isinstance(one, dict)} if isinstance(files, dict) else {}

    def entry(self, path: Path) -> dict[str, Any]:
        """What is noted of a file, whether or not it still is the same; empty where nothing is."""
        return self.read().get(self._key(path), {})

    def of(self, path: Path) -> dict[str, Any]:
        """The entry of a file, empty where there is none, or where the file has another size now."""
        entry = self.entry(path)
        try:
            return entry if entry.get("size_bytes") == path.stat().st_size else {}
        except OSError:
            return {}

    def update(self, path: Path, facts: dict[str, Any]) -> None:
        """Add to a file's entry, or replace what it says; None removes a key. Two runs may do so at once."""
        with suppress(OSError, Timeout):
            self.model_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(self.model_dir / ".metadata.lock", timeout=_PATIENCE_SECONDS):
                files = self.read()
                if not files and self._path.exists() and not self._is_ours():
                    return
                changed = {**self.of(path), "path": self._key(path), "size_bytes": path.stat().st_size, **facts}
                files[self._key(path)] = {key: value for key, value in changed.items() if value is not None}
                self._write(files)

    @property
    def _path(self) -> Path:
        return self.model_dir / "metadata.json"

    def _key(self, path: Path) -> str:
        return path.relative_to(self.model_dir).as_posix() if path.is_relative_to(self.model_dir) else str(path)

    def _is_ours(self) -> bool:
        """Whether the file may be replaced: it is ours, or it is no JSON at all, as after a crash."""
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
        except ValueError:
            return True
        return isinstance(data, dict) and data.get("schema_version") == METADATA_VERSION

    def _write(self, files: dict[str, dict[str, Any]]) -> None:
        new = self.model_dir / f".metadata.{os.getpid()}.json"
        text = json.dumps({"schema_version": METADATA_VERSION, "files": dict(sorted(files.items()))}, indent=2)
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(self._path)


@dataclass(frozen=True)
class Checksums:
    """SHA-256 of files, valid while size and time of change stay the same; below ``model_dir``, for any file."""

    model_dir: Path

    def known(self, path: Path) -> str | None:
        """The remembered checksum; None where there is none, or the file has changed."""
        try:
            facts: dict[str, Any] = json.loads(self._note(path).read_text(encoding="utf-8"))
            status = path.stat()
            same = facts["size_bytes"] == status.st_size and facts["mtime_ns"] == status.st_mtime_ns
            return str(facts["sha256"]) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, path: Path, sha256: str) -> None:
        """Keep a checksum."""
        status, note = path.stat(), self._note(path)
        facts = {"file": path.name, "sha256": sha256, "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        with suppress(OSError):  # a read-only model folder only costs time
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(facts), encoding="utf-8")

    def _note(self, path: Path) -> Path:
        name = hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return self.model_dir / ".checksums" / f"{name}.json"


def now() -> str:
    """The time as notes hold it: ISO 8601, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
