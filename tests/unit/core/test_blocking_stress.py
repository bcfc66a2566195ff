"""Which configuration is stressed."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmbench.core.blocking import Blocking
from pytest_llmbench.core.config import BlockingConfig
from pytest_llmbench.core.records import CellRecord, Reason
from tests.unit.core.blocking_cases import broken, candidate, cell, slow, why

LADDER = (("a-1B", "Q4_K_M"), ("a-3B", "Q4_K_M"), ("a-3B", "Q6_K"), ("a-7B", "Q4_K_M"), ("a-7B", "Q6_K"))


def stressed(*learnt: CellRecord, host: str | None = None, **switches: bool) -> list[str]:
    """Which of the ladder's configurations would be stressed."""
    changes = {"host": host} if host is not None else {}
    return [
        f"{model} {quantization}"
        for model, quantization in LADDER
        if why(candidate(model, quantization, profile="stress", **changes), *learnt, **switches) is None
    ]


def blocked(model: str, quantization: str) -> CellRecord:
    return cell(model, quantization, status="blocked", reason=Reason(code="blocked_by_speed", message=""), rating=None)


def test_the_founding_example() -> None:
    seen = [
        cell("a-3B", "Q4_K_M", rating="excellent"),
        cell("a-3B", "Q6_K", rating="good"),
        cell("a-7B", "Q4_K_M", rating="acceptable"),
        slow("a-7B", "Q6_K"),
    ]
    assert stressed(*seen) == ["a-7B Q4_K_M"]


def test_where_everything_did_well_it_is_the_last_but_one() -> None:
    assert stressed(*(cell(*names) for names in LADDER)) == ["a-7B Q4_K_M"]


@pytest.mark.parametrize(
    "beyond",
    [
        slow("a-7B", "Q6_K"),
        broken("server_start_timeout", model="a-7B", quantization="Q6_K"),
        blocked("a-7B", "Q6_K"),
        cell("a-7B", "Q6_K", status="skipped", reason=Reason(code="does_not_fit", message=""), rating=None),
    ],
)
def test_where_something_larger_did_not_it_is_the_last_that_did(beyond: CellRecord) -> None:
    assert stressed(*(cell(*names) for names in LADDER[:-1]), beyond) == ["a-7B Q4_K_M"]


@pytest.mark.parametrize(
    "beyond",
    [
        cell("a-7B", "Q6_K", status="skipped", reason=Reason(code="model_not_found", message=""), rating=None),
        cell("a-7B", "Q6_K", status="invalid", rating=None),
        slow("a-1B", "Q4_K_M"),  # less demanding
    ],
)
def test_what_tells_nothing_of_the_end(beyond: CellRecord) -> None:
    well = [cell(*names) for names in LADDER[1:-1]]
    assert stressed(*well, beyond) == ["a-3B Q6_K"]


def test_the_only_one_that_did_well_is_stressed() -> None:
    assert stressed(cell("a-3B", "Q6_K")) == ["a-3B Q6_K"]


@pytest.mark.parametrize(
    "spoilt",
    [
        {"status": "failed"},
        {"status": "error"},
        {"status": "invalid"},
        {"rating": "poor"},
        {"rating": "failed"},
    ],
)
def test_one_bad_cell_spoils_a_configuration(spoilt: dict[str, Any]) -> None:
    spoiling = cell("a-7B", "Q4_K_M", profile="batch", **spoilt)
    seen = [cell("a-3B", "Q6_K"), cell("a-7B", "Q4_K_M"), spoiling, slow("a-7B", "Q6_K")]
    assert stressed(*seen) == ["a-3B Q6_K"]


def test_a_cell_without_a_rating_or_one_that_was_skipped_spoils_nothing() -> None:
    seen = [
        cell("a-3B", "Q6_K"),
        cell("a-7B", "Q4_K_M", rating=None),
        cell("a-7B", "Q4_K_M", profile="batch", status="skipped", rating=None),
        slow("a-7B", "Q6_K"),
    ]
    assert stressed(*seen) == ["a-7B Q4_K_M"]


def test_where_none_did_well_none_is_stressed() -> None:
    seen = [slow("a-1B", "Q4_K_M"), cell("a-3B", "Q4_K_M", status="skipped", rating=None)]
    assert stressed(*seen) == []
    reason = why(candidate("a-1B", profile="stress"), *seen)
    assert reason is not None
    assert reason.message == (
        "no configuration passed its other profiles with a rating of acceptable or better, so none is stressed; run "
        "it all the same with --llmbench-no-blocking"
    )


