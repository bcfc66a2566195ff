"""Quality: questions with one right answer, asked one at a time, greedily, through the model's chat template.

One at a time, because parallel slots change what a model answers (P32); greedy, so that the same model answers the same
(P31). Every question is asked once: it is the questions, not repetitions, that a score's interval comes from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.prompts import words
from pytest_llmbench.core.proportions import wilson
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.settings import QualitySettings
from pytest_llmbench.core.statistics import Interval
from pytest_llmbench.errors import CellError, ConfigError, MeasurementInvalid, Primitive, RequestError
from pytest_llmbench.profiles.base import STOOD_STILL, Measurement, ProfileContext, PromptTokens
from pytest_llmbench.profiles.sampling import disturbance_of, why_nothing_counts

# Their models and expressions take some 30 ms to build, which a run without this profile need not pay.
if TYPE_CHECKING:
    from pytest_llmbench.core.questions import Question, QuestionBank
    from pytest_llmbench.core.scoring import Score

BANK_FILE = "quality_tests.json"
# The longest shipped question has some 670 characters, 170 tokens or so; a user's own may be longer.
PROMPT_TOKENS_AT_MOST = 1024
SCORE_OF_CATEGORY = {
    "math": "math_score_percent",
    "comprehension": "comprehension_score_percent",
    "reasoning": "reasoning_score_percent",
    "format": "format_compliance_percent",
}
DETAILS_TABLE = "questions"
SHOWN_CHARACTERS = 200
_MANY_CUT = 0.2  # of the answers: beyond that, the score tells of a setting as much as of the model
FAILURES_IN_A_ROW = 3
TRIES = 3
_WARMUP = Generation(max_tokens=16, messages=({"role": "user", "content": "Say hello."},))


@dataclass(frozen=True, slots=True)
class _Answered:
    """A question, what came back, and how it was scored. ``undisturbed``: whether its time is one."""

    question: Question
    record: RequestRecord
    score: Score
    undisturbed: bool

    @property
    def seconds(self) -> float:
        return (self.record.t_end_ns - self.record.t_send_ns) / 1e9

    @property
    def is_cut(self) -> bool:
        return self.record.finish_reason == "length"

    def row(self) -> dict[str, Primitive]:
        """A line of the record's details."""
        return {
            "id": self.question.id,
            "category": self.question.category,
            "correct": self.score.correct,
            "why": self.score.why[:SHOWN_CHARACTERS],
            "answer": self.record.output[:SHOWN_CHARACTERS],
            "output_tokens": self.record.output_tokens,
            "seconds": self.seconds,
            "error": self.record.error,
        }


class QualityProfile:
    """See the module's docstring."""

    name = "quality"
    emits: tuple[str, ...] = (*SCORE_OF_CATEGORY.values(), "quality_score_percent", "answer_seconds")
    settings_model = QualitySettings

    def needed_context(self, settings: QualitySettings) -> int:
        """Room for a question in whatever template, and the answer."""
        return PROMPT_TOKENS_AT_MOST + settings.output_tokens

    def check_settings(self, settings: QualitySettings, rootdir: Path) -> None:
        """Read a user's own questions before anything is started. Raises ConfigError: they can not be asked."""
        if settings.questions_dir is not None:
            _own_bank(rootdir, settings.questions_dir)

    def run(self, context: ProfileContext) -> Measurement:
        """See :class:`~pytest_llmbench.profiles.base.Profile`."""
        settings = context.settings
        bank, questions, name = _questions(context)
        warmup = context.ask(_WARMUP, "warmup")
        context.file(warmup)
        measurement = _summarise(_ask_all(context, questions, warmup), settings.output_tokens)
        measurement.sampling = {
            "samples": len(questions),
            "question_set": name,
            "bank_version": bank.version,
            "bank_fingerprint": bank.fingerprint,
            "output_tokens": settings.output_tokens,
        }
        return measurement


def _questions(context: ProfileContext) -> tuple[QuestionBank, Sequence[Question], str]:
    """The bank, what of it is asked, and what that is called. Raises CellError: ``questions_unusable``."""
    from pytest_llmbench.core.questions import load_questions

    settings = context.settings
    try:
        if settings.questions_dir is None:
            bank = load_questions(context.read_data(BANK_FILE), BANK_FILE)
            return bank, bank.part(settings.questions), settings.questions
        bank = _own_bank(context.rootdir, settings.questions_dir)
    except ConfigError as exc:
        raise CellError("questions_unusable", f"the questions can not be asked: {exc}") from exc
    return bank, bank.questions, settings.questions_dir


def _own_bank(rootdir: Path, folder: str) -> QuestionBank:
    from pytest_llmbench.core.questions import load_folder

    return load_folder(_own_files(rootdir, folder))


