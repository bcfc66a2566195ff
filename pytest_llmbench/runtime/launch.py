"""Becomes another program that dies with its parent.

Run as ``python -m pytest_llmbench.runtime.launch FD PARENT_PID PROGRAM …``. The pipe FD closes when the program has
taken over; where it can not, the reason is written to the pipe.
"""

from __future__ import annotations

import os
import sys

from pytest_llmbench.runtime.lifeline import die_with_parent


def main() -> int:
    """Take over, or say why not. Returns the exit status of a failure."""
    fd, parent_pid, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(fd, False)
    die_with_parent(parent_pid)  # the wish survives execve
    try:
        os.execvp(command[0], command)  # noqa: S606 -- a list we were given, no shell
    except OSError as exc:
        os.write(fd, (exc.strerror or str(exc)).encode())
    return 127


if __name__ == "__main__":
    sys.exit(main())
