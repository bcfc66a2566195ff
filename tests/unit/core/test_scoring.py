"""Scorers against answers that mean well, and answers that would fool a simpler scorer."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from pytest_llmbench.core import scoring
from pytest_llmbench.core.questions import NumberScorer
from pytest_llmbench.core.scoring import MOST_CHARACTERS, score

LETTERS = {"kind": "choice", "answer": "B", "choices": ["A", "B", "C", "D"]}
YES_NO = {"kind": "choice", "answer": "no", "choices": ["yes", "no"]}
STATED = {"kind": "choice", "answer": "Not stated", "choices": ["Yes", "No", "Not stated"]}
FIRST = {"kind": "choice", "answer": "A", "choices": ["A", "B"]}
BLUE = {"kind": "text", "answers": ["blue", "dark blue"]}
NO = {"kind": "contains", "all": ["no"]}
CITIES = {"kind": "contains", "any": ["Paris", "Rome"], "none": ["London"]}
THIRTY = {"kind": "contains", "all": ["30"]}
CODE = {"kind": "regex", "pattern": r"[A-Z]{3}-[0-9]{2}"}
OBJECT = {
    "kind": "json_schema",
    "schema": {
        "type": "object",
        "required": ["name", "n"],
        "properties": {"name": {"type": "string", "pattern": "^x"}, "n": {"type": "integer"}},
        "additionalProperties": False,
    },
}
GOOD_OBJECT = '{"name": "x", "n": 1}'
FORTY_TWO = {"kind": "number", "answer": 42}


def lines(n: int) -> dict[str, Any]:
    return {"kind": "count", "unit": "lines", "min": n, "max": n}


def words(n: int) -> dict[str, Any]:
    return {"kind": "count", "unit": "words", "min": n, "max": n}


def sentences(n: int) -> dict[str, Any]:
    return {"kind": "count", "unit": "sentences", "min": n, "max": n}


def only(scorer: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"kind": "only", "scorer": {**scorer, **changes}}


def cases(*groups: tuple[dict[str, Any], list[str]]) -> list[Any]:
    return [
        pytest.param(scorer, answer, id=f"{number} {scorer['kind']} {n} {answer[:30]!r}")
        for number, (scorer, answers) in enumerate(groups)
        for n, answer in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("scorer", "answer"),
    cases(
        (LETTERS, [
            "B", "b", "(B)", "B.", "B)", "**B**", '"B"', "$B$", "Ｂ", "B) Paris", "B. Paris is", "B, because it fits",
            "Answer: B", "Answer: **B**", "The answer is B", "the answer is b.", "Option B", "The answer is option B",
            "\\boxed{B}", "A good choice is B", "not A but B", "The answer is not A, it is B.", "I choose B.",
            "It's B!",
            "The correct answer is (B) because A is wrong.", "A is wrong, so B", "It can't be A; B.",
            "B\n\nExplanation: not important", "The answer is not C. The answer is B.", "A is not correct. B is.",
            "A) is false, C) is false, D) cannot be, so B", "A. is not always true, so B",
        ]),
        (YES_NO, ["No", "no.", "NO!", "The answer is no.", "No, because he did not."]),
        (STATED, ["not stated", "Not stated.", "The answer is: Not stated", "It is not stated."]),
        (FIRST, ["A", "The answer is A.", "A because it fits", "A. Because"]),
        (BLUE, [
            "blue", "Blue.", "The blue", "  BLUE!!", "**blue**", "dark  blue", "Dark-blue", "“Blue”",
            "The answer is blue.",
            "Answer: Blue", "a blue", "\n blue\n", "ｂｌｕｅ",
        ]),
        ({"kind": "text", "answers": ["the A"]}, ["A", "the a", "a"]),
        ({"kind": "text", "answers": ["3.5"]}, ["3.5", "3.5."]),
        ({"kind": "text", "answers": ["red, green and blue"]}, ["Red, green, and blue", "red green and blue"]),
        (NO, ["No.", "no way", "it is (no)", "contains no errors", "NO"]),
        (CITIES, ["It's paris", "Rome!", "Paris's mayor", "PARIS", "**Paris**"]),
        ({"kind": "contains", "none": ["can"]}, ["I can't", "yes"]),
        (THIRTY, ["30", "it's 30.", "30%", "(30)", "30, then"]),
        ({"kind": "contains", "all": ["the old man"]}, ["The old\nman went", "**the old** man"]),
        (CODE, ["ABC-12", " ABC-12\n"]),
        ({"kind": "regex", "pattern": "A|AB"}, ["A", "AB"]),
        (OBJECT, [
            GOOD_OBJECT, f"```json\n{GOOD_OBJECT}\n```", f"```\n{GOOD_OBJECT}```", '  {"name":"x",\n"n":1} ',
        ]),
        (lines(3), ["a\nb\nc", "a\n\nb\n\nc\n", "a\r\nb\r\nc"]),
        (words(5), [
            "one two three four five", "One, two - three: four... five!", "- one\n- two\n- three\n- four five",
            "well-known words are here now", "it’s one two three four", "1. one two three four five",
            "one two—three four five",
        ]),
        (sentences(2), [
            "One. Two.", "One! Two?", "He met Dr. Smith. They ate 3.5 pies.", "First one\n\nSecond one",
            "“Hi.” She left.",
            "1. One thing.\n2. Two things.", "Wait... No.", "They sell fruit, e.g. pears. Buy some.",
            "One\nstill one. Two",
        ]),
        ({"kind": "count", "unit": "words", "min": 2}, ["two words", "more than two words"]),
        (only(FORTY_TWO), ["42", " 42\n", "42.", "forty-two", "42.0"]),
        (only(FORTY_TWO, unit="euros"), ["42 euros", "€42", "42 €", "42 euro", "42"]),
        (only(LETTERS), ["B", "b", "B."]),
        (only(BLUE), ["blue", "Blue.", "Dark blue"]),
        (only(OBJECT), [GOOD_OBJECT]),
        ({"kind": "all_of", "parts": [words(1), {"kind": "contains", "any": ["red"]}]}, ["red", "Red!"]),
    ),
)  # fmt: skip
def test_correct(scorer: dict[str, Any], answer: str) -> None:
    found = score(scorer, answer)
    assert found.correct, found.why


@pytest.mark.parametrize(
    ("scorer", "answer"),
    cases(
        (LETTERS, [
            "A", "C", "not B but C", "B or C", "A and B", "The answer is not B", "neither A nor B",
            "The answer is B or C",
            "The answer is A, B", "Answer: B/C", "A) x\nB) y\nC) z\nD) w", "Both B and C are right", "В", "Bee", "Bob",
            "B is wrong", "a b c d", "Plan B-2", "I think it isn't B", "The answer is a banana",
            "B is not the answer, C is",
            "B) is not always true, so A", "B) is false.", "The answer cannot be B",
        ]),
        (YES_NO, ["know", "yes", "Yes, no doubt", "I don't know", "nothing", "not", "none", "ｎо"]),
        (STATED, ["Yes", "stated", "not", "No"]),
        (FIRST, ["A good choice is B", "A man walks", "an", "The answer is a banana"]),
        (BLUE, ["bluе", "not blue", "blue sky", "light blue", "bluedark", "b l u e", "the", "blue and red", "blueish"]),
        ({"kind": "text", "answers": ["the A"]}, ["the", "an"]),
        ({"kind": "text", "answers": ["3.5"]}, ["35", "-3.5", "3,5.0"]),
        (NO, ["I know", "casino", "nobody", "none", "nο", "not", "No\u0308n"]),
        (CITIES, ["Parisian", "London and Paris", "pаris", "Berlin"]),
        ({"kind": "contains", "none": ["can"]}, ["can", "yes we can", "CAN!"]),
        (THIRTY, ["1,300", "3.30", "30.5", "130", "30,000", "x30", "thirty"]),
        ({"kind": "contains", "all": ["the old man"]}, ["the old woman", "then old man", "the old, man"]),
        (CODE, ["xABC-12", "ABC-12 ok", "ABC-１２", "abc-12", "ABC-12\nABC-12"]),
        ({"kind": "regex", "pattern": "A|AB"}, ["ABC"]),
        (OBJECT, [
            f"{GOOD_OBJECT} done", f"Here: {GOOD_OBJECT}", '{"name":"x","n":1,"n":1}', '{"name":"x"}',
            '{"name":"x","n":"1"}',
            '{"name":"y","n":1}', '{"name":"x","n":NaN}', "{'name':'x','n':1}",
            '{"name":"x","n":1,}', GOOD_OBJECT * 2, "[]",
            '{"name":"x","n":1e999}', f"```json\n{GOOD_OBJECT}\n```\nDone", "null", "［]", "[" * 5000,
            '{“name”:"x","n":1}',
            '{"name":"x","n":1,"m":2}', '{"name":"x","n":true}', '{"name":"x","n":' + "9" * 5000 + "}",
            f"\ufeff{GOOD_OBJECT}",
        ]),
        ({"kind": "json_schema", "schema": {}}, ["NaN", "[Infinity]", "1e999", "yes", "'a'"]),
        (lines(3), ["a\nb", "a\nb\nc\nd", "a b c"]),
        (words(5), ["one two three four", "one two three four five six", "- - - - -"]),
        (sentences(2), ["One.", "One. Two. Three.", "No, e.g. this one.", "3.5 and 4.5"]),
        ({"kind": "count", "unit": "words", "min": 2}, ["one"]),
        (only(FORTY_TWO), [
            "42 euros", "The answer is 42", "**42**", "42 apples", "= 42", "42, 42", "$42", "42!\nok", "\\boxed{42}",
            "43",
        ]),
        (only(FORTY_TWO, unit="euros"), ["42 dollars", "about 42 euros", "$42"]),
        (only(LETTERS), ["(B)", "B)", "The answer is B", "**B**", "B because", "A"]),
        (only(BLUE), ["The blue", "blue!!", "answer: blue", '"blue"', "blue\nblue"]),
        (only(OBJECT), [f"```json\n{GOOD_OBJECT}\n```", "{}"]),
        ({"kind": "all_of", "parts": [words(1), {"kind": "contains", "any": ["red"]}]}, ["red red", "blue"]),
    ),
)  # fmt: skip
def test_wrong(scorer: dict[str, Any], answer: str) -> None:
    found = score(scorer, answer)
    assert not found.correct, found.why


ALL_KINDS = (
    *(LETTERS, BLUE, NO, {"kind": "contains", "none": ["x"]}, {"kind": "regex", "pattern": ".*"}),
    *({"kind": "json_schema", "schema": {}}, {"kind": "count", "unit": "words", "max": 5}, only(BLUE), FORTY_TWO),
)  # fmt: skip


@pytest.mark.parametrize("scorer", ALL_KINDS, ids=str)
@pytest.mark.parametrize("answer", ["", " \n\t ", "\u200b", "\ufeff"])
def test_an_empty_answer_is_wrong_whatever_is_asked(scorer: dict[str, Any], answer: str) -> None:
    assert score(scorer, answer) == scoring.Score(False, "the answer is empty")


def test_an_endless_answer_is_wrong_whatever_is_asked() -> None:
    assert score({"kind": "regex", "pattern": "a+"}, "a" * MOST_CHARACTERS).correct
    assert "more than 20000" in score({"kind": "regex", "pattern": "a+"}, "a" * (MOST_CHARACTERS + 1)).why


def test_a_pattern_that_runs_wild_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these would take longer than the machine lives."""
    monkeypatch.setattr(scoring, "REGEX_SECONDS", 0.05)
    for pattern in ("(a|aa)+$", "(a|aa)*b|(a|aa)+c", "(x|a|aa|aaa)+"):
        found = score({"kind": "regex", "pattern": pattern}, "a" * 200 + "!")
        assert not found.correct
        assert "not done" in found.why


