"""xdist: which worker runs which cell. Cells that share a server stay together, in the order of the suite.

xdist's worker starts a test only when it knows the one after it, or that none comes (``xdist.remote``,
``run_one_test``). So a worker always has two tests, or was told to shut down; and its next group is settled when the
last test of its group begins, not when it ends. More than two are never sent: what was sent runs, whatever happens
elsewhere, and after ``-x`` every test costs minutes.

With groups of equal cost nobody gets his (k+2)th group before everybody has his (k+1)th, so G groups take N workers
``ceil(G / N)`` times as long as one. With unequal ones a group of one test may have to wait behind another while some
worker is idle: the protocol can not take it back.

Groups that come last (stress) begin when everything else has ended, wherever it runs: what they do follows from all
other results, and would disturb them. One worker gets them all. It learns of the first of them early, so that it can
run what it has before; and waits there, because it does not learn of the second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pytest

FREE = -1
LAST = -2
_ENOUGH = 2


class Gateway(Protocol):
    @property
    def id(self) -> str: ...


class Worker(Protocol):
    """What is needed of xdist's ``WorkerController``."""

    @property
    def gateway(self) -> Gateway: ...

    @property
    def shutting_down(self) -> bool: ...

    def send_runtest_some(self, indices: Sequence[int]) -> None: ...

    def shutdown(self) -> None: ...


@dataclass(slots=True)
class _Work:
    """What one worker has to do, as indices of tests.

    Attributes:
        sent: what it knows, in order; the first runs.
        rest: of the last one's group, what it does not know yet.
        ready: whether it has collected what the others did.
    """

    sent: list[int] = field(default_factory=list)
    rest: deque[int] = field(default_factory=deque)
    ready: bool = False


