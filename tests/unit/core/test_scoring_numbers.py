"""The number of an answer: how people and models write it, and what is not it (P37)."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmbench.core.scoring import MOST_CHARACTERS, score
from pytest_llmbench.core.scoring_numbers import numbers_in, readable


def is_correct(answer: str, expected: float, **scorer: Any) -> bool:
    return score({"kind": "number", "answer": expected, **scorer}, answer).correct


@pytest.mark.parametrize(
    "answer",
    [
        # plain and dressed
        "42", "42.", "42!", "42…", "  42\n", "42.00", "42,0", "+42", "**42**", "`42`", "## 42", "> 42", "- 42", "*42*",
        "<b>42</b>", "[42]", "(42)", "４２", "\u200b42\u200b", "٤٢", "4.2e1", "84/2",
        # LaTeX
        "\\boxed{42}", "$42$", "\\(42\\)", "\\[ 42 \\]", "$\\boxed{42}$", "\\text{42}", "$\\frac{84}{2}$",
        "The final answer is: $\\boxed{42}$. I used 3 steps.",
        # in words
        "Forty-two", "forty two", "The answer is forty-two (42).", "There are forty-two apples.",
        # with units and currencies
        "42 euros", "€42", "$42", "€ 42.–", "42,-", "42 €", "EUR 42", "USD 42.00", "42%", "42 %", "42kg", "42 km/h",
        "42°C", "42 m²", "42 cm^2", "42 m2",
        # led up to
        "= 42", "x = 42", "6 × 7 = 42", "6*7=42", "The answer is 42.", "Answer: 42", "**Answer:** 42 apples",
        "Total:\n42",
        "Result — 42", "So the answer is $42$, after 3 days", "Answer: 12 + 30 = 42", "The total is 12 + 30 = 42.",
        "The answer, then, is 42", "I get 42; the 3rd option.", "12\n42", "x^2 = 1764, so x = 42",
        # numbers of steps and lists, dates and times
        "Step 2: 42", "1. First 3\n2. Then 42", "1) 5 apples\n2) 37 apples\nTotal = 42", "**Step 3:** 42",
        "Step 1: 12 + 30 = 42\nStep 2: done", "42 as computed in step 3.", "42 (see equation 7)",
        "So 42 on 15 March 2024.", "On 2024-03-15 there were 42.", "He paid 42 on 03/15/2024", "It is 42 on March 3rd.",
        "He gets 42 at 14:30.", "With version 1.2.3 it is 42, says v2.7", "H2O and x2 make 42",
        # followed by a remark
        "a) 3 boxes (of 14\nSo there are 42 in all, they say.",
        "42 (3 boxes of 14)", "42 (as of 2023)", "42, because 3 × 14 is 42", "42 because there are 3 boxes",
        "42 euros, since he had 50", "42\n\nNote: this took 3 steps.", "42\n\nExplanation: 3 boxes\nof 14 each",
        "The answer is 42. That leaves 8 euros.", "Final answer: 42\n\nHope this helps! Ask me in 5 minutes.",
        # not that one, but this one
        "The answer is 42, not 12.", "not 12 but 42", "It is not 12; it is 42", "42 rather than 12", "42 instead of 12",
        "The answer is not 12.\nIt is 42.", "The answer is 12. Wait, I made a mistake. It is 42.",
        "There were 50 at first. Since he lost 8, 42 remain.",
    ],
)  # fmt: skip
def test_is_found(answer: str) -> None:
    assert is_correct(answer, 42)


@pytest.mark.parametrize(
    "answer",
    [
        "", "   ", "\u200b", "no number", "12", "420", "142", "4242", "42.5", "4,2", "1,042", "4 2", "42/2",
        "42 thousand",
        "42 million", "42k", "42 dozen", "forty", "two and forty",
        "-42", "−42", "minus 42", "negative forty-two", "−$42",
        "not 42", "The answer is not 42", "it isn't 42", "not equal to 42", "rather than 42", "anything other than 42",
        "42 or 43", "43 or 42", "The answer is 42 or 43.", "forty-two or forty-three", "42 or 12",
        "x42", "A42", "v1.42", "12:42", "2024-03-42", "42.42.42.42", "Step 42: 7", "Step 42:",
        "The answer is 43, not 42",
        "Is it 42? No, 43.", "42\n43", "42 + 1 = 43", "42. But then he loses one, so 41 remain.",
    ],
)  # fmt: skip
def test_is_another_or_none(answer: str) -> None:
    assert not is_correct(answer, 42)


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        (1234.5, "1,234.50"), (1234.5, "1 234,5"), (1234.5, "1'234.5"), (1234.5, "1’234.50"), (1234.5, "1.234,50"),
        (1234.5, "€1,234.50"), (1234.5, "1\u202f234,5"), (1234.5, "1\u00a0234.50"), (1234.5, "\\$1{,}234.50"),
        (1234.5, "1\\,234.5"), (1234.5, "one thousand two hundred and thirty-four and a half"), (1234.5, "1234 1/2"),
        (1234.5, "1.2345e3"), (1234.5, "1,2345 × 10^3"), (1234.5, "1.2345 thousand"), (1234, "1'234"), (1234, "1_234"),
        (1234567, "12,34,567"), (1234567, "1.234.567"), (1234567, "1 234 567"), (1.234, "1.234"), (1234, "1,234"),
        (0.123, "0,123"), (1.5, "1,5"), (1.5, "1 1/2"), (1.5, "1½"), (1.5, "one and a half"), (2.5, "2 and a half"),
        (0.75, "3/4"), (0.75, "¾"), (0.75, "three quarters"), (0.75, ".75"), (0.75, "\\frac{3}{4}"), (0.5, "one half"),
        (2_000_000, "2 million"), (2_000_000, "two million"), (2_000_000, "2e6"), (2_000_000, "2 × 10^6"),
        (2_000_000, "2×10⁶"), (2_000_000, "\\(2 \\times 10^{6}\\)"), (2_000_000, "2 000 000"), (1_000_000, "10^6"),
        (305, "three hundred and five"), (305, "three hundred five"), (100, "a hundred"), (24, "two dozen"),
        (12, "a dozen"),
        (1_200_000, "one million two hundred thousand"), (75_321, "seventy-five thousand three hundred and twenty-one"),
        (2005, "two thousand and five"), (0, "zero"), (0, "0"), (12, "twelve"), (19, "nineteen"), (100, "10²"),
        (-5, "-5"), (-5, "−5"), (-5, "minus five"), (-5, "-$5"), (-5, "$-5"), (-5, "−5 °C"), (-5, "the answer is −5"),
        (3, "10-7 = 3"), (7, "10 - 3 = 7"), (5, "10 minus 5 is 5"), (3, "the 3rd"), (1, "There is one."), (1, "1."),
        (12, "€ 12.–"), (4, "[1,2,3,4]"), (100, "1 10 100"), (42_000, "42k"), (0.001, "10^-3"),
    ],
)  # fmt: skip
def test_has_the_value_that_is_written(expected: float, answer: str) -> None:
    assert is_correct(answer, expected)


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        (1234.5, "1.2345"), (1234.5, "1,234"), (1234.5, "12,34.5"), (0.75, "4/3"), (0.75, "1 3/4"), (1.5, "11/2"),
        (5, "-5"), (-5, "10-5"), (-5, "10 minus 5"), (305, "three hundred"), (305, "three hundred and fifty"),
        (2e6, "2"),
        (26, "twenty and six and 1"), (13, "[1, 3]"), (10, "1e1000"), (0, "1/0"), (210, "2 10"),
    ],
)  # fmt: skip
def test_has_no_other_value(expected: float, answer: str) -> None:
    assert not is_correct(answer, expected)


def test_may_be_off_by_the_tolerance_in_decimal_arithmetic() -> None:
    assert is_correct("3.15", 3.14, tolerance=0.01)  # in binary, 3.15 − 3.14 is more than 0.01
    assert is_correct("3.13", 3.14, tolerance=0.01)
    assert not is_correct("3.1501", 3.14, tolerance=0.01)
    assert is_correct("1/10", 0.1)
    assert not is_correct("0.10000000001", 0.1)


def test_tells_what_it_found() -> None:
    assert score({"kind": "number", "answer": 42}, "It is 1,043.50.").why == "1043.5 instead of 42"
    assert score({"kind": "number", "answer": 42}, "No idea.").why == "the answer holds no number"
    assert "more than one number" in score({"kind": "number", "answer": 42}, "41 or 42").why


@pytest.mark.parametrize(
    "answer",
    ["1e31", "10^31", "9" * 41, "1/0", "0^-1", "10^10^10", "99999^99999", "5e99999"],
)
def test_too_large_to_be_one_is_none(answer: str) -> None:
    assert all(abs(number.value) < 10**80 for number in numbers_in(readable(answer)))
    assert not is_correct(answer, 7)


@pytest.mark.parametrize(
    "junk",
    [
        "1,234,", "1 ", "one hundred and ", "\\frac{", "((", "1/", "answer is ", "- ", "\n1. ", ".", "$", "9", "['",
        "a'",
        "1^", "\\boxed{", "3 March ", "not ", " \n", "twenty-", "1.1.", "=1", "**", "1'234'", "because ", "\nnote ",
        "step 1 ",
    ],
)  # fmt: skip
@pytest.mark.timeout(60)
def test_is_looked_for_in_bounded_time(junk: str) -> None:
    """Of what could make an expression go back again and again; it takes well under a second, or for ever."""
    assert not is_correct(junk * (MOST_CHARACTERS // len(junk)), 0.5)
