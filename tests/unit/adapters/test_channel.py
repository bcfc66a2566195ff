"""What workers and controller say to each other, without xdist: a channel is a pair of queues."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llmbench.adapters.blocking import AskedDecisions, OwnDecisions
from pytest_llmbench.adapters.channel import CHANNEL, Controller
from pytest_llmbench.adapters.workers import instruct
from pytest_llmbench.core.blocking import Candidate
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.records import CellRecord, Reason
from pytest_llmbench.errors import DiskFull
from tests.unit.factories import cell_record

CELL = Cell(model="tiny", quantization="Q4_K_M", profile="interactive", variant=None)


class Channel:
    """execnet's, as far as it is used. ``answers`` come one by one; where none is left, nothing comes."""

    class RemoteError(Exception):
        pass

    def __init__(self, answers: list[dict[str, Any]] | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self.answers = answers if answers is not None else []
        self.broken = False

    def send(self, text: str) -> None:
        assert text.isascii()
        if self.broken:
            raise OSError("cannot send to a closed channel")
        self.sent.append(json.loads(text))

    def receive(self, _timeout: float) -> str:
        if not self.answers:
            raise TimeoutError("nothing came")
        return json.dumps(self.answers.pop(0))

    def setcallback(self, callback: Callable[[Any], None], endmarker: object) -> None:
        self.callback, self.end = callback, endmarker


class Learner:
    """Stands in for ``Blocking``: tells every cell the same."""

    def __init__(self) -> None:
        self.learnt: list[CellRecord] = []
        self.why_not: Reason | None = Reason(code="too_slow", message="the smaller one was", evidence={"limit": 2.0})

    def learn(self, record: CellRecord) -> None:
        self.learnt.append(record)

    def why(self, _candidate: Candidate, _available: Callable[[], int | None]) -> Reason | None:
        return self.why_not


class Folder:
    run_id = "r1"
    output_dir = Path("results")

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.full = False

    def append_line_of(self, part: str, table: str, line: str) -> None:
        if self.full:
            raise DiskFull("no space left")
        self.lines.append((part, line))


@pytest.fixture
def suite() -> Any:
    learner = Learner()
    candidates = SimpleNamespace(candidate=lambda *_: SimpleNamespace())
    return SimpleNamespace(
        folder=Folder(),
        learner=learner,
        decisions=OwnDecisions(learner, candidates),  # type: ignore[arg-type]
        groups=None,
        began={},
        trouble=None,
    )


def node(channel: Channel, **spec: Any) -> Any:
    kind = {"popen": True, "via": None, "chdir": None} | spec
    gateway = SimpleNamespace(id="gw3", spec=SimpleNamespace(**kind), newchannel=lambda: channel)
    return SimpleNamespace(workerinput={}, gateway=gateway, config=None)


@pytest.fixture
def channel(suite: Any) -> Channel:
    """A worker's line, at the controller's end."""
    channel = Channel()
    one = node(channel)
    instruct(one, suite)
    assert one.workerinput[CHANNEL] == channel
    return channel


def say(channel: Channel, **values: Any) -> None:
    channel.callback(json.dumps(values))


def ask_why(channel: Channel, number: int) -> None:
    cell = {"model": "tiny", "quantization": "Q4_K_M", "profile": "interactive", "variant": None}
    say(channel, kind="why", number=number, cell=cell, nodeid="n", host="h", available_bytes=None)


def test_an_answer_that_comes_late_is_not_taken_for_the_next_ones() -> None:
    channel = Channel([{"number": 1, "answer": "late"}, {"number": 2, "answer": "in time"}])
    controller = Controller(channel)
    channel.answers, later = [], channel.answers
    assert controller.ask("why") is None
    channel.answers = later
    assert controller.ask("why") == "in time"


@pytest.mark.parametrize("trouble", ["closed", "ended", "no JSON", "remote"])
def test_without_a_controller_a_worker_goes_on(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel()
    channel.broken = trouble == "closed"
    raised = {"ended": EOFError(), "remote": Channel.RemoteError("gone"), "no JSON": ValueError()}.get(trouble)

    def receive(_timeout: float) -> str:
        assert raised is not None
        raise raised

    monkeypatch.setattr(channel, "receive", receive)
    controller = Controller(channel)
    assert controller.tell("say", text="?") == (trouble != "closed")
    assert AskedDecisions(controller).why(CELL, "n", "h", None) is None


def test_a_question_is_answered_with_its_number(channel: Channel, suite: Any) -> None:
    ask_why(channel, 7)
    suite.learner.why_not = None
    ask_why(channel, 8)
    assert channel.sent == [
        {"number": 7, "answer": {"code": "too_slow", "message": "the smaller one was", "evidence": {"limit": 2.0}}},
        {"number": 8, "answer": None},
    ]


def test_a_record_is_learnt_as_it_was_told(channel: Channel, suite: Any) -> None:
    record = cell_record(interpretation="half a pair: \ud83d, a whole one: 😀")
    worker = Channel()
    AskedDecisions(Controller(worker)).learn(record)
    say(channel, **worker.sent[0])
    assert suite.learner.learnt == [record]
    assert channel.sent == []


def test_what_can_not_be_understood_does_not_end_the_line(
    channel: Channel, suite: Any, caplog: pytest.LogCaptureFixture
) -> None:
    channel.callback("no JSON")
    say(channel, kind="why", number=1)
    say(channel, kind="of a later version")
    channel.callback(channel.end)
    assert "worker gw3 can not be answered" in caplog.text
    ask_why(channel, 2)
    assert [answer["number"] for answer in channel.sent if answer["answer"] is not None] == [2]
    assert suite.trouble is None


def test_requests_of_another_host_are_kept_and_a_full_disk_is_told_to_the_main_thread(
    channel: Channel, suite: Any
) -> None:
    say(channel, kind="line", table="requests", line="{}")
    assert suite.folder.lines == [("gw3", "{}")]
    suite.folder.full = True
    say(channel, kind="line", table="requests", line="{}")
    assert isinstance(suite.trouble, DiskFull)


@pytest.mark.parametrize(
    ("spec", "remote"),
    [({}, False), ({"popen": None}, True), ({"via": "ssh"}, True), ({"chdir": "elsewhere"}, True)],
    ids=["popen", "socket", "by way of another host", "in another folder"],
)
def test_a_worker_that_may_not_share_our_folder_sends_its_requests(
    suite: Any, spec: dict[str, Any], remote: bool
) -> None:
    one = node(Channel(), **spec)
    instruct(one, suite)
    assert one.workerinput["llmbench_is_remote"] == remote


def test_nobody_asks_while_another_tells() -> None:
    """Each worker has a thread of its own at the controller; what has been learnt is not made for two."""

    class Slow(Learner):
        def learn(self, record: CellRecord) -> None:
            learning.set()
            asked.wait(0.2)
            super().learn(record)

        def why(self, candidate: Candidate, available: Callable[[], int | None]) -> Reason | None:
            asked.set()
            learnt_before.append(len(self.learnt))
            return super().why(candidate, available)

    learning, asked, learnt_before = threading.Event(), threading.Event(), list[int]()
    candidates = SimpleNamespace(candidate=lambda *_: SimpleNamespace())
    decisions = OwnDecisions(Slow(), candidates)  # type: ignore[arg-type]
    worker = threading.Thread(target=decisions.learn, args=(cell_record(),))
    worker.start()
    assert learning.wait(10)
    decisions.why(CELL, "n", "h", None)
    worker.join()
    assert learnt_before == [1]
