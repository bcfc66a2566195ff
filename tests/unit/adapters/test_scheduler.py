"""The scheduler, driven by a simulation of xdist: its workers' queues, its session, crashes and replacements."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.adapters.scheduler import FREE, LAST, GroupScheduling, make_scheduler

SHUTDOWN = -1


@dataclass(frozen=True)
class Gateway:
    id: str


class Worker:
    """A worker as xdist's remote.py is one: a test starts when the next one, or the end, is in the queue."""

    def __init__(self, session: Session, name: str) -> None:
        self.gateway = Gateway(name)
        self.ran: list[int] = []
        self.shutting_down = False
        self.most_sent = 0
        self._session = session
        self._queue: deque[int] = deque()
        self._next: int | None = None
        self._running: int | None = None
        self._began = False
        self.ended = False

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        assert not self.shutting_down
        self._queue.extend(indices)
        self.most_sent = max(self.most_sent, len(self._queue))
        self.advance()

    def shutdown(self) -> None:
        if not self.ended:
            self.shutting_down = True
            self._queue.append(SHUTDOWN)
            self.advance()

    def collected(self) -> None:
        self._began = True
        self.advance()

    def advance(self) -> None:
        """Go on as far as the queue allows."""
        if self._next is None and self._running is None and self._began and self._queue and not self.ended:
            self._next = self._queue.popleft()
        if self._next is None or self._running is not None or self.ended:
            return
        if self._next == SHUTDOWN:
            self.ended = True
            self._session.after(0, lambda: self._session.worker_finished(self))
        elif self._queue:
            self._running, self._next = self._next, self._queue.popleft()
            self._session.begin(self, self._running)

    def complete(self) -> None:
        assert self._running is not None
        self.ran.append(self._running)
        self._running = None


@dataclass
class Session:
    """xdist's DSession with workers whose tests take a known time.

    Attributes:
        crashes: tests that end their worker.
        fatal_collections: how many workers end before they have collected.
        completed: what was run to the end, in the order of time.
        history: every beginning (True) and end (False) of a test, in the order of time.
    """

    scheduler: GroupScheduling
    collection: Sequence[str]
    costs: Sequence[float]
    crashes: Collection[int] = ()
    fatal_collections: int = 0
    collections: Mapping[str, Sequence[str]] = field(default_factory=dict)
    maxfail_at: int | None = None
    completed: list[int] = field(default_factory=list)
    history: list[tuple[bool, int]] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._active: set[Worker] = set()
        self.shutting_down = False

    def run(self, worker_count: int) -> float:
        """Run to the end; returns when the last test was over. Fails when workers wait for ever."""
        for _ in range(worker_count):
            self._start()
        over = 0.0
        while not (self.shutting_down and not self._active):
            assert self._events, "everybody waits"
            self.now, _, event = heapq.heappop(self._events)
            before = len(self.completed) + len(self.crashed)
            event()
            over = self.now if len(self.completed) + len(self.crashed) > before else over
            self._check()
        return over

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), event))

    def begin(self, worker: Worker, index: int) -> None:
        event = self._worker_crashed if index in self.crashes else self._test_completed
        self.history.append((True, index))
        self.after(self.costs[index], lambda: event(worker, index))

    def worker_finished(self, worker: Worker) -> None:
        if worker in self.scheduler.nodes:
            assert self.scheduler.remove_node(worker) is None
        self._active.remove(worker)

    def _start(self) -> None:
        worker = Worker(self, f"gw{len(self.workers)}")
        self.workers.append(worker)
        self._active.add(worker)
        self.after(0.001, lambda: self._worker_ready(worker))

    def _worker_ready(self, worker: Worker) -> None:
        if self.shutting_down:
            worker.collected()
            worker.shutdown()
            return
        self.scheduler.add_node(worker)
        if self.fatal_collections:
            self.fatal_collections -= 1
            self.after(0.001, lambda: self._replace(worker))
        else:
            self.after(0.001, lambda: self._worker_collected(worker))

    def _worker_collected(self, worker: Worker) -> None:
        worker.collected()
        if self.shutting_down:
            return
        self.scheduler.add_node_collection(worker, self.collections.get(worker.gateway.id, self.collection))
        if self.scheduler.collection_is_completed:
            self.scheduler.schedule()

    def _test_completed(self, worker: Worker, index: int) -> None:
        self.completed.append(index)
        self.history.append((False, index))
        worker.complete()
        if index == self.maxfail_at:  # xdist learns of the failure before it learns that the test is over
            self._shut_down()
        self.scheduler.mark_test_complete(worker, index, self.costs[index])
        worker.advance()

    def _worker_crashed(self, worker: Worker, index: int) -> None:
        self.history.append((False, index))
        self._replace(worker)
        assert self.crashed[-1] == self.collection[index]

    def _replace(self, worker: Worker) -> None:
        worker.ended = worker.shutting_down = True
        crashed = self.scheduler.remove_node(worker)
        if crashed:
            self.crashed.append(crashed)
        self.shutting_down = False
        self._start()
        self._active.remove(worker)

    def _check(self) -> None:
        if self.scheduler.tests_finished:
            self._shut_down()

    def _shut_down(self) -> None:
        if not self.shutting_down:
            self.shutting_down = True
            for node in self.scheduler.nodes:
                node.shutdown()


