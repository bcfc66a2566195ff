"""xdist: what a worker is told, and how workers and controller end together."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pytest_llmbench.adapters.setup import Suite
from pytest_llmbench.runtime.lifeline import die_with_parent

WORKER_PIDS_KEY = pytest.StashKey[set[int]]()


def instruct(node: Any, suite: Suite) -> None:
    """Controller: tell a worker which run it belongs to and who started it."""
    node.workerinput["llmbench_run_id"] = suite.folder.run_id
    node.workerinput["llmbench_controller_pid"] = os.getpid()


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
