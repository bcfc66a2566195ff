"""The quality profile against a server whose answers are written down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.core.proportions import wilson
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.settings import QualitySettings
from pytest_llmbench.core.statistics import StoppingRule
from pytest_llmbench.errors import CellError, LlmbenchError, MeasurementInvalid, RequestError, ServerError
from pytest_llmbench.profiles.base import Measurement, ProfileContext
from pytest_llmbench.profiles.quality import QualityProfile
from tests.servers.quiz import QuizServer, Said

DATA = Path(__file__).parents[3] / "data"


def question(number: int, category: str = "math", **changes: Any) -> dict[str, Any]:
    scorer = {"kind": "number", "answer": number}
    return {"id": f"q{number}", "category": category, "prompt": f"What is {number}?", "scorer": scorer, **changes}


FOUR = [question(1), question(2), question(3, "reasoning"), question(4, "cooking")]


@dataclass
class Bench:
    """A quiz server, a bank of its own in a folder, and what the profile filed."""

    quiz: QuizServer
    root: Path
    settings: dict[str, Any] = field(default_factory=dict)
    questions: list[dict[str, Any]] = field(default_factory=lambda: list(FOUR))
    filed: list[RequestRecord] = field(default_factory=list)
    death: LlmbenchError | None = None
    stood_still: Iterator[bool] = field(default_factory=lambda: iter(()))
    url: str | None = None

    def run(self) -> Measurement:
        """Write the bank, and ask it."""
        bank = {"version": "7", "questions": self.questions}
        (self.root / "quality_tests.json").write_text(json.dumps(bank), encoding="utf-8")
        return self.run_data(self.root)

    def run_data(self, data: Path) -> Measurement:
        context = ProfileContext(
            endpoint=Endpoint(self.url or self.quiz.url, "openai_chat", model="quiz"),
            settings=QualitySettings(**self.settings),
            rule=StoppingRule(6, 20, 5, 60, {}),
            nodeid="the cell",
            data_dirs=[data],
            sink=self.file,
            on_failure=lambda error: self.death or error,
            rootdir=self.root,
            disturbance=lambda _begin, _end: _Stop() if next(self.stood_still, False) else None,
        )
        return QualityProfile().run(context)

    def file(self, record: RequestRecord) -> None:
        """Where records go."""
        self.filed.append(record)


class _Stop:
    sentence = "the machine stood still for 3 s"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    answers = {"What is 1?": "1", "What is 2?": "The answer is 2.", "What is 3?": "13", "What is 4?": "four"}
    with QuizServer(answers) as quiz:
        yield Bench(quiz, tmp_path)


def rows(measurement: Measurement) -> dict[Any, dict[str, Any]]:
    return {row["id"]: row for row in measurement.details["questions"]}


class TestScores:
    def test_are_shares_with_wilson_intervals_in_percent(self, bench: Bench) -> None:
        metrics = bench.run().metrics
        whole = metrics["quality_score_percent"]
        assert (whole.value, whole.n, whole.unit) == (75.0, 4, "%")
        expected = wilson(3, 4)
        assert whole.ci_low == pytest.approx(100 * expected.low)
        assert whole.ci_high == pytest.approx(100 * expected.high)
        assert (metrics["math_score_percent"].value, metrics["math_score_percent"].n) == (100.0, 2)
        assert metrics["reasoning_score_percent"].value == 0.0

    def test_are_missing_where_nothing_was_asked(self, bench: Bench) -> None:
        metrics = bench.run().metrics
        assert not {"comprehension_score_percent", "format_compliance_percent"} & metrics.keys()

    def test_of_a_users_category_count_into_the_whole_only(self, bench: Bench) -> None:
        bench.questions = [question(4, "cooking")]
        measurement = bench.run()
        assert set(measurement.metrics) == {"quality_score_percent", "answer_seconds"}
        assert rows(measurement)["q4"]["category"] == "cooking"

    def test_stand_beside_each_questions_row(self, bench: Bench) -> None:
        row = rows(bench.run())["q3"]
        seconds = row.pop("seconds")
        assert row == {
            "id": "q3",
            "category": "reasoning",
            "correct": False,
            "why": "13 instead of 3",
            "answer": "13",
            "output_tokens": 1,
            "error": None,
        }
        assert seconds > 0

    def test_rows_show_the_beginning_of_a_long_answer(self, bench: Bench) -> None:
        bench.quiz.answers = {"What is 1?": "word " * 100 + "1"}
        bench.questions = [question(1)]
        row = rows(bench.run())["q1"]
        assert row["correct"] is True
        assert row["answer"] == ("word " * 100)[:200]

    def test_come_with_the_median_time_of_an_answer(self, bench: Bench) -> None:
        measurement = bench.run()
        seconds = sorted(row["seconds"] for row in rows(measurement).values())
        assert measurement.metrics["answer_seconds"].value == pytest.approx((seconds[1] + seconds[2]) / 2)
        assert measurement.metrics["answer_seconds"].n == 4

    def test_are_of_nothing_but_metrics_that_the_profile_names(self, bench: Bench) -> None:
        bench.questions = [question(1, category) for category in ("math", "comprehension", "reasoning", "format")]
        bench.questions = [{**one, "id": f"{one['id']}{i}"} for i, one in enumerate(bench.questions)]
        assert set(bench.run().metrics) == set(QualityProfile.emits)


class TestAsking:
    def test_is_greedy_and_through_the_chat_template(self, bench: Bench) -> None:
        bench.settings = {"output_tokens": 99}
        bench.run()
        for body in bench.quiz.bodies[1:]:
            assert body["temperature"] == 0
            assert body["max_tokens"] == 99
            assert [message["role"] for message in body["messages"]] == ["user"]
            assert not body.get("ignore_eos")

    def test_is_one_at_a_time_each_once_after_a_warm_up(self, bench: Bench) -> None:
        bench.run()
        assert bench.quiz.most_at_once == 1
        assert bench.quiz.asked[1:] == [one["prompt"] for one in FOUR]
        assert [record.phase for record in bench.filed] == ["warmup", *["sample"] * 4]
        assert [record.index for record in bench.filed] == list(range(5))

    def test_of_the_shipped_bank_asks_thirteen_when_quick(self, bench: Bench) -> None:
        bench.settings = {"questions": "quick"}
        measurement = bench.run_data(DATA)
        counts = {name: metric.n for name, metric in measurement.metrics.items()}
        assert counts["quality_score_percent"] == 13
        assert counts["math_score_percent"] == 4
        assert counts["format_compliance_percent"] == 3
        assert measurement.sampling["question_set"] == "quick"

    def test_quick_leaves_out_what_is_only_in_the_full_set(self, bench: Bench) -> None:
        bench.questions = [question(1, set="quick"), question(2)]
        bench.settings = {"questions": "quick"}
        assert list(rows(bench.run())) == ["q1"]
        bench.settings = {"questions": "full"}
        assert list(rows(bench.run())) == ["q1", "q2"]

    def test_says_what_was_asked(self, bench: Bench) -> None:
        sampling = bench.run().sampling
        assert sampling["samples"] == 4
        assert sampling["bank_version"] == "7"
        assert sampling["question_set"] == "full"
        assert sampling["output_tokens"] == 256
        before = sampling["bank_fingerprint"]
        bench.questions[0] = question(1, prompt="What is one?")
        assert bench.run().sampling["bank_fingerprint"] != before

    def test_needs_room_for_question_and_answer(self) -> None:
        assert QualityProfile().needed_context(QualitySettings(output_tokens=100)) == 1124


class TestFailures:
    def test_an_empty_answer_is_wrong_and_ends_nothing(self, bench: Bench) -> None:
        bench.quiz.answers = {"What is 4?": "4"}
        bench.quiz.otherwise = Said(" \n")
        measurement = bench.run()
        assert measurement.metrics["quality_score_percent"].value == 25.0
        assert rows(measurement)["q1"]["why"] == "the answer is empty"
        assert rows(measurement)["q1"]["error"] == "empty_answer"
        assert any("3 of 4 questions got no answer" in note for note in measurement.notes)
        assert measurement.metrics["answer_seconds"].n == 1
        assert [record.usable for record in bench.filed[1:]] == [False, False, False, True]

    def test_all_empty_answers_are_a_score_of_nothing(self, bench: Bench) -> None:
        bench.quiz.answers, bench.quiz.otherwise = {}, Said("")
        metrics = bench.run().metrics
        assert metrics["quality_score_percent"].value == 0.0
        assert "answer_seconds" not in metrics

    def test_a_failed_request_is_wrong_with_its_own_reason(self, bench: Bench) -> None:
        bench.quiz.answers = {**bench.quiz.answers, "What is 2?": Said(http_status=500)}
        measurement = bench.run()
        assert measurement.metrics["quality_score_percent"].value == 50.0
        assert "HTTP 500" in rows(measurement)["q2"]["why"]
        assert "1 http_error" in measurement.notes[0]

    def test_three_failed_requests_in_a_row_end_the_cell(self, bench: Bench) -> None:
        bench.quiz.otherwise = Said(http_status=500)
        bench.quiz.answers = {"What is 1?": "1"}
        with pytest.raises(RequestError, match="3 questions in a row got no answer, at last q4") as raised:
            bench.run()
        assert raised.value.code == "http_error"
        assert len(bench.filed) == 5

    def test_a_dead_server_ends_the_cell(self, bench: Bench) -> None:
        bench.death = ServerError("server_died", "it died of a signal")
        bench.quiz.answers = {"What is 2?": Said(http_status=500)}
        with pytest.raises(ServerError, match="died of a signal"):
            bench.run()
        assert bench.quiz.asked[-1] == "What is 2?"
        assert bench.filed[-1].error == "http_error"

    def test_nobody_there_ends_the_cell_at_once(self, bench: Bench) -> None:
        with QuizServer() as gone:
            bench.url = gone.url
        with pytest.raises(RequestError) as raised:
            bench.run()
        assert raised.value.code == "connection_refused"
        assert len(bench.filed) == 1

    def test_a_key_that_is_refused_ends_the_cell_at_once(self, bench: Bench) -> None:
        bench.quiz.answers, bench.quiz.otherwise = {}, Said(http_status=401)
        with pytest.raises(RequestError) as raised:
            bench.run()
        assert raised.value.code == "wrong_key"
        assert len(bench.quiz.bodies) == 1

    def test_another_model_is_no_answer_of_this_one(self, bench: Bench) -> None:
        bench.quiz.answers = {"What is 2?": Said("2", model="other")}
        with pytest.raises(MeasurementInvalid, match="'other' answered") as raised:
            bench.run()
        assert raised.value.code == "another_model_answered"
        assert bench.filed[-1].usable is False

    def test_a_prompt_that_was_cut_makes_the_cell_invalid(self, bench: Bench) -> None:
        prompt = "word " * 50 + "?"
        bench.questions = [question(1, prompt=prompt)]
        bench.quiz.answers = {prompt: Said("1", prompt_tokens=20)}
        with pytest.raises(MeasurementInvalid, match="read 20 tokens"):
            bench.run()


class TestAnswers:
    def test_cut_off_are_scored_as_they_stand_and_counted(self, bench: Bench) -> None:
        cut = {"What is 1?": Said("so it is 1", finish="length"), "What is 2?": Said("first 7", finish="length")}
        bench.quiz.answers = {**bench.quiz.answers, **cut}
        measurement = bench.run()
        assert rows(measurement)["q1"]["correct"] is True
        assert rows(measurement)["q2"]["correct"] is False
        assert "2 of 4 answers were cut off at 256 tokens and scored as they stood" in measurement.notes
        assert "answers_cut" in measurement.flags

    def test_are_scored_without_reasoning(self, bench: Bench) -> None:
        bench.quiz.answers = {"What is 1?": Said("2", reasoning="surely 1"), "What is 2?": Said("2", reasoning="is 1")}
        bench.questions = FOUR[:2]
        measurement = bench.run()
        assert [row["correct"] for row in rows(measurement).values()] == [False, True]
        assert any("reasoning" in note for note in measurement.notes)

    def test_are_scored_without_reasoning_that_no_server_took_apart(self, bench: Bench) -> None:
        bench.quiz.answers = {
            "What is 1?": "<think>It could be 2.</think>\n\n1",
            "What is 2?": Said("<think>it is 2", finish="length"),
        }
        bench.questions = FOUR[:2]
        measurement = bench.run()
        assert [row["correct"] for row in rows(measurement).values()] == [True, False]
        assert "tokens went to reasoning; only what follows it was scored" in measurement.notes

    def test_that_never_came_for_reasoning_say_so(self, bench: Bench) -> None:
        bench.quiz.answers = {"What is 1?": Said(reasoning="hm, is it 1", finish="length")}
        bench.questions = FOUR[:1]
        row = rows(bench.run())["q1"]
        assert row["correct"] is False
        assert "all tokens went to reasoning" in row["why"]

    def test_of_a_machine_that_stood_still_count_but_not_their_time(self, bench: Bench) -> None:
        bench.stood_still = iter([False, True])
        measurement = bench.run()
        assert measurement.metrics["quality_score_percent"].n == 4
        assert measurement.metrics["answer_seconds"].n == 3
        assert measurement.flags == ["stood_still"]

    def test_that_failed_while_it_stood_still_are_asked_for_again(self, bench: Bench) -> None:
        bench.stood_still = iter([False, True])
        bench.quiz.answers = {**bench.quiz.answers, "What is 1?": [Said(http_status=500), Said("1")]}
        measurement = bench.run()
        assert rows(measurement)["q1"]["correct"] is True
        assert bench.quiz.asked.count("What is 1?") == 2

    def test_that_fail_in_a_machine_that_stands_still_again_and_again_end_the_cell(self, bench: Bench) -> None:
        bench.stood_still = iter([False, True, True, True])
        bench.quiz.answers = {"What is 1?": Said(http_status=500)}
        with pytest.raises(MeasurementInvalid, match="stood still for 3 s; run the cell again"):
            bench.run()


class TestOwnQuestions:
    def write(self, folder: Path, name: str = "mine.json", **changes: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps([question(1, "cooking", **changes)]), encoding="utf-8")
        return folder

    def test_are_asked_instead_of_the_bank(self, bench: Bench) -> None:
        self.write(bench.root / "mine")
        bench.settings = {"questions_dir": "mine", "questions": "quick"}
        measurement = bench.run()
        assert list(rows(measurement)) == ["q1"]
        assert measurement.sampling["question_set"] == "mine"
        assert str(measurement.sampling["bank_version"]).startswith("own-")

    @pytest.mark.parametrize("written", ["sub/../mine", "./mine/", "absolute"])
    def test_lie_anywhere_below_the_root(self, bench: Bench, written: str) -> None:
        path = self.write(bench.root / "mine")
        (bench.root / "sub").mkdir()
        bench.settings = {"questions_dir": str(path) if written == "absolute" else written}
        assert list(rows(bench.run())) == ["q1"]

    @pytest.mark.parametrize("written", ["../outside", "absolute", "link", "mine/../../outside"])
    def test_never_lie_outside(self, bench: Bench, written: str) -> None:
        outside = self.write(bench.root / "outside")
        bench.root /= "root"
        bench.root.mkdir()
        (bench.root / "mine").mkdir()
        (bench.root / "link").symlink_to(outside)
        bench.settings = {"questions_dir": str(outside) if written == "absolute" else written}
        with pytest.raises(CellError, match="leads out of") as raised:
            bench.run()
        assert raised.value.code == "questions_unusable"
        assert not bench.quiz.bodies

    def test_do_not_come_through_a_link_to_a_file_outside(self, bench: Bench) -> None:
        outside = self.write(bench.root / "outside") / "mine.json"
        bench.root /= "root"
        (bench.root / "mine").mkdir(parents=True)
        (bench.root / "mine" / "linked.json").symlink_to(outside)
        bench.settings = {"questions_dir": "mine"}
        with pytest.raises(CellError, match=r"linked\.json links to a file outside"):
            bench.run()

    def test_that_are_missing_are_told(self, bench: Bench) -> None:
        bench.settings = {"questions_dir": "nowhere"}
        with pytest.raises(CellError, match="nowhere is no folder below"):
            bench.run()
        (bench.root / "nowhere").mkdir()
        with pytest.raises(CellError, match=r"holds no \*\.json"):
            bench.run()

    def test_that_are_wrong_are_told_with_file_and_question(self, bench: Bench) -> None:
        self.write(bench.root / "mine", scorer={"kind": "number"})
        bench.settings = {"questions_dir": "mine"}
        with pytest.raises(CellError, match=r"mine/mine\.json: question 'q1', scorer\.number\.answer: is missing"):
            bench.run()

    @pytest.mark.parametrize("content", [b"\xff\xfe", b"["])
    def test_that_are_no_json_are_told(self, bench: Bench, content: bytes) -> None:
        (bench.root / "mine").mkdir()
        (bench.root / "mine" / "broken.json").write_bytes(content)
        bench.settings = {"questions_dir": "mine"}
        with pytest.raises(CellError, match=r"the questions can not be asked: .*mine/broken\.json"):
            bench.run()

    def test_that_leave_a_category_out_say_so(self, bench: Bench) -> None:
        self.write(bench.root / "mine")
        bench.settings = {"questions_dir": "mine"}
        notes = bench.run().notes
        assert "no question is of math, comprehension, reasoning, format, so a limit on that decides nothing" in notes