def test_a_pattern_of_a_schema_that_runs_wild_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "REGEX_SECONDS", 0.05)
    schema = {"type": "string", "pattern": "^(a|aa)+$"}
    found = score({"kind": "json_schema", "schema": schema}, f'"{"a" * 200}!"')
    assert not found.correct
    assert "bounded time" in found.why


def test_a_schema_without_end_is_stopped() -> None:
    found = score({"kind": "json_schema", "schema": {"$ref": "#"}}, "1")
    assert not found.correct
    assert "bounded time" in found.why


def test_why_says_what_is_missing() -> None:
    assert score(CITIES, "Berlin").why == "none of 'Paris', 'Rome' occurs"
    assert score(CITIES, "Paris, London").why == "'London' occurs"
    assert score(NO, "know").why == "'no' does not occur"
    assert score(words(5), "one").why == "1 word instead of 5"
    assert score({"kind": "count", "unit": "lines", "min": 2, "max": 3}, "a").why == "1 line instead of 2 to 3"
    assert score({"kind": "count", "unit": "lines", "min": 2}, "a").why == "1 line instead of at least 2"
    assert score(LETTERS, "C").why == "C instead of B"
    assert score(BLUE, "red").why == "'red' instead of 'blue' or 'dark blue'"
    assert score(OBJECT, '{"name": "x", "n": "1"}').why == "n: '1' is not of type 'integer'"
    assert "a key stands twice" in score(OBJECT, '{"n": 1, "n": 1}').why
    assert score(only(LETTERS), "B) it is").why == "the answer has more than was asked for around it"
    assert score({"kind": "all_of", "parts": [words(1), BLUE]}, "red").why == "'red' instead of 'blue' or 'dark blue'"


def test_takes_a_scorer_as_loaded_and_as_written() -> None:
    assert score(NumberScorer(kind="number", answer=42), "42") == score(FORTY_TWO, "42")
    with pytest.raises(ValidationError):
        score({"kind": "guess"}, "42")


@pytest.mark.parametrize("scorer", ALL_KINDS, ids=str)
@pytest.mark.parametrize(
    "junk",
    ["a b ", "```", "**", "Mr. ", "B", "A ", "answer is ", "not ", "'", "(", "I ", "B or C ", "e.g.", "<think>"],
)
@pytest.mark.timeout(60)
def test_takes_bounded_time(scorer: dict[str, Any], junk: str) -> None:
    """Of what could make an expression go back again and again; it takes well under a second, or for ever."""
    found = score(scorer, junk * (MOST_CHARACTERS // len(junk)))
    if scorer["kind"] == "count":
        assert re.fullmatch(r"\d+ words?( instead of 5)?.*", found.why)
    else:
        assert found.correct is ("none" in scorer or scorer.get("pattern") == ".*")
