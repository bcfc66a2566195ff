"""The answers about the passages, found once more in the sentences that they rest on."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from pytest_llmbench.core.questions import ContainsScorer, Question

from .bank import QUESTIONS, answer, figures, ids, without_form

WEEK = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
FRAME = "Read the passage and answer the question.\n\n"


def _parts(question: Question) -> tuple[str, str]:
    """Passage and question, without the form of the answer."""
    assert question.prompt.startswith(FRAME)
    passage, asked = question.prompt.removeprefix(FRAME).split("\n\n")
    return passage, without_form(asked.removeprefix("Question: "))


def _of(how: str) -> list[str]:
    return [i for i in ids("comprehension") if (QUESTIONS[i].check or {})["how"] == how]


def _evidence(question: Question) -> list[str]:
    assert question.check is not None
    evidence: list[str] = question.check["evidence"]
    return evidence


def _has(text: str, words: str) -> bool:
    return re.search(rf"\b{re.escape(words)}\b", text, re.IGNORECASE) is not None


def _lowest(**heights: Fraction) -> str:
    (least,) = [name for name, height in heights.items() if height == min(heights.values())]
    return least


def _towers(_three: Fraction, ash: Fraction, lower: Fraction, higher: Fraction) -> str:
    return _lowest(Ash=ash, Bone=ash - lower, Clay=ash - lower + higher)


def _pumpkins(hanne: Fraction, heavier: Fraction, part: Fraction, less: Fraction) -> str:
    veit = hanne + heavier
    return _lowest(Hanne=hanne, Veit=veit, Kalle=veit / part, Jette=veit - less)


# Each takes the figures of the sentences that it rests on, then those of the question.
FROM_FIGURES: dict[str, Callable[..., Any]] = {
    "comprehension-002": lambda below, above, copies: below + above - copies,
    "comprehension-008": lambda cars, trips, more: cars * (trips + more),
    "comprehension-009": _towers,
    "comprehension-013": lambda days: WEEK[WEEK.index("Monday") + int(days)],
    "comprehension-015": lambda nights, times: nights * times,
    "comprehension-016": _pumpkins,
    "comprehension-019": lambda rooms, sand, unborn: rooms - sand - unborn,
    "comprehension-024": lambda hand, hands, thumbs: hand * hands + thumbs,
    "comprehension-028": lambda fast, slow: fast - -slow,
    "comprehension-030": lambda lent, returned, _asked: lent - returned,
    "comprehension-032": lambda horse, hen, horses, hens: horse * horses + hen * hens,
}


def _soups(passage: str) -> Fraction:
    listed = re.search(r"stand (.*?)\. In this last one", passage)
    assert listed is not None
    soups = re.split(r", (?:and )?", listed[1])
    assert all("soup" in soup for soup in soups)
    return Fraction(len([soup for soup in soups if "fish" not in soup]))


def _after_the_theft(passage: str) -> str:
    shown = re.search(r"saw first the (\w+), then the (\w+), then the (\w+) .*last of all the (\w+)", passage)
    assert shown is not None
    written = shown.groups()[::-1]
    return written[written.index("theft") + 1]


def _giver(passage: str) -> str:
    givers: dict[str, str] = dict(re.findall(r"an? (\w+) by her (\w+)", passage))
    best = re.search(r"liked the (\w+) best", passage)
    assert best is not None
    return givers[best[1]]


FROM_WORDS: dict[str, Callable[[str], Any]] = {
    "comprehension-012": _soups,
    "comprehension-023": _after_the_theft,
    "comprehension-025": _giver,
}


def test_each_answer_is_found_in_one_of_four_ways() -> None:
    assert _of("computed") == sorted([*FROM_FIGURES, *FROM_WORDS])
    counts = {how: len(_of(how)) for how in ("computed", "quoted", "negated", "absent")}
    assert sum(counts.values()) == len(ids("comprehension"))
    assert min(counts.values()) >= 2


@pytest.mark.parametrize("identifier", ids("comprehension"))
def test_the_passage_has_60_to_150_words(identifier: str) -> None:
    passage, _ = _parts(QUESTIONS[identifier])
    assert 60 <= len(passage.split()) <= 150


@pytest.mark.parametrize("identifier", [i for i in ids("comprehension") if i not in _of("absent")])
def test_what_the_answer_rests_on_stands_in_the_passage_once(identifier: str) -> None:
    passage, _ = _parts(QUESTIONS[identifier])
    assert [passage.count(sentence) for sentence in _evidence(QUESTIONS[identifier])] == [1] * len(
        _evidence(QUESTIONS[identifier])
    )


@pytest.mark.parametrize("identifier", _of("quoted"))
def test_a_quoted_answer_is_in_its_evidence_and_no_distractor_is(identifier: str) -> None:
    question = QUESTIONS[identifier]
    assert isinstance(question.scorer, ContainsScorer)
    evidence = " ".join(_evidence(question))
    assert _has(evidence, str(answer(question)))
    assert [word for word in question.scorer.none if _has(evidence, word)] == []


@pytest.mark.parametrize("identifier", _of("negated"))
def test_what_is_left_is_the_one_that_nothing_is_said_of(identifier: str) -> None:
    question = QUESTIONS[identifier]
    assert isinstance(question.scorer, ContainsScorer)
    passage, _ = _parts(question)
    evidence = " ".join(_evidence(question))
    named = [*question.scorer.none, str(answer(question))]
    assert [word for word in named if not _has(passage, word)] == []
    assert [word for word in named if not _has(evidence, word)] == [answer(question)]


@pytest.mark.parametrize("identifier", FROM_FIGURES)
def test_the_figures_of_the_evidence_make_the_answer(identifier: str) -> None:
    question = QUESTIONS[identifier]
    _, asked = _parts(question)
    assert FROM_FIGURES[identifier](*figures(" ".join([*_evidence(question), asked]))) == answer(question)


@pytest.mark.parametrize("identifier", FROM_WORDS)
def test_the_words_of_the_passage_make_the_answer(identifier: str) -> None:
    passage, _ = _parts(QUESTIONS[identifier])
    assert FROM_WORDS[identifier](passage) == answer(QUESTIONS[identifier])


@pytest.mark.parametrize("identifier", _of("absent"))
def test_the_passage_is_silent_on_what_is_not_stated(identifier: str) -> None:
    question = QUESTIONS[identifier]
    assert question.check is not None
    assert answer(question) == "not stated"
    passage, _ = _parts(question)
    assert [word for word in question.check["absent"] if _has(passage, word)] == []


def test_the_offer_to_say_not_stated_gives_nothing_away() -> None:
    offered = [i for i in ids("comprehension") if '"not stated"' in QUESTIONS[i].prompt]
    assert set(_of("absent")) < set(offered)
    stated = [QUESTIONS[i].scorer for i in offered if i not in _of("absent")]
    assert len(stated) >= len(_of("absent"))
    assert all(isinstance(scorer, ContainsScorer) and "not stated" in scorer.none for scorer in stated)


def _guarded() -> list[str]:
    """Questions whose scorer refuses words; the days of the week are all refused, named or not."""
    scorers = {i: QUESTIONS[i].scorer for i in ids("comprehension")}
    return [i for i, scorer in scorers.items() if isinstance(scorer, ContainsScorer) and scorer.all[0] not in WEEK]


@pytest.mark.parametrize("identifier", _guarded())
def test_distractors_are_tempting(identifier: str) -> None:
    """A wrong word that no reader could think of would make the scorer no stricter."""
    question = QUESTIONS[identifier]
    assert isinstance(question.scorer, ContainsScorer)
    own = {"not stated", "dangerous", "stormy"}
    assert [word for word in question.scorer.none if word not in own and not _has(question.prompt, word)] == []
    assert len(question.scorer.none) >= 2