def no_refusal(worker_id: str, why: str) -> None:
    pytest.fail(f"{worker_id}: {why}")


def simulate(
    groups: Sequence[Sequence[float]],
    worker_count: int,
    *,
    crashes: Collection[int] = (),
    finished: Collection[int] = (),
    fatal_collections: int = 0,
    maxfail_at: int | None = None,
    last: int = 0,
) -> tuple[Session, float]:
    """Run groups of tests, each given by its tests' costs, of which ``last`` come last.

    Returns the session, and when the last test was over.
    """
    first_last = len(groups) - last
    numbers = [number if number < first_last else LAST - number for number, costs in enumerate(groups) for _ in costs]
    collection = [f"test_a.py::test[{index}]" for index in range(len(numbers))]
    scheduler = GroupScheduling(
        None, worker_count, lambda: numbers, [collection[index] for index in finished], no_refusal
    )
    session = Session(
        scheduler,
        collection,
        [cost for costs in groups for cost in costs],
        crashes=crashes,
        fatal_collections=fatal_collections,
        maxfail_at=maxfail_at,
    )
    return session, session.run(worker_count)


group_costs = st.lists(st.floats(0.01, 5), min_size=1, max_size=6)


@given(
    groups=st.lists(group_costs, max_size=12),
    worker_count=st.integers(1, 5),
    fatal_collections=st.integers(0, 2),
    data=st.data(),
)
def test_everything_is_run_once(
    groups: list[list[float]], worker_count: int, fatal_collections: int, data: st.DataObject
) -> None:
    count = sum(map(len, groups))
    some = st.sets(st.integers(0, max(0, count - 1)), max_size=count)
    crashes, finished = data.draw(some, "crashes"), data.draw(some, "finished")
    session, _ = simulate(groups, worker_count, crashes=crashes, finished=finished, fatal_collections=fatal_collections)
    wanted = set(range(count)) - finished
    assert sorted(session.completed) == sorted(wanted - crashes)  # once each
    assert sorted(session.crashed) == sorted(session.collection[index] for index in wanted & crashes)
    assert max((worker.most_sent for worker in session.workers), default=0) <= 2
    group_of = [number for number, costs in enumerate(groups) for _ in costs]
    for number in range(len(groups)):
        users = [worker for worker in session.workers if any(group_of[index] == number for index in worker.ran)]
        broken = sum(group_of[index] == number for index in wanted & crashes)
        assert len(users) <= 1 + broken
    for worker in session.workers:
        parts = [list(part) for _, part in itertools.groupby(worker.ran, key=group_of.__getitem__)]
        assert all(part == sorted(part) for part in parts)
        assert len({group_of[part[0]] for part in parts}) == len(parts)  # what it began it ended first
        if not crashes:
            assert worker.ran == sorted(worker.ran)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=20), worker_count=st.integers(1, 8))
def test_groups_of_equal_cost_take_the_least_time(sizes: list[int], worker_count: int) -> None:
    """Whatever their numbers of tests."""
    _, makespan = simulate([[60 / size] * size for size in sizes], worker_count)
    assert makespan == pytest.approx(60 * math.ceil(len(sizes) / worker_count), rel=0.001)


