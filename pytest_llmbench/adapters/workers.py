"""xdist: what a worker is told, what it tells and asks, and how workers and controller end together."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from pytest_llmbench.adapters.blocking import OwnDecisions
from pytest_llmbench.adapters.collection import cell_of
from pytest_llmbench.adapters.progress import tell
from pytest_llmbench.adapters.setup import SUITE_KEY, Suite
from pytest_llmbench.errors import RecordError
from pytest_llmbench.runtime.lifeline import die_with_parent

logger = logging.getLogger(__name__)
WORKER_PIDS_KEY = pytest.StashKey[set[int]]()
CHANNEL = "llmbench_channel"
_END = object()


def instruct(node: Any, suite: Suite) -> None:
    """Controller: tell a worker which run it belongs to and who started it, and listen to it."""
    node.workerinput["llmbench_run_id"] = suite.folder.run_id
    node.workerinput["llmbench_controller_pid"] = os.getpid()
    node.workerinput["llmbench_sends_requests"] = not node.gateway.spec.popen  # its disk may not be ours
    channel = node.workerinput[CHANNEL] = node.gateway.newchannel()
    channel.setcallback(_listener(node, channel, suite), endmarker=_END)


def _listener(node: Any, channel: Any, suite: Suite) -> Callable[[Any], None]:
    """Answer a worker; runs in the thread that receives from it, so it never waits."""

    def listen(message: Any) -> None:
        if message is _END:
            return
        try:  # an exception would close the channel without a word
            told = json.loads(message)
            if told["kind"] == "groups":
                suite.groups = told["groups"]
            elif told["kind"] == "say":
                tell(node.config, told["text"])
            elif told["kind"] == "request":
                suite.folder.append_request_of(node.gateway.id, told["line"])
            elif isinstance(suite.decisions, OwnDecisions):
                reason = suite.decisions.answer(told)
                if "number" in told:
                    answer = {"number": told["number"], "reason": reason.model_dump() if reason else None}
                    channel.send(json.dumps(answer))
            elif "number" in told:
                channel.send(json.dumps({"number": told["number"], "reason": None}))
        except RecordError as exc:
            suite.trouble = exc
        except Exception:
            logger.exception("worker %s can not be answered", node.gateway.id)

    return listen


def tell_groups(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Worker: tell which tests share a server, before xdist tells which tests there are."""
    workerinput = getattr(config, "workerinput", None)
    suite = config.stash.get(SUITE_KEY, None)
    if workerinput is None or suite is None:
        return
    numbers: dict[Any, int] = {}
    groups = []
    for item in items:
        cell = cell_of(item)
        groups.append(
            -1 if cell is None else numbers.setdefault((cell.profile == "stress", suite.spec(cell)), len(numbers))
        )
    try:
        workerinput[CHANNEL].send(json.dumps({"kind": "groups", "groups": groups}))
    except OSError as exc:
        logger.warning("the controller can not be told which cells share a server: %r", exc)


def say(config: pytest.Config, text: str) -> None:
    """Print a line where the user sees it: a worker has no terminal, so its controller does."""
    logger.info(text)
    workerinput = getattr(config, "workerinput", None)
    if workerinput is None:
        tell(config, text)
        return
    with suppress(OSError):
        workerinput[CHANNEL].send(json.dumps({"kind": "say", "text": text}))


def scheduler(config: pytest.Config, log: Any, suite: Suite) -> Any:
    """Controller: what hands out cells; it keeps those of a server together, and leaves out what is finished."""
    from pytest_llmbench.adapters.scheduler import make_scheduler

    return make_scheduler(
        config, log, lambda: suite.groups, suite.earlier.finished if suite.earlier is not None else ()
    )


def refuse_what_can_not_be_reported(config: pytest.Config) -> None:
    """Refuse to run every cell on every worker: a run has one record per cell.

    Raises:
        pytest.UsageError: ``--dist each``.
    """
    if getattr(config.option, "dist", "no") == "each" and not hasattr(config, "workerinput"):
        raise pytest.UsageError("--dist each runs every cell several times, and a run has one record per cell; use -n")


def settle_in(config: pytest.Config) -> None:
    """Worker: end when a killed controller ends. Only a worker it forked itself; a remote one has another parent."""
    workerinput = getattr(config, "workerinput", None)
    if workerinput is not None and workerinput["llmbench_controller_pid"] == os.getppid():
        die_with_parent(os.getppid())


def pid_on_this_host(node: Any) -> int | None:
    """The process of a worker we forked; None for one reached over ssh or a socket.

    xdist tells it nowhere, so it is read from execnet's pipe; without it a worker only ends later, not wrongly.
    """
    if not node.gateway.spec.popen:
        return None
    pid = getattr(getattr(getattr(node.gateway, "_io", None), "popen", None), "pid", None)
    return pid if isinstance(pid, int) else None
