"""xdist: what a worker is told, what it tells and asks, and how workers and controller end together."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pytest_llmbench.adapters.blocking import OwnDecisions
from pytest_llmbench.adapters.channel import CHANNEL
from pytest_llmbench.adapters.collection import cell_of
from pytest_llmbench.adapters.progress import tell
from pytest_llmbench.adapters.scheduler import FREE, LAST
from pytest_llmbench.adapters.state import SUITE_KEY, Suite
from pytest_llmbench.core.records import cell_from
from pytest_llmbench.core.stress_selection import STRESS
from pytest_llmbench.errors import RecordError
from pytest_llmbench.runtime.lifeline import die_with_parent
from pytest_llmbench.runtime.orphans import reap_orphans, sentence

logger = logging.getLogger(__name__)
WORKER_PIDS_KEY = pytest.StashKey[set[int]]()
_END = object()


def instruct(node: Any, suite: Suite) -> None:
    """Controller: tell a worker which run it belongs to and who started it, and listen to it."""
    node.workerinput["llmbench_run_id"] = suite.folder.run_id
    node.workerinput["llmbench_controller_pid"] = os.getpid()
    shares_our_folder = _shares_our_folder(node.gateway.spec)
    node.workerinput["llmbench_is_remote"] = not shares_our_folder
    node.workerinput["llmbench_output_dir"] = str(suite.folder.output_dir) if shares_our_folder else None
    channel = node.workerinput[CHANNEL] = node.gateway.newchannel()
    channel.setcallback(_listener(node, channel, suite), endmarker=_END)


def _shares_our_folder(spec: Any) -> bool:
    """Whether a worker writes where we do; a popen may be by way of another host, or in another folder."""
    return bool(spec.popen) and not spec.via and not spec.chdir


def _listener(node: Any, channel: Any, suite: Suite) -> Callable[[Any], None]:
    """Answer a worker; runs in the thread that receives from it, so it never waits."""

    def listen(message: Any) -> None:
        if message is _END:
            return
        try:  # an exception would close the channel without a word
            told, answer = json.loads(message), None
            try:
                answer = _take(told, node, suite)
            finally:
                if "number" in told:  # whoever asks waits
                    channel.send(json.dumps({"number": told["number"], "answer": answer}))
        except RecordError as exc:
            suite.trouble = exc
        except Exception:
            logger.exception("worker %s can not be answered", node.gateway.id)

    return listen


def _take(told: dict[str, Any], node: Any, suite: Suite) -> Any:
    """Do what a worker's message is for; returns the answer where it is a question."""
    match told["kind"]:
        case "groups":
            suite.groups = told["groups"]
        case "began":
            suite.began[told["nodeid"]] = told
        case "say":
            tell(node.config, told["text"])
        case "line":
            suite.folder.append_line_of(node.gateway.id, told["table"], told["line"])
        case "sensors":
            for line in suite.note_sensors(told["host"], told["sensors"]):
                tell(node.config, line)
        case "learn":
            suite.decisions.learn(cell_from(json.loads(told["record"]), "a worker's record"))
        case "why" if isinstance(suite.decisions, OwnDecisions):
            return suite.decisions.answer(told)
    return None


def tell_groups(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Worker: tell which tests share a server, before xdist tells which tests there are."""
    suite = config.stash.get(SUITE_KEY, None)
    if suite is None or suite.controller is None:
        return
    numbers: dict[Any, int] = {}
    groups = []
    for item in items:
        cell = cell_of(item)
        if cell is None:
            groups.append(FREE)
            continue
        is_last = cell.profile == STRESS
        number = numbers.setdefault((is_last, suite.spec(cell)), len(numbers))
        groups.append(LAST - number if is_last else number)
    suite.controller.tell("groups", groups=groups)


def say(config: pytest.Config, suite: Suite, text: str) -> None:
    """Print a line where the user sees it: a worker has no terminal, so its controller does."""
    logger.info(text)
    if suite.controller is not None:
        suite.controller.tell("say", text=text)
    else:
        tell(config, text)


def tell_sensors(config: pytest.Config, suite: Suite, sensors: dict[str, Any]) -> None:
    """Have it noted, and said once per machine, what its sensors do not tell."""
    if suite.controller is not None:
        suite.controller.tell("sensors", host=suite.host, sensors=sensors)
        return
    for line in suite.note_sensors(suite.host, sensors):
        tell(config, line)


def clean_up_after(node: Any) -> None:
    """Controller: end what a crashed worker of this host has left; its replacement starts servers of its own."""
    if node.gateway.spec.popen and not node.gateway.spec.via and (reaped := sentence(reap_orphans())):
        tell(node.config, reaped)


def scheduler(config: pytest.Config, log: Any, suite: Suite) -> Any:
    """Controller: what hands out cells; it keeps those of a server together, and leaves out what is finished."""
    from pytest_llmbench.adapters.scheduler import make_scheduler

    return make_scheduler(
        config, log, lambda: suite.groups, suite.earlier.finished if suite.earlier is not None else ()
    )


def refuse_what_can_not_be_reported(config: pytest.Config) -> None:
    """Refuse what xdist would not distribute as it was meant.

    Raises:
        pytest.UsageError: ``--dist each``; ``--tx`` without ``-d``; a socket server that is to serve two workers.
    """
    dist = getattr(config.option, "dist", None)
    if dist is None or hasattr(config, "workerinput"):
        return
    if dist == "each":
        raise pytest.UsageError("--dist each runs every cell several times, and a run has one record per cell; use -n")
    specs: list[str] = config.option.tx
    if specs and dist == "no":
        raise pytest.UsageError("--tx alone distributes nothing, everything would run here; add -d")
    sockets = [spec.partition("*")[2] or spec for spec in specs if "socket=" in spec and "popen" not in spec]
    twice = any(spec.partition("*")[0] not in {"", "1"} for spec in specs if "*" in spec and "*socket=" in spec)
    if twice or len(set(sockets)) < len(sockets):
        raise pytest.UsageError("a socket server serves one worker at a time; start one per worker, each on its port")


def sendable(data: Any) -> Any:
    """The same with strings that execnet can send: tests quote models, and these may answer half a character."""
    if isinstance(data, str):
        return data.encode("utf-8", "backslashreplace").decode()
    if isinstance(data, dict):
        return {key: sendable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(map(sendable, data))
    return data


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
