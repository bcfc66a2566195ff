"""The answers of the logical problems: each has exactly one, and it is the one in the bank."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from pytest_llmbench.core.questions import ChoiceScorer, ContainsScorer

from .bank import QUESTIONS, answer, ids
from .reasoning_solvers import SOLVERS, WEEK


def test_each_problem_has_a_solver() -> None:
    assert list(SOLVERS) == ids("reasoning")


@pytest.mark.parametrize("identifier", SOLVERS)
def test_exactly_one_answer_fits(identifier: str) -> None:
    found = SOLVERS[identifier]()
    assert {Fraction(one) if isinstance(one, int) else one for one in found} == {answer(QUESTIONS[identifier])}


def _scored_by(kind: str) -> list[str]:
    return [i for i in SOLVERS if QUESTIONS[i].scorer.kind == kind]


@pytest.mark.parametrize("identifier", _scored_by("contains"))
def test_all_candidates_are_in_the_text_and_exclude_one_another(identifier: str) -> None:
    question = QUESTIONS[identifier]
    scorer = question.scorer
    assert isinstance(scorer, ContainsScorer)
    named = [*scorer.all, *scorer.none]
    missing = {name for name in named if not re.search(rf"\b{name}s?\b", question.prompt, re.IGNORECASE)}
    assert missing <= set(WEEK)
    assert len(set(named)) == len(named) >= 2


@pytest.mark.parametrize("identifier", _scored_by("choice"))
def test_the_choices_are_those_of_the_text(identifier: str) -> None:
    question = QUESTIONS[identifier]
    assert isinstance(question.scorer, ChoiceScorer)
    assert re.findall(r"^([A-Z])\) ", question.prompt, re.MULTILINE) == list(question.scorer.choices)


def test_no_letter_is_right_too_often() -> None:
    letters = [scorer.answer for i in SOLVERS if isinstance(scorer := QUESTIONS[i].scorer, ChoiceScorer)]
    assert {letters.count(letter) for letter in "ABCD"} <= {1, 2, 3}