def _own_files(rootdir: Path, folder: str) -> dict[str, str]:
    """The text of every ``*.json`` of a user's folder, by its path below the root of the tests.

    Raises:
        ConfigError: the folder, or what a file of it links to, lies outside; or it can not be read.
    """
    root = rootdir.resolve()
    where = f"settings.quality.questions_dir: {folder}"
    try:
        path = (root / folder).resolve()
        if not path.is_relative_to(root):
            raise ConfigError(f"{where} leads out of {root}; put the questions below it")
        if not path.is_dir():
            raise ConfigError(f"{where} is no folder below {root}")
        texts = {}
        for file in sorted(path.glob("*.json")):
            if not file.resolve().is_relative_to(root):
                raise ConfigError(f"{where}: {file.name} links to a file outside {root}; copy it instead")
            try:
                texts[str(file.relative_to(root))] = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as exc:
                raise ConfigError(f"{file.relative_to(root)}: not UTF-8: {exc.reason} at byte {exc.start}") from exc
    except (OSError, RuntimeError, ValueError) as exc:  # a loop of links, a null character, no UTF-8
        raise ConfigError(f"{where} can not be read: {exc}") from exc
    if not texts:
        raise ConfigError(f"{where} holds no *.json; {BANK_FILE} in the shipped data shows the form")
    return texts


def _ask_all(context: ProfileContext, questions: Sequence[Question], warmup: RequestRecord) -> list[_Answered]:
    """Ask each question. Raises LlmbenchError: the server died, cuts prompts, or fails again and again."""
    answered: list[_Answered] = []
    failures = 0
    for question in questions:
        answer = _ask(context, question, warmup)
        answered.append(answer)
        # An empty answer is the model's; what else fails is likely to be the server's, and says nothing of a model.
        failures = failures + 1 if answer.record.error not in {None, "empty_answer"} else 0
        if failures == FAILURES_IN_A_ROW:
            raise RequestError(
                answer.record.error or "failed",
                f"{failures} questions in a row got no answer, at last {question.id}: {answer.record.error_message}; "
                "look into the server's log",
            )
    return answered


def _ask(context: ProfileContext, question: Question, warmup: RequestRecord) -> _Answered:
    """Ask one question, again where something stood still and it failed: that says nothing about the model."""
    from pytest_llmbench.core.scoring import score

    messages = ({"role": "user", "content": question.prompt},)
    generation = Generation(max_tokens=context.settings.output_tokens, messages=messages)
    for _ in range(TRIES):
        record = context.ask(generation)
        doubt = disturbance_of(record, warmup)
        if record.ok:
            # No server's tokenizer is asked: what is looked for is a prompt that was cut, not one that is a token off.
            length = PromptTokens(words(question.prompt) // 2, exact=False)
            refusal = why_nothing_counts(record, length, warmup, context.context_size)
            context.file(record, usable=refusal is None)
            if refusal is not None:
                raise refusal
            return _Answered(question, record, score(question.scorer, _said(record)), doubt is None)
        context.file(record, usable=False)
        if STOOD_STILL not in record.flags:
            return _Answered(question, record, _failed(record), undisturbed=False)
    raise MeasurementInvalid(STOOD_STILL, f"{context.disturbances[-1]}; run the cell again")


def _said(record: RequestRecord) -> str:
    """The answer without reasoning that the server did not take apart."""
    from pytest_llmbench.core.scoring_text import without_thinking

    return without_thinking(record.output)


def _failed(record: RequestRecord) -> Score:
    from pytest_llmbench.core.scoring import Score

    if record.error != "empty_answer":
        return Score(False, f"no answer: {record.error_message}")
    if record.reasoning and record.finish_reason == "length":
        return Score(False, "no answer: all tokens went to reasoning; allow more (settings.quality.output_tokens)")
    return Score(False, "the answer is empty")


def _summarise(answered: Sequence[_Answered], output_tokens: int) -> Measurement:
    measurement = Measurement(details={DETAILS_TABLE: [answer.row() for answer in answered]})
    for category, metric in SCORE_OF_CATEGORY.items():
        _add_score(measurement, metric, [one.score.correct for one in answered if one.question.category == category])
    _add_score(measurement, "quality_score_percent", [one.score.correct for one in answered])
    usable = [answer for answer in answered if answer.record.ok]
    measurement.add_median("answer_seconds", [answer.seconds for answer in usable if answer.undisturbed])
    cut = sum(answer.is_cut for answer in usable)
    if cut:
        measurement.notes.append(
            f"{cut} of {len(answered)} answers were cut off at {output_tokens} tokens and scored as they stood"
        )
    if cut > _MANY_CUT * len(answered):
        measurement.flag("answers_cut")
    failures = Counter(answer.record.error for answer in answered if not answer.record.ok)
    if failures:
        reasons = ", ".join(f"{count} {code}" for code, count in failures.most_common())
        measurement.notes.append(
            f"{failures.total()} of {len(answered)} questions got no answer and count as wrong: {reasons}"
        )
    if any(one.record.reasoning or _said(one.record) != one.record.output for one in answered):
        measurement.notes.append("tokens went to reasoning; only what follows it was scored")
    for answer in usable:
        if not answer.undisturbed:
            measurement.flag(STOOD_STILL if STOOD_STILL in answer.record.flags else "model_reloaded")
    left_out = [category for category, metric in SCORE_OF_CATEGORY.items() if metric not in measurement.metrics]
    if left_out:
        measurement.notes.append(f"no question is of {', '.join(left_out)}, so a limit on that decides nothing")
    return measurement


def _add_score(measurement: Measurement, metric: str, correct: Sequence[bool]) -> None:
    """Add a share in percent with Wilson's interval; nothing where nothing was asked."""
    if correct:
        share = wilson(sum(correct), len(correct))
        interval = Interval(100 * share.low, 100 * share.high)
        measurement.add(metric, 100 * sum(correct) / len(correct), interval, len(correct))
