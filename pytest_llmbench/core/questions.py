"""Questions with the rules by which their answers are scored: the shipped bank, and folders of a user's own."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pytest_llmbench.errors import ConfigError

CATEGORIES = ("math", "comprehension", "reasoning", "format")

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
Words = Annotated[tuple[Name, ...], Field(max_length=1000)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _compiles(pattern: str) -> str:
    import regex

    try:
        regex.compile(pattern)
    except regex.error as exc:
        msg = f"not a regular expression: {exc}"
        raise ValueError(msg) from exc
    return pattern


def _is_a_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is no JSON Schema, and what could not be checked within a bounded time or without the network."""
    from jsonschema import Draft202012Validator, SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as exc:
        msg = f"not a JSON Schema (draft 2020-12): {exc.message}"
        raise ValueError(msg) from exc
    resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    for part in _parts(schema):
        if "patternProperties" in part:
            msg = "patternProperties is not supported; name the properties, or use propertyNames"
            raise ValueError(msg)
        if isinstance(part.get("$ref"), str):
            try:
                resolver.lookup(part["$ref"])
            except Unresolvable as exc:
                msg = f"$ref {part['$ref']!r} names nothing in this schema; write what it names here, under $defs"
                raise ValueError(msg) from exc
        if isinstance(part.get("pattern"), str):
            _compiles(part["pattern"])
    return schema


def _parts(schema: Any) -> list[dict[str, Any]]:
    """Every object within a schema, itself included."""
    found, waiting = [], [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            found.append(part)
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return found


class NumberScorer(_Frozen):
    """The number that an answer ends in, as digits or in words.

    Attributes:
        tolerance: how far off it may be, in the same unit.
        unit: may stand beside the number where nothing else may (see :class:`OnlyScorer`).
    """

    kind: Literal["number"]
    answer: float
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    unit: Name | None = None


class ChoiceScorer(_Frozen):
    """One of several choices: letters, or words such as yes and no."""

    kind: Literal["choice"]
    answer: Name
    choices: Annotated[Words, Field(min_length=2)]

    @model_validator(mode="after")
    def _is_one_of_them(self) -> ChoiceScorer:
        names = [choice.casefold() for choice in self.choices]
        if self.answer not in self.choices:
            msg = f"the answer {self.answer!r} is none of the choices {', '.join(self.choices)}"
            raise ValueError(msg)
        if len(set(names)) < len(names):
            msg = "two of the choices differ in nothing but capitals"
            raise ValueError(msg)
        return self


class TextScorer(_Frozen):
    """The whole answer is one of these texts; case, articles, punctuation and white space aside."""

    kind: Literal["text"]
    answers: Annotated[Words, Field(min_length=1)]


class ContainsScorer(_Frozen):
    """Words or phrases that occur as such, or do not: ``no`` is not in ``know``. Case aside."""

    kind: Literal["contains"]
    all: Words = ()
    any: Words = ()
    none: Words = ()

    @model_validator(mode="after")
    def _asks_for_something(self) -> ContainsScorer:
        if not (self.all or self.any or self.none):
            msg = "one of all, any and none has to name words"
            raise ValueError(msg)
        return self


class RegexScorer(_Frozen):
    """A regular expression that the whole answer matches, white space around it aside."""

    kind: Literal["regex"]
    pattern: Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_compiles)]


class JsonSchemaScorer(_Frozen):
    """The whole answer, out of a code fence where it is in one, is JSON valid against a schema (draft 2020-12)."""

    kind: Literal["json_schema"]
    # Named in the file as the specification names it; ``schema`` is a method of pydantic's models.
    json_schema: Annotated[dict[str, Any], Field(alias="schema"), AfterValidator(_is_a_schema)]


class CountScorer(_Frozen):
    """How many lines, words or sentences the answer has: at least ``min``, at most ``max``."""

    kind: Literal["count"]
    unit: Literal["lines", "words", "sentences"]
    min: Annotated[int, Field(ge=0)] = 0
    max: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _has_limits(self) -> CountScorer:
        if not self.min and self.max is None:
            msg = "min or max is needed"
            raise ValueError(msg)
        if self.max is not None and self.min > self.max:
            msg = f"min {self.min} is above max {self.max}"
            raise ValueError(msg)
        return self


class OnlyScorer(_Frozen):
    """The answer and nothing else: no lead-in, no explanation, no Markdown, no code fence; one full stop may end it."""

    kind: Literal["only"]
    scorer: Annotated[
        Union[NumberScorer, ChoiceScorer, TextScorer, JsonSchemaScorer],  # noqa: UP007 -- read at run time, on 3.10 too
        Field(discriminator="kind"),
    ]


class AllOfScorer(_Frozen):
    """Every part finds the answer correct."""

    kind: Literal["all_of"]
    parts: Annotated[tuple[Scorer, ...], Field(min_length=1, max_length=20)]


Scorer = Annotated[
    Union[  # noqa: UP007
        NumberScorer,
        ChoiceScorer,
        TextScorer,
        ContainsScorer,
        RegexScorer,
        JsonSchemaScorer,
        CountScorer,
        OnlyScorer,
        AllOfScorer,
    ],
    Field(discriminator="kind"),
]
AllOfScorer.model_rebuild()


