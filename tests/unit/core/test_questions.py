"""Banks of questions: the shipped form, a user's folder, and what is wrong with either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.core.questions import CATEGORIES, load_folder, load_questions
from pytest_llmbench.errors import ConfigError

SHIPPED = Path(__file__).parents[3] / "data" / "quality_tests.json"


def question(identifier: str = "math-001", **changes: Any) -> dict[str, Any]:
    fields = {"id": identifier, "category": "math", "prompt": "6 × 7?", "scorer": {"kind": "number", "answer": 42}}
    return {**fields, **changes}


def bank(*questions: Any, **changes: Any) -> str:
    return json.dumps({"version": "1.0", "license": "Apache-2.0", "questions": list(questions), **changes})


class TestABank:
    def test_is_read(self) -> None:
        found = load_questions(bank(question(set="quick", explain="6 · 7"), question("b", check={"x": 1})), "q.json")
        assert (found.version, found.license) == ("1.0", "Apache-2.0")
        assert [one.id for one in found.questions] == ["math-001", "b"]
        assert [one.set for one in found.questions] == ["quick", "full"]

    def test_shipped_is_read(self) -> None:
        found = load_questions(SHIPPED.read_text(encoding="utf-8"), SHIPPED.name)
        assert len(found.part("full")) >= 120
        assert len(found.part("quick")) == 13
        assert {one.category for one in found.questions} == set(CATEGORIES)

    def test_has_the_quick_set_within_the_full_one(self) -> None:
        found = load_questions(bank(question(set="quick"), question("b")), "q.json")
        assert [one.id for one in found.part("quick")] == ["math-001"]
        assert [one.id for one in found.part("full")] == ["math-001", "b"]

    def test_may_have_other_categories(self) -> None:
        assert load_questions(bank(question(category="cooking")), "q.json").questions[0].category == "cooking"


class TestTheFingerprint:
    def fingerprint(self, *questions: dict[str, Any]) -> str:
        return load_questions(bank(*questions), "q.json").fingerprint

    def test_is_of_what_is_asked_and_how_it_is_scored(self) -> None:
        before = self.fingerprint(question())
        assert len(before) == 12
        assert self.fingerprint(question(prompt="7 × 6?")) != before
        assert self.fingerprint(question(scorer={"kind": "number", "answer": 42, "tolerance": 1})) != before
        assert self.fingerprint(question("other")) != before

    def test_is_not_of_the_order_or_of_explanations(self) -> None:
        before = self.fingerprint(question(), question("b"))
        assert self.fingerprint(question("b"), question()) == before
        assert self.fingerprint(question(explain="so"), question("b", set="quick")) == before


class TestMistakes:
    @pytest.mark.parametrize(
        ("scorer", "message"),
        [
            ({}, "question 'math-001', scorer: a scorer needs a kind"),
            ({"kind": "guess"}, "question 'math-001', scorer: a scorer needs a kind: 'number'"),
            ({"kind": "number"}, r"scorer\.number\.answer: is missing"),
            ({"kind": "number", "answer": "many"}, r"scorer\.number\.answer: input should be a valid number"),
            ({"kind": "number", "answer": 1, "tolerance": -1}, r"tolerance: input should be greater than or equal"),
            ({"kind": "number", "answer": 1, "tolerence": 1}, r"tolerence: unknown key"),
            ({"kind": "choice", "answer": "E", "choices": ["A", "B"]}, "'E' is none of the choices A, B"),
            ({"kind": "choice", "answer": "A", "choices": ["A", "a"]}, "differ in nothing but capitals"),
            ({"kind": "choice", "answer": "A", "choices": ["A"]}, "at least 2 items"),
            ({"kind": "text", "answers": []}, "at least 1 item"),
            ({"kind": "text", "answers": [" "]}, "should match pattern"),
            ({"kind": "contains"}, "one of all, any and none has to name words"),
            ({"kind": "regex", "pattern": "("}, "not a regular expression: missing"),
            ({"kind": "regex", "pattern": "a" * 1001}, "at most 1000 characters"),
            ({"kind": "json_schema", "schema": {"type": "thing"}}, "not a JSON Schema"),
            ({"kind": "json_schema", "schema": {"pattern": "("}}, "regular expression|not a JSON Schema"),
            ({"kind": "json_schema", "schema": {"patternProperties": {"a": {}}}}, "patternProperties is not supported"),
            ({"kind": "json_schema", "schema": {"$ref": "https://example.com/x"}}, "names nothing in this schema"),
            ({"kind": "json_schema", "schema": {"items": {"$ref": "#/$defs/x"}}}, "names nothing in this schema"),
            ({"kind": "count", "unit": "words"}, "min or max is needed"),
            ({"kind": "count", "unit": "words", "min": 3, "max": 2}, "min 3 is above max 2"),
            ({"kind": "count", "unit": "letters", "min": 3}, "'lines', 'words' or 'sentences'"),
            ({"kind": "only", "scorer": {"kind": "regex", "pattern": "a"}}, "only.scorer: a scorer needs a kind"),
            ({"kind": "all_of", "parts": []}, "at least 1 item"),
            ({"kind": "all_of", "parts": [{"kind": "text"}]}, r"parts\.0\.text\.answers: is missing"),
        ],
    )  # fmt: skip
    def test_in_a_scorer_are_told_with_the_question(self, scorer: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as raised:
            load_questions(bank(question(scorer=scorer)), "q.json")
        assert str(raised.value).startswith("q.json: question 'math-001', scorer")
        assert "\n" not in str(raised.value)

    def test_a_schema_may_refer_to_itself(self) -> None:
        schema = {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}
        assert load_questions(bank(question(scorer={"kind": "json_schema", "schema": schema})), "q.json").questions

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", r"q\.json:1: not valid JSON"),
            ('{"a":\n]', r"q\.json:2: not valid JSON"),
            ("[" * 100_000, "not valid JSON"),
            ("[]", "is an object with the keys version and questions, not a list"),
            ("3", "not a number"),
            ('"x"', "not a text"),
            ("null", "not nothing"),
            ("{}", "version: is missing"),
            (bank(), "questions: should have at least 1 item, not 0"),
            (bank("x"), "question number 1: "),
            (bank({"id": 3}), r"question number 1, id: input should be a valid string"),
            (bank(question(prompt=" ")), "question 'math-001', prompt: "),
            (bank(question(set="slow")), "question 'math-001', set: input should be 'quick' or 'full'"),
            (bank(question(colour="red")), "question 'math-001', colour: unknown key"),
            (bank(question("a b")), "question 'a b', id: "),
            (bank(question(), versions=3), "versions: unknown key"),
            (bank(question(), question("b"), question()), "question 'math-001' is there 2 times"),
        ],
    )
    def test_in_the_file_are_told_with_its_name(self, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as raised:
            load_questions(text, "q.json")
        assert str(raised.value).startswith("q.json:")

    def test_are_told_one_a_line(self) -> None:
        with pytest.raises(ConfigError) as raised:
            load_questions(bank(question(prompt=""), question("b", scorer={"kind": "text"}), question("c")), "q.json")
        lines = str(raised.value).splitlines()
        assert [line.split(",")[0] for line in lines] == ["q.json: question 'math-001'", "q.json: question 'b'"]


class TestAFolder:
    def test_is_one_bank(self) -> None:
        found = load_folder({"b.json": json.dumps([question("two")]), "a.json": bank(question("one"))})
        assert [one.id for one in found.questions] == ["one", "two"]

    def test_needs_no_version(self) -> None:
        assert load_folder({"a.json": json.dumps({"questions": [question()]})}).questions

    def test_has_a_version_made_of_what_is_asked(self) -> None:
        one = load_folder({"a.json": json.dumps([question()])})
        assert one.version == f"own-{one.fingerprint}"
        assert load_folder({"b.json": bank(question())}).version == one.version
        assert load_folder({"a.json": json.dumps([question(prompt="?")])}).version != one.version

    def test_tells_of_a_question_that_is_in_two_files(self) -> None:
        texts = {"a.json": json.dumps([question()]), "b.json": json.dumps([question()])}
        with pytest.raises(ConfigError, match=r"'math-001' is there 2 times \(in a\.json, b\.json\)"):
            load_folder(texts)

    @pytest.mark.parametrize("text", ["3", "null", '"x"'])
    def test_tells_of_a_file_that_is_something_else(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"^b\.json: must hold a list of questions"):
            load_folder({"a.json": json.dumps([question()]), "b.json": text})

    def test_tells_file_and_question_of_a_mistake(self) -> None:
        with pytest.raises(ConfigError, match=r"^b\.json: question number 2, id: is missing"):
            load_folder({"b.json": json.dumps([question(), _no_id()])})

    def test_tells_when_it_is_empty(self) -> None:
        with pytest.raises(ConfigError, match=r"no \*\.json"):
            load_folder({})


def _no_id() -> dict[str, Any]:
    return {key: value for key, value in question().items() if key != "id"}
