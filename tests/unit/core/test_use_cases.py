"""Use cases: the founding ones, what users make of them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmbench.core.config import Config
from pytest_llmbench.core.metrics import METRICS, PROFILE_NAMES
from pytest_llmbench.core.use_cases import FOUNDING_USE_CASES, check_use_cases, use_cases_of
from pytest_llmbench.core.validation import Loaded, validate
from pytest_llmbench.core.yaml_source import parse_yaml
from pytest_llmbench.errors import ConfigError

FOUNDING = [use.name for use in FOUNDING_USE_CASES]


def described(use_cases: Any) -> dict[str, Any]:
    return {"configuration": {"use_cases": use_cases}}


def checked(text: str) -> Config:
    document = parse_yaml(f"use_cases:\n{text}", "config.yaml")
    config = validate(Config, document)
    check_use_cases(Loaded(config, document), ["shout"])
    return config


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        checked(text)
    return str(caught.value)


def test_the_founding_ones_rest_on_what_exists() -> None:
    for use in FOUNDING_USE_CASES:
        assert set(use.profiles) <= set(PROFILE_NAMES)
        assert set(use.weights) <= set(METRICS)
        assert {key[4:] for key in use.requires} <= set(METRICS)
        assert sum(use.weights.values()) > 0
    assert FOUNDING[-1] == "overall"


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"configuration": 3},
        described(None),
        described([1]),
        described({"x": {"weights": "much"}, "y": {"unknown": 1}, "z": 4}),
    ],
)
def test_what_says_nothing_leaves_the_founding_ones(description: dict[str, Any]) -> None:
    assert use_cases_of(description) == FOUNDING_USE_CASES


def test_what_a_user_writes_is_added_before_overall_and_changes_only_what_it_names() -> None:
    found = use_cases_of(
        described(
            {
                "overall": {"title": "All in all"},
                "coding": {
                    "profiles": ["interactive"],
                    "weights": {"ttft_seconds": 1},
                    "requires": {"max_ttft_seconds": 1},
                },
                "documents": None,
                "interactive": {"weights": {"ttft_seconds": 5}},
            }
        )
    )
    assert [use.name for use in found] == ["interactive", "long_context", "accuracy", "coding", "overall"]
    by_name = {use.name: use for use in found}
    founding = {use.name: use for use in FOUNDING_USE_CASES}
    assert (by_name["coding"].title, by_name["coding"].requires) == ("coding", {"max_ttft_seconds": 1})
    assert by_name["interactive"].weights == {"ttft_seconds": 5}
    assert by_name["interactive"].title == founding["interactive"].title
    assert by_name["overall"].title == "All in all"
    assert by_name["overall"].weights == founding["overall"].weights


def test_what_is_written_in_a_file_arrives_through_the_run_s_description() -> None:
    config = checked("  coding:\n    profiles: [interactive, shout]\n    weights: {ttft_seconds: 2}\n  documents:\n")
    found = use_cases_of({"configuration": config.model_dump(mode="json")})
    assert [use.name for use in found] == ["interactive", "long_context", "accuracy", "coding", "overall"]
    assert found[3].profiles == ("interactive", "shout")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "  a: {weights: {ttft_second: 1}}",
            "config.yaml:2: use_cases.a.weights.ttft_second: no such metric (did you mean 'ttft_seconds'?)",
        ),
        (
            "  a: {weights: {ttft_seconds: 1}, profiles: [batc]}",
            "config.yaml:2: use_cases.a.profiles[0]: 'batc' is no profile (did you mean 'batch'?)",
        ),
        (
            "  a:\n    weights: {ttft_seconds: 1}\n    requires:\n      ttft_seconds: 1",
            "config.yaml:5: use_cases.a.requires.ttft_seconds: judges no metric (did you mean",
        ),
        (
            "  a: {weights: {ttft_seconds: 1}, requires: {min_recall_percent: 101}}",
            "101.0 is more than recall_percent can reach; allowed: 0 to 100",
        ),
        (
            "  a: {weights: {ttft_seconds: -1}}",
            "config.yaml:2: use_cases.a.weights.ttft_seconds: should be greater than or equal to 0",
        ),
        (
            "  a: {requires: {min_recall_percent: -1}}",
            "use_cases.a.requires.min_recall_percent: should be greater than or equal to 0",
        ),
        ("  a: {title: A}", "config.yaml:2: use_cases.a.weights: weighs nothing"),
        ("  overall: {weights: {ttft_seconds: 0}}", "use_cases.overall.weights: weighs nothing"),
        (
            "  overal: null",
            "config.yaml:2: use_cases.overal: null switches off a founding use case (did you mean 'overall'?)",
        ),
        ("  a: {wights: {}}", "config.yaml:2: use_cases.a.wights: unknown key (did you mean 'weights'?)"),
        ("  a: {weights: {ttft_seconds: yes}}", "use_cases.a.weights.ttft_seconds: should be a valid number, not True"),
    ],
)
def test_what_can_not_decide_anything_is_refused(text: str, complaint: str) -> None:
    assert complaint in refused(text)