def test_where_only_stress_is_run_all_of_it_is() -> None:
    assert len(stressed()) == len(LADDER)
    assert len(stressed(slow("a-1B", "Q4_K_M", profile="stress"), speed=False)) == len(LADDER)


def test_a_stress_cell_changes_no_selection() -> None:
    well = [cell(*names) for names in LADDER]
    assert stressed(*well, slow("a-7B", "Q4_K_M", profile="stress")) == ["a-7B Q4_K_M"]
    assert stressed(*well, slow("a-7B", "Q8_0", profile="stress")) == ["a-7B Q4_K_M"]


def test_other_profiles_are_not_selected() -> None:
    assert why(candidate("a-1B"), *(cell(*names) for names in LADDER)) is None


def test_another_machine_selects_for_itself() -> None:
    well = [cell(*names) for names in LADDER]
    elsewhere = [cell(*names, host="another", nodeid=f"elsewhere {names}") for names in LADDER[:2]]
    assert stressed(*well, *elsewhere) == ["a-7B Q4_K_M"]
    assert stressed(*well, *elsewhere, host="another") == ["a-1B Q4_K_M"]
    assert len(stressed(*well, host="a third")) == len(LADDER)


def test_the_order_is_that_of_the_weights() -> None:
    models = ("z-1B", "y-3B", "x-7B", "w-13B")
    seen = [cell(model) for model in models]
    assert [model for model in models if why(candidate(model, profile="stress"), *seen) is None] == ["x-7B"]


def test_equal_weights_are_ordered_by_context_then_by_name() -> None:
    seen = [
        cell("a-1B", variant="v2", context=8192),
        cell("a-1B", variant="v1", context=8192),
        cell("a-1B", variant="v3", context=4096),
    ]
    variants = {"v1": 8192, "v2": 8192, "v3": 4096}
    selected = [
        name
        for name, context in variants.items()
        if why(candidate("a-1B", variant=name, context=context, profile="stress"), *seen) is None
    ]
    assert selected == ["v1"]


def test_it_says_what_is_stressed_instead() -> None:
    reason = why(candidate("a-1B", profile="stress"), *(cell(*names) for names in LADDER))
    assert reason is not None
    assert reason.code == "not_selected_for_stress"
    assert reason.message == (
        "stress runs a-7B Q4_K_M on embedded, the last but one of 5 that passed with a rating of acceptable or better, "
        "and not a-1B Q4_K_M on embedded; run it all the same with --llmbench-no-blocking"
    )
    assert reason.evidence == {"rule": "stress_selection", "acceptable": 5, "selected": "a-7B Q4_K_M on embedded"}


def test_the_selection_follows_what_is_learnt_later() -> None:
    blocking = Blocking(BlockingConfig())
    one = candidate("a-1B", "Q4_K_M", profile="stress")
    seen = cell("a-1B", "Q4_K_M")
    blocking.learn(seen)
    assert blocking.why(one, lambda: None) is None
    blocking.learn(slow("a-1B", "Q4_K_M", profile="batch"))
    assert blocking.why(one, lambda: None) is not None
    blocking.learn(cell("a-1B", "Q4_K_M", profile="batch"))
    assert blocking.why(one, lambda: None) is None


def test_a_cell_that_ran_elsewhere_in_the_end_is_known_there_only() -> None:
    blocking = Blocking(BlockingConfig())
    here = candidate("a-1B", "Q4_K_M", profile="stress")
    blocking.learn(cell("a-3B", "Q4_K_M"))
    assert blocking.why(here, lambda: None) is not None
    blocking.learn(cell("a-3B", "Q4_K_M", host="another"))
    assert blocking.why(here, lambda: None) is None
    for model in ("a-1B", "a-3B", "a-7B"):
        blocking.learn(cell(model, "Q4_K_M"))
    assert blocking.why(here, lambda: None) is not None
    blocking.learn(cell("a-7B", "Q4_K_M", host="another"))
    assert blocking.why(here, lambda: None) is None


def test_it_can_be_switched_off() -> None:
    assert len(stressed(slow("a-1B", "Q4_K_M"), stress_selection=False, speed=False)) == len(LADDER)
