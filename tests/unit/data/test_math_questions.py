"""The answers of the word problems, computed once more from the figures that stand in their texts."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate, count, repeat
from typing import Any

import pytest

from .bank import QUESTIONS, answer, figures, ids, without_form


def _compound(start: Fraction, percent: Fraction, years: Fraction | int) -> Fraction:
    *_, end = accumulate(repeat(1 + percent / 100, int(years)), lambda held, growth: held * growth, initial=start)
    return end


def _weekly_pay(wage: Fraction, normal: Fraction, higher: Fraction, hours: Fraction) -> Fraction:
    return sum((wage if hour <= normal else higher for hour in range(1, int(hours) + 1)), Fraction())


def _pens(price: Fraction, group: Fraction, pens: Fraction) -> Fraction:
    return sum((price for pen in range(1, int(pens) + 1) if pen % group), Fraction())


def _tax(free: Fraction, width: Fraction, low: Fraction, high: Fraction, income: Fraction) -> Fraction:
    def rate(credit: int) -> Fraction:
        return Fraction() if credit < free else low if credit < free + width else high

    return sum((rate(credit) for credit in range(0, int(income), 1000)), Fraction()) * 1000 / 100


def _last_month(loan: Fraction, monthly: Fraction, every: Fraction, extra: Fraction, _first: Fraction) -> int:
    left = loan
    for month in count(1):
        left -= monthly + (extra if month % every == 0 else 0)
        if left <= 0:
            return month
    raise AssertionError


def _equal_minutes(fixed_a: Fraction, minute_a: Fraction, fixed_b: Fraction, minute_b: Fraction) -> int:
    return next(n for n in count() if fixed_a + n * minute_a == fixed_b + n * minute_b)


def _children(tickets: Fraction, taken: Fraction, adult: Fraction, child: Fraction) -> int:
    found = [n for n in range(int(tickets) + 1) if (tickets - n) * adult + n * child == taken]
    assert len(found) == 1
    return found[0]


def _with_vouchers(step: Fraction, worth: Fraction, first: Fraction, second: Fraction) -> Fraction:
    vouchers = len([spent for spent in range(1, int(first) + 1) if spent % step == 0])
    return first + second - vouchers * worth


# Each takes the figures of its text in their order; a leading underscore is on those that do not matter.
SOLUTIONS: dict[str, Callable[..., Any]] = {
    "math-001": lambda lamps, bought, sold: lamps * sold - lamps * bought,
    "math-002": lambda earned, rent, food: earned - earned * rent / 100 - food,
    "math-003": lambda price, cut, member: price * (100 - cut) * (100 - member) / 100**2,
    "math-004": lambda rent, wood, price: rent / (price - wood),
    "math-005": lambda cups, tea, slices, cake: cups * tea + slices * cake,
    "math-006": lambda held, shirts, shirt, belt: held - shirts * shirt - belt,
    "math-007": lambda friends, bill, tip: (bill + friends * tip) / friends,
    "math-008": lambda month, year, months: month * months - year,
    "math-009": lambda bond, percent, years: bond * percent * years / 100,
    "math-010": _compound,
    "math-011": lambda price, tax, voucher: price + price * tax / 100 - voucher,
    "math-012": lambda rise, price: price * 100 / (100 + rise),
    "math-013": lambda euros, crowns, fee: euros * crowns - fee,
    "math-014": _weekly_pay,
    "math-015": lambda kilos, price, others, other_price: (kilos * price + others * other_price) / (kilos + others),
    "math-016": lambda _cost, rate, copies, pages: copies * pages / rate,
    "math-017": lambda _three, profit, *parts: profit * max(parts) / sum(parts),
    "math-018": lambda value, third, quarter, _years: value - value / third - (value - value / third) / quarter,
    "math-019": _pens,
    "math-020": lambda _year, fixed, percent, free, sales: fixed + (sales - free) * percent / 100,
    "math-021": _tax,
    "math-022": _equal_minutes,
    "math-023": lambda books, mean, _four, *others: books * mean - sum(others),
    "math-024": _last_month,
    "math-025": lambda gain, loss, start, _years: start - _compound(_compound(start, gain, 1), -loss, 1),
    "math-026": lambda boxes, minutes, machines, time: boxes / minutes * time * machines,
    "math-027": lambda small, low, large, high, need: need / small * low - need / large * high,
    "math-028": lambda cost, percent: cost / (1 - percent / 100),
    "math-029": lambda one, other, _both: 60 / (1 / one + 1 / other),
    "math-030": _children,
    "math-031": lambda percent, fee, cups, price: cups * (price - price * percent / 100 - fee),
    "math-032": _with_vouchers,
}


def test_each_question_has_a_second_computation() -> None:
    assert list(SOLUTIONS) == ids("math")


@pytest.mark.parametrize("identifier", SOLUTIONS)
def test_the_figures_of_the_text_make_the_answer(identifier: str) -> None:
    question = QUESTIONS[identifier]
    assert SOLUTIONS[identifier](*figures(without_form(question.prompt))) == answer(question)


@pytest.mark.parametrize("identifier", SOLUTIONS)
def test_an_answer_is_exact_to_the_cent(identifier: str) -> None:
    found = answer(QUESTIONS[identifier])
    assert isinstance(found, Fraction)
    assert (found * 100).denominator == 1


@pytest.mark.parametrize("identifier", SOLUTIONS)
def test_the_answer_can_not_be_copied_from_the_text(identifier: str) -> None:
    question = QUESTIONS[identifier]
    assert answer(question) not in figures(without_form(question.prompt))