def test_a_long_group_holds_up_what_was_settled_behind_it() -> None:
    """The price of the protocol: the third test has to follow the first, or the first would not start."""
    _, makespan = simulate([[10], [1], [10], [1]], 2)
    assert makespan == pytest.approx(20, rel=0.001)


def test_nobody_gets_two_while_another_has_none() -> None:
    session, makespan = simulate([[1], [1, 1], [1]], 3)
    assert [worker.ran for worker in session.workers] == [[0], [1, 2], [3]]
    assert makespan == pytest.approx(2, rel=0.01)


def test_more_workers_than_groups() -> None:
    session, _ = simulate([[1, 1]], 3)
    assert [worker.ran for worker in session.workers] == [[0, 1], [], []]


@pytest.mark.parametrize("finished", [(), (0, 1)])
def test_nothing_to_do(finished: tuple[int, ...]) -> None:
    session, _ = simulate([[1] for _ in finished], 2, finished=finished)
    assert session.completed == []


def test_a_crash_gives_the_rest_back_to_the_front() -> None:
    session, _ = simulate([[1, 1, 1, 1], [1], [1], [1]], 1, crashes=[1])
    assert session.crashed == ["test_a.py::test[1]"]
    assert session.completed == [0, 2, 3, 4, 5, 6]


def test_a_crash_in_the_last_test_of_a_group_leaves_the_next_one_whole() -> None:
    session, _ = simulate([[1, 1], [1, 1], [1, 1]], 2, crashes=[1])
    assert [worker.ran for worker in session.workers] == [[0], [2, 3], [4, 5]]


def test_a_worker_that_crashes_in_the_very_last_test() -> None:
    session, _ = simulate([[1, 1]], 1, crashes=[1])
    assert session.crashed == ["test_a.py::test[1]"]
    assert [worker.ran for worker in session.workers] == [[0], []]


def test_stopping_early_costs_each_worker_one_more_test_at_most() -> None:
    session, _ = simulate([[1] * 20, [1] * 20], 2, maxfail_at=0)
    assert sorted(session.completed) == [0, 1, 20, 21]


def test_ten_thousand_tests() -> None:
    session, makespan = simulate([[0.5] * 100] * 100, 4)
    assert len(session.completed) == 10_000
    assert makespan == pytest.approx(50 * 25, rel=0.001)


@given(
    groups=st.lists(group_costs, max_size=6),
    last=st.lists(group_costs, min_size=1, max_size=4),
    worker_count=st.integers(1, 4),
    fatal_collections=st.integers(0, 2),
    data=st.data(),
)
def test_what_comes_last_begins_when_all_else_has_ended_and_runs_one_at_a_time(
    groups: list[list[float]], last: list[list[float]], worker_count: int, fatal_collections: int, data: st.DataObject
) -> None:
    count, before = sum(map(len, groups + last)), sum(map(len, groups))
    some = st.sets(st.integers(0, count - 1), max_size=count)
    crashes, finished = data.draw(some, "crashes"), data.draw(some, "finished")
    session, _ = simulate(
        groups + last,
        worker_count,
        crashes=crashes,
        finished=finished,
        fatal_collections=fatal_collections,
        last=len(last),
    )
    wanted = set(range(count)) - finished
    assert sorted(session.completed) == sorted(wanted - crashes)
    assert sorted(session.crashed) == sorted(session.collection[index] for index in wanted & crashes)
    of_last = [event for event in session.history if event[1] >= before]
    assert session.history == [event for event in session.history if event[1] < before] + of_last
    assert of_last == [
        event for index in sorted(wanted) if index >= before for event in ((True, index), (False, index))
    ]


def test_what_comes_last_does_not_hold_up_what_its_worker_has_before() -> None:
    """It waits for the other worker with nothing of its own undone, so it can give back what it measures on."""
    session, makespan = simulate([[1, 1], [1, 5], [3], [3]], 2, last=2)
    assert makespan == pytest.approx(6 + 3 + 3, rel=0.001)
    assert session.history.index((False, 1)) < session.history.index((False, 3)) < session.history.index((True, 4))
    assert [worker.ran for worker in session.workers] == [[0, 1, 4, 5], [2, 3]]


