"""The shipped documents: enough of them, of the lengths that the founding design asks for, no two alike."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

PATH = Path(__file__).parents[3] / "data" / "documents" / "documents.json"
FILE = json.loads(PATH.read_text(encoding="utf-8"))
DOCUMENTS = FILE["documents"]
SHINGLE_WORDS = 3


def shingles(text: str) -> set[tuple[str, ...]]:
    words = [word.strip(".,;:?!\"'()").lower() for word in text.split()]
    return {tuple(words[start : start + SHINGLE_WORDS]) for start in range(len(words) - SHINGLE_WORDS + 1)}


def similarity(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)


def test_the_file_says_what_it_is() -> None:
    assert set(FILE) == {"version", "license", "documents"}
    assert FILE["license"] == "Apache-2.0"
    assert FILE["version"] == "1.0"


def test_there_are_more_than_the_thirty_that_a_batch_has() -> None:
    assert len(DOCUMENTS) == 36
    assert all(set(document) == {"id", "title", "text"} for document in DOCUMENTS)


@pytest.mark.parametrize("key", ["id", "title", "text"])
def test_no_two_have_the_same(key: str) -> None:
    assert len({document[key] for document in DOCUMENTS}) == len(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["id"])
def test_each_has_200_to_500_tokens(document: dict[str, str]) -> None:
    """By its words: SmolLM2's tokenizer makes 1.1 to 1.4 tokens of a word of these, 240 to 371 of a document."""
    assert 190 <= len(document["text"].split()) <= 360


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["id"])
def test_each_is_plain_text_in_paragraphs(document: dict[str, str]) -> None:
    text = document["text"]
    assert text.isascii()
    assert text == text.strip()
    assert "  " not in text
    assert "\n\n\n" not in text
    assert text.count("\n\n") >= 1


def test_no_two_are_alike() -> None:
    found = {document["id"]: shingles(document["text"]) for document in DOCUMENTS}
    alike = {(a, b): similarity(found[a], found[b]) for a, b in combinations(found, 2)}
    closest = max(alike, key=alike.__getitem__)
    assert alike[closest] < 0.05, closest


def test_alike_means_alike() -> None:
    text = DOCUMENTS[0]["text"]
    assert similarity(shingles(text), shingles(text.replace("footbridge", "bridge"))) > 0.5


@pytest.mark.parametrize("count", [12, 30, 36])
def test_lengths_do_not_go_with_the_order(count: int) -> None:
    """A batch that becomes slower must not be one whose documents become longer."""
    lengths = [len(document["text"].split()) for document in DOCUMENTS[:count]]
    third = count // 3
    assert abs(sum(lengths[:third]) / sum(lengths[-third:]) - 1) < 0.1
