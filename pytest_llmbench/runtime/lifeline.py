"""Dying with the parent: a child that outlives a killed parent would hold memory and a port for ever.

``python -m pytest_llmbench.runtime.lifeline PID MODULE …`` runs another module so.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(expected_parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends; exit now if the parent is gone already.

    Linux only. Elsewhere nothing happens, and a child has to watch a pipe that its parent holds.
    Call it from the process that is to die, whose parent must have forked it from a thread that lives on.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != expected_parent_pid:
        os._exit(1)


if __name__ == "__main__":
    import runpy

    die_with_parent(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