class GroupScheduling:
    """Hands out groups whole, in order, to the worker that needs one next. Fills xdist's ``Scheduling`` protocol.

    Args:
        config: pytest's; kept for pytest-rerunfailures, which looks for it in every scheduler.
        worker_count: how many workers the run begins with.
        groups: for each test the number of its group, :data:`FREE` for one that may go anywhere, :data:`LAST` or less
            in groups that come last; None where that is not known, then tests with the same parameters are a group.
        finished: tests that are not to be run again.
        refuse: told a worker's id and why its tests can not be run.
    """

    def __init__(
        self,
        config: Any,
        worker_count: int,
        groups: Callable[[], Sequence[int] | None],
        finished: Collection[str],
        refuse: Callable[[str, str], None],
    ) -> None:
        self.config = config
        self._worker_count = worker_count
        self._groups = groups
        self._finished = frozenset(finished)
        self._refuse = refuse
        self._work: dict[Worker, _Work] = {}
        self._collected: dict[Worker, list[str]] = {}  # until the first distribution
        self._collection: list[str] | None = None
        self._queue: deque[deque[int]] = deque()
        self._last_queue: deque[deque[int]] = deque()
        self._last: frozenset[int] = frozenset()
        self._runs_last: Worker | None = None
        self._given_up = False

    @property
    def nodes(self) -> list[Worker]:
        """All workers, also those that still collect."""
        return list(self._work)

    @property
    def collection_is_completed(self) -> bool:
        """Whether the first distribution can take place, or has."""
        return self._collection is not None or len(self._collected) >= self._worker_count

    @property
    def tests_finished(self) -> bool:
        """Whether nothing is left to do; xdist then shuts all workers down."""
        return self._given_up or (self._collection is not None and not self.has_pending)

    @property
    def has_pending(self) -> bool:
        """Whether a test waits or runs."""
        return bool(self._queue or self._last_queue) or any(work.sent or work.rest for work in self._work.values())

    def add_node(self, node: Worker) -> None:
        """A worker has started, and collects now."""
        self._work[node] = _Work()

    def add_node_collection(self, node: Worker, collection: Sequence[str]) -> None:
        """A worker has collected: one of the first, or later one that replaces a crashed one."""
        if self._collection is None:
            self._collected[node] = list(collection)
        elif list(collection) == self._collection:
            self._work[node].ready = True
        else:
            self._give_up(node, self._collection, collection, "the first workers")

    def schedule(self) -> None:
        """Distribute; called whenever a worker has collected and ``collection_is_completed``."""
        if self._collection is None and not self._given_up:
            self._begin()
        for node in [node for node, work in self._work.items() if work.ready]:
            self._feed(node)

    def mark_test_complete(self, node: Worker, item_index: int, duration: float = 0) -> None:
        """A worker has run a test."""
        self._work[node].sent.remove(item_index)
        self._feed(node)
        if self._runs_last is not None and self._runs_last is not node:
            self._feed(self._runs_last)  # it may have waited for this

    def mark_test_pending(self, item: str) -> None:
        """Refused, as by other schedulers of xdist: a test that ended its worker is not run again."""
        raise NotImplementedError

    def remove_pending_tests_from_node(self, node: Worker, indices: Sequence[int]) -> None:
        """Answer to a request that is never made."""
        raise NotImplementedError

    def remove_node(self, node: Worker) -> str | None:
        """A worker has ended; what it has not begun goes back to the front.

        Returns:
            The test that it crashed in, which is not run again; None when it had nothing to do.

        Raises:
            KeyError: it never got as far as to collect.
        """
        work = self._work.pop(node)
        self._collected.pop(node, None)
        if node is self._runs_last:
            self._runs_last = None
        if left := [*work.sent[1:], *work.rest]:  # of one group: another is not begun before this one's rest is sent
            (self._last_queue if left[0] in self._last else self._queue).appendleft(deque(left))
        return self._collection[work.sent[0]] if work.sent and self._collection is not None else None

    def _begin(self) -> None:
        """Compare what the workers collected, form the groups, and give everybody one before anybody gets a second."""
        (first, collection), *others = self._collected.items()
        for node, other in others:
            if other != collection:
                self._give_up(node, collection, other, first.gateway.id)
        if self._given_up:
            return
        self._collection = collection
        keys = _keys(collection, self._groups())
        self._last = frozenset(index for index, key in enumerate(keys) if isinstance(key, int) and key <= LAST)
        for _, indices in groupby(range(len(collection)), key=keys.__getitem__):
            group = deque(index for index in indices if collection[index] not in self._finished)
            if group:
                (self._last_queue if group[0] in self._last else self._queue).append(group)
        for node, work in self._work.items():
            work.ready = node in self._collected
            if work.ready and not node.shutting_down and self._queue:
                work.rest = self._queue.popleft()
        self._collected.clear()

    def _feed(self, node: Worker) -> None:
        """See to it that a worker has enough to do, or knows that nothing comes; or that it waits."""
        if node.shutting_down:
            return
        work = self._work[node]
        news: list[int] = []
        while len(known := [*work.sent, *news]) < _ENOUGH and not self._must_wait(known):
            if not work.rest and not self._take_group(node, work):
                break
            news.append(work.rest.popleft())
        if news:
            work.sent += news
            node.send_runtest_some(news)
        if len(work.sent) < _ENOUGH and not self._must_wait(work.sent):
            node.shutdown()

    def _take_group(self, node: Worker, work: _Work) -> bool:
        """Give a worker its next group; False: there is none for it."""
        if self._queue:
            work.rest = self._queue.popleft()
        elif self._last_queue and self._runs_last in (None, node):
            self._runs_last = node
            work.rest = self._last_queue.popleft()
        return bool(work.rest)

    def _must_wait(self, known: Sequence[int]) -> bool:
        """Whether more, or a word that nothing comes, would begin a test too soon: the latest one that comes last."""
        if not known or known[-1] not in self._last:
            return False
        others = (index for work in self._work.values() for index in (*work.sent, *work.rest))
        return bool(self._queue) or any(index not in self._last for index in others)

    def _give_up(self, node: Worker, expected: Sequence[str], found: Sequence[str], expected_by: str) -> None:
        """Workers that would run different suites: nothing more is run."""
        from xdist.report import report_collection_diff  # type: ignore[import-untyped]

        why = report_collection_diff(list(expected), list(found), expected_by, node.gateway.id)
        self._refuse(node.gateway.id, why or "different tests were collected")
        self._given_up = True
        self._queue.clear()
        self._last_queue.clear()
        for work in self._work.values():
            work.rest.clear()


def _keys(collection: Sequence[str], groups: Sequence[int] | None) -> list[object]:
    """For each test what it has in common with its neighbours of the same group."""
    if groups is not None and len(groups) == len(collection):
        return [("free", index) if group == FREE else group for index, group in enumerate(groups)]
    return [_parameters(nodeid) or ("free", index) for index, nodeid in enumerate(collection)]


def _parameters(nodeid: str) -> str | None:
    _, bracket, rest = nodeid.partition("[")
    return rest if bracket else None


def make_scheduler(
    config: pytest.Config, log: Any, groups: Callable[[], Sequence[int] | None], finished: Iterable[str]
) -> GroupScheduling:
    """The scheduler of a run; the answer to ``pytest_xdist_make_scheduler``, for any ``--dist`` but ``each``."""
    import pytest
    from xdist.workermanage import parse_tx_spec_config  # type: ignore[import-untyped]

    def refuse(worker_id: str, why: str) -> None:
        log.llmbench(why)
        report = pytest.CollectReport(nodeid=worker_id, outcome="failed", longrepr=why, result=[])
        config.hook.pytest_collectreport(report=report)

    return GroupScheduling(config, len(parse_tx_spec_config(config)), groups, frozenset(finished), refuse)