def test_stopping_early_ends_also_who_waits() -> None:
    session, _ = simulate([[1], [5, 5, 5], [1, 1, 1]], 2, last=1, maxfail_at=1)
    assert session.completed[:2] == [0, 1]
    assert len(session.completed) <= 4


def run_named(collection: Sequence[str], groups: Sequence[int] | None, worker_count: int) -> list[list[str]]:
    scheduler = GroupScheduling(None, worker_count, lambda: groups, (), no_refusal)
    session = Session(scheduler, collection, [1] * len(collection))
    session.run(worker_count)
    return [[collection[index] for index in worker.ran] for worker in session.workers]


class TestGroups:
    def test_tests_that_are_free_go_anywhere(self) -> None:
        assert run_named(list("abcd"), [FREE] * 4, 2) == [["a", "c"], ["b", "d"]]

    @pytest.mark.parametrize("groups", [None, [0], []])
    def test_of_the_parameters_where_nothing_else_is_known(self, groups: list[int] | None) -> None:
        nodeids = ["t::a[x-1]", "t::b[x-1]", "t::a[x-2]", "t::plain", "t::other"]
        assert run_named(nodeids, groups, 2) == [["t::a[x-1]", "t::b[x-1]", "t::other"], ["t::a[x-2]", "t::plain"]]

    def test_those_that_are_free_go_before_what_comes_last(self) -> None:
        assert run_named(list("abcd"), [0, LAST, FREE, FREE], 1) == [["a", "c", "d", "b"]]

    def test_a_number_that_comes_again_is_another_group(self) -> None:
        assert run_named(list("abcd"), [0, 1, 1, 0], 3) == [["a"], ["b", "c"], ["d"]]


class TestDifferentCollections:
    @pytest.mark.parametrize("different", ["gw1", "gw2"])
    def test_are_refused_and_end_the_run(self, different: str) -> None:
        """gw1 is there from the beginning, gw2 replaces it."""
        refused: list[tuple[str, str]] = []
        scheduler = GroupScheduling(None, 2, lambda: None, (), lambda *told: refused.append(told))
        collection = [f"test[{index}]" for index in range(9)]
        session = Session(
            scheduler, collection, [1] * 9, crashes=[1], collections={different: [*collection[:-1], "test[x]"]}
        )
        session.run(2)
        ((name, why),) = refused
        assert name == different
        assert "-test[8]" in why
        assert "+test[x]" in why
        assert len(session.completed) < 6


class TestWhatXdistMayAsk:
    def test_a_crashed_test_once_more_is_refused(self) -> None:
        """As pytest-rerunfailures asks, which takes this answer; it looks for ``config`` before."""
        config = object()
        scheduler = GroupScheduling(config, 1, lambda: None, (), no_refusal)
        assert scheduler.config is config
        with pytest.raises(NotImplementedError):
            scheduler.mark_test_pending("a")

    def test_stolen_tests_are_never_offered(self) -> None:
        scheduler = GroupScheduling(None, 1, lambda: None, (), no_refusal)
        with pytest.raises(NotImplementedError):
            scheduler.remove_pending_tests_from_node(Worker(Session(scheduler, [], []), "gw0"), [])

    def test_a_worker_that_never_came(self) -> None:
        scheduler = GroupScheduling(None, 1, lambda: None, (), no_refusal)
        with pytest.raises(KeyError):  # xdist expects it
            scheduler.remove_node(Worker(Session(scheduler, [], []), "gw0"))

    def test_made_for_a_configuration(self) -> None:
        reports: list[Any] = []
        logged: list[str] = []
        config: Any = SimpleNamespace(
            getvalue={"tx": ["2*popen", "popen"]}.__getitem__,
            hook=SimpleNamespace(pytest_collectreport=lambda *, report: reports.append(report)),
        )
        scheduler = make_scheduler(config, SimpleNamespace(llmbench=logged.append), lambda: None, iter(["a"]))
        session = Session(scheduler, ["a", "b"], [1, 1], collections={"gw2": ["a"]})
        session.run(3)
        assert session.completed == []
        assert [(report.nodeid, report.outcome) for report in reports] == [("gw2", "failed")]
        assert logged == [reports[0].longrepr]
