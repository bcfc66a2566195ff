"""What a run left behind, as data: records and JUnit."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any


class RunFiles:
    """Base of the suites that tests run in a folder of their own.

    Attributes:
        path: the folder pytest runs in.
    """

    path: Path

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    @property
    def latest(self) -> Path:
        return (self.path / "results" / "latest").resolve()

    def cells(self) -> list[dict[str, Any]]:
        return _lines(self.latest / "cells.jsonl")

    def requests(self) -> list[dict[str, Any]]:
        return _lines(self.latest / "requests.jsonl")

    def lines(self, name: str) -> list[dict[str, Any]]:
        return _lines(self.latest / name)

    def junit(self) -> dict[str, ET.Element]:
        """Test cases by name."""
        tree = ET.parse(self.path / "junit.xml")
        return {case.attrib["name"]: case for case in tree.iter("testcase")}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
