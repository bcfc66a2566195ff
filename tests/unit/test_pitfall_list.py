"""``docs/pitfalls.md``: each pitfall stands there once, and the tests it names exist, all of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "pitfalls.md"
ROW = re.compile(r"^\| P(\d\d) \| (.+) \| (.+) \| (.+) \|$", re.MULTILINE)
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
NAMED = {*range(1, 20), 25, 26, 27, 28, 29, 30, 31, 34, 35, 38}  # by tests whose names say which pitfall it is
LATER = {39}

rows = {int(number): (wrong, done, tests) for number, wrong, done, tests in ROW.findall(TABLE.read_text("utf-8"))}
listed = {(number, *found) for number, (*_, tests) in rows.items() for found in TEST.findall(tests)}


def written(path: Path) -> Iterator[str]:
    """The tests in a file, those in classes, too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name


def test_each_pitfall_stands_there_once() -> None:
    assert [int(number) for number, *_ in ROW.findall(TABLE.read_text("utf-8"))] == list(range(1, 41))


@pytest.mark.parametrize(("number", "file", "name"), sorted(listed))
def test_a_test_that_is_listed_exists(number: int, file: str, name: str) -> None:
    assert name in written(TESTS / file)


def test_every_test_of_a_pitfall_is_listed_with_it() -> None:
    found = {
        (int(match[1]), path.relative_to(TESTS).as_posix(), name)
        for path in TESTS.rglob("test_*.py")
        if "def test_p" in path.read_text("utf-8")
        for name in written(path)
        if (match := re.match(r"test_p(\d\d)_", name))
    }
    assert {file.partition("/")[0] for _, file, _ in found} >= {"plugin", "unit"}
    assert found <= listed


@pytest.mark.parametrize("number", sorted(NAMED))
def test_a_pitfall_has_tests_of_its_name(number: int) -> None:
    assert any(at == number and name.startswith(f"test_p{number:02}_") for at, _, name in listed)


@pytest.mark.parametrize("number", range(1, 41))
def test_every_pitfall_is_provoked_or_said_to_come_later(number: int) -> None:
    _, done, _ = rows[number]
    is_provoked = any(at == number for at, _, _ in listed)
    assert is_provoked == (number not in LATER)
    assert is_provoked or "later" in done
