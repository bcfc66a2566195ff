"""``docs/profiles.md`` says of each profile what the registry, the settings and the ratings say, and nothing else."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_llmbench.adapters.registry import ProfileRegistry
from pytest_llmbench.core.metrics import COMMON_METRICS, FOUNDING_THRESHOLDS, METRICS
from pytest_llmbench.core.proportions import wilson
from pytest_llmbench.core.questions import QuestionBank, load_folder
from pytest_llmbench.core.ratings import INTERPRETATIONS
from pytest_llmbench.core.records import FLAGS
from pytest_llmbench.core.scores import COST_BENEFIT, EFFICIENCY
from pytest_llmbench.core.scoring import score
from pytest_llmbench.core.settings import FOUNDING_SETTINGS, settings_in_mode

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "profiles.md").read_text("utf-8")
PROFILES = tuple(FOUNDING_SETTINGS)

Row = list[str]
SECTIONS = {
    title.lower().replace(" ", "_"): text
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}


def table(section: str, first: str) -> list[Row]:
    """The rows of the table of a section whose header begins with a cell; without backticks."""
    lines = SECTIONS[section].splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows: list[Row] = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split(" | ")])
    return rows


def prose(section: str) -> str:
    """A section's text, wherever its lines are broken."""
    return " ".join(SECTIONS[section].split())


def described(section: str, first: str = "metric") -> dict[str, tuple[str, str]]:
    """Unit and direction by name, of a table of metrics."""
    return {name: (unit, better) for name, unit, better, _ in table(section, first)}


def registered(names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    return {name: (METRICS[name].unit, METRICS[name].better) for name in names}


def test_what_every_cell_may_have() -> None:
    assert described("every_profile") == registered(COMMON_METRICS)


@pytest.mark.parametrize("profile", PROFILES)
def test_metrics_are_those_that_the_profile_emits_with_their_units(profile: str) -> None:
    own = tuple(name for name in ProfileRegistry().emitted(profile) if name not in COMMON_METRICS)
    assert described(profile) == registered(own)
    assert len(table(profile, "metric")) == len(own)


def test_derived_scores() -> None:
    assert described("derived_scores", "score") == registered((EFFICIENCY, COST_BENEFIT))


@pytest.mark.parametrize("profile", PROFILES)
def test_no_other_metric_is_named(profile: str) -> None:
    named = set(re.findall(r"`(\w+)`", SECTIONS[profile])) & set(METRICS)
    assert named
    assert named <= set(ProfileRegistry().emitted(profile))


@pytest.mark.parametrize("profile", PROFILES)
def test_thresholds_are_the_founding_ones(profile: str) -> None:
    limits = {
        (key.key, key.metric, f"at {'least' if key.side == 'min' else 'most'} {key.default:g}", key.critical)
        for key in FOUNDING_THRESHOLDS[profile]
    }
    words = {"failed": True, "poor": False}
    assert {(key, metric, limit, words[missed]) for key, metric, limit, missed in table(profile, "threshold")} == limits


@pytest.mark.parametrize("profile", PROFILES)
def test_settings_have_the_defaults_of_both_modes(profile: str) -> None:
    written = {
        name: (yaml.safe_load(full), yaml.safe_load(quick)) for name, full, quick, _ in table(profile, "setting")
    }
    full: dict[str, Any] = FOUNDING_SETTINGS[profile]().model_dump()
    quick = FOUNDING_SETTINGS[profile](**settings_in_mode(profile, {}, "quick")).model_dump()
    assert written == {name: (full[name], quick[name]) for name in full}


@pytest.mark.parametrize("metric", INTERPRETATIONS)
def test_bands_are_those_of_the_ratings(metric: str) -> None:
    (section,) = (name for name, text in SECTIONS.items() if f"| `{metric}` below |" in text)
    rows = table(section, f"`{metric}` below")
    bands = [(math.inf if bound == "–" else float(bound), words) for bound, words in rows]
    assert bands == list(INTERPRETATIONS[metric])
    assert metric in ProfileRegistry().emitted(section)


@pytest.mark.parametrize("section", ["every_profile", *PROFILES])
def test_doubts_are_flags_each_once(section: str) -> None:
    paragraph = re.search(r"Doubts.*?\.\n", SECTIONS[section], re.DOTALL)
    assert paragraph is not None
    named = re.findall(r"`(\w+)`", paragraph[0])
    assert named
    assert len(named) == len(set(named))
    assert set(named) <= set(FLAGS)


def own_questions() -> QuestionBank:
    """The example."""
    block = re.search(r"```json\n(.*?)```", SECTIONS["quality"], re.DOTALL)
    assert block is not None
    return load_folder({"mine.json": block[1]})


ANSWERS = {
    "invoice-total": ("3 · 40 + 19 = 139 euros", "Three chairs cost 120 euros."),
    "contract-notice": ("No, only at the end of a month.", "Yes, with notice."),
    "customer-record": ('{"name": "Ada Byron", "age": 36}', 'Here it is: {"name": "Ada Byron", "age": 36}'),
}


@pytest.mark.parametrize("question", own_questions().questions, ids=lambda question: str(question.id))
def test_the_example_of_own_questions_is_scored_as_one_would(question: Any) -> None:
    right, wrong = ANSWERS[question.id]
    assert score(question.scorer, right).correct
    assert not score(question.scorer, wrong).correct


def test_how_much_few_questions_say() -> None:
    said = re.findall(r"(\d+) of (\d+) is (\d+) to (\d+) %", prose("quality"))
    assert len(said) == 3
    for correct, asked, low, high in said:
        interval = wilson(int(correct), int(asked))
        assert (round(100 * interval.low), round(100 * interval.high)) == (int(low), int(high))
    assert "31 of 32 are needed to be sure of 80 %" in prose("quality")
    assert wilson(30, 32).low < 0.8 < wilson(31, 32).low


def test_every_kind_of_scorer_is_described() -> None:
    kinds = {kind for (kind, *_) in table("quality", "`kind`")}
    schema = json.dumps(QuestionBank.model_json_schema())
    assert kinds == set(re.findall(r'"const": "(\w+)"', schema))


def test_what_is_said_of_the_shipped_bank_and_documents() -> None:
    bank = json.loads((ROOT / "data" / "quality_tests.json").read_text("utf-8"))
    documents = json.loads((ROOT / "data" / "documents" / "documents.json").read_text("utf-8"))["documents"]
    lengths = [len(document["text"].split()) for document in documents]
    asked, quick = len(bank["questions"]), sum(question["set"] == "quick" for question in bank["questions"])
    assert f"(version {bank['version']}, {bank['license']}, written" in prose("quality")
    assert f"has {asked} questions, {asked // 4} each of" in prose("quality")
    assert f"{quick} of them (4, 3, 3, 3) are the quick set" in prose("quality")
    assert f"{len(documents)} documents of {min(lengths)} to {max(lengths)} words" in prose("batch")