class Question(_Frozen):
    """One question.

    Attributes:
        category: one of ``CATEGORIES``, which have scores of their own, or another.
        set: ``quick`` ones are asked in both modes.
        explain: how the answer comes about.
        check: what a test of the bank needs to compute the answer a second time; nothing here reads it.
    """

    id: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^\S+$")]
    category: Annotated[str, Field(min_length=1, max_length=50, pattern=r"^\S+$")]
    set: Literal["quick", "full"] = "full"
    prompt: Annotated[str, Field(max_length=100_000, pattern=r"\S")]
    scorer: Scorer
    explain: str = ""
    check: dict[str, Any] | None = None


class QuestionBank(_Frozen):
    """Questions that belong together.

    Attributes:
        version: answers are compared only within one version.
    """

    version: Annotated[str, Field(min_length=1, max_length=50)]
    license: str | None = None
    questions: Annotated[tuple[Question, ...], Field(min_length=1)]

    def part(self, name: Literal["quick", "full"]) -> tuple[Question, ...]:
        """The questions of a set; the full one holds the quick one."""
        return tuple(question for question in self.questions if name == "full" or question.set == "quick")

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of what is asked and how it is scored (SHA-256), in whatever order it stands."""
        asked = [question.model_dump(mode="json", include={"id", "prompt", "scorer"}) for question in self.questions]
        text = json.dumps(sorted(asked, key=lambda question: str(question["id"])), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_questions(text: str, where: str) -> QuestionBank:
    """Read a bank: ``{"version": …, "license": …, "questions": […]}``.

    Args:
        where: the file's name, for messages.

    Raises:
        ConfigError: one line per problem, with the question's id.
    """
    data = _parse(text, where)
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: a bank is an object with the keys version and questions, not {_kind(data)}")
    bank = _bank(data, where)
    _refuse_repeated([(question.id, where) for question in bank.questions])
    return bank


def load_folder(texts: Mapping[str, str]) -> QuestionBank:
    """Read a user's own folder as one bank; its version is made of what the questions are.

    Args:
        texts: of every ``*.json`` in it, by name: a bank as :func:`load_questions` reads it, or only the list.

    Raises:
        ConfigError: one line per problem, with file and question; or the folder has no file.
    """
    if not texts:
        raise ConfigError("there is no *.json in the folder of questions; see data/quality_tests.json for the form")
    questions: list[Question] = []
    origins: list[tuple[str, str]] = []
    for name, text in sorted(texts.items()):
        data = _parse(text, name)
        if isinstance(data, list):
            data = {"version": "1", "questions": data}
        if not isinstance(data, dict):
            raise ConfigError(f"{name}: must hold a list of questions, or an object with the key questions")
        bank = _bank({"version": "1", **data}, name)
        questions.extend(bank.questions)
        origins.extend((question.id, name) for question in bank.questions)
    _refuse_repeated(origins)
    bank = QuestionBank(version="own", questions=tuple(questions))
    return bank.model_copy(update={"version": f"own-{bank.fingerprint}"})


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as exc:
        raise ConfigError(f"{where}:{exc.lineno}: not valid JSON: {exc.msg}") from exc
    except (RecursionError, ValueError) as exc:
        raise ConfigError(f"{where}: not valid JSON: {exc}") from exc


def _bank(data: dict[str, Any], where: str) -> QuestionBank:
    try:
        return QuestionBank.model_validate(data)
    except ValidationError as exc:
        errors = exc.errors()
        # A list whose items are all wrong is called empty as well.
        told = [
            e
            for e in errors
            if e["type"] != "too_short" or sum(e["loc"] == o["loc"][: len(e["loc"])] for o in errors) == 1
        ]
        problems = (f"{where}: {_place(data, error['loc'])}: {_words(error)}" for error in told)
        raise ConfigError("\n".join(dict.fromkeys(problems))) from exc


def _place(data: Mapping[str, Any], location: Sequence[str | int]) -> str:
    """Where in the file a problem is: a question by its id, else by its number."""
    steps = list(location)
    words = []
    if len(steps) > 1 and steps[0] == "questions" and isinstance(steps[1], int):
        question = data["questions"][steps[1]]
        identifier = question.get("id") if isinstance(question, dict) else None
        words.append(f"question {identifier!r}" if isinstance(identifier, str) else f"question number {steps[1] + 1}")
        steps = steps[2:]
    key = ".".join(str(step) for step in steps)
    return ", ".join([*words, key] if key else words) or "the file"


def _words(error: Any) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "is missing"
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        allowed = error["ctx"].get("expected_tags", "see data/quality_tests.json")
        return f"a scorer needs a kind: {allowed}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if kind == "too_short":
        message = message.removeprefix("Tuple ").replace(" after validation", "")
    return f"{message[:1].lower()}{message[1:]}"


def _refuse_repeated(origins: Sequence[tuple[str, str]]) -> None:
    counts = Counter(identifier for identifier, _ in origins)
    for identifier, where in origins:
        if counts[identifier] > 1:
            files = ", ".join(dict.fromkeys(name for other, name in origins if other == identifier))
            raise ConfigError(f"{where}: question {identifier!r} is there {counts[identifier]} times (in {files})")


def _kind(data: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(data), "a number")
