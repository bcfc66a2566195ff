"""Servers whose run was killed: each leaves a note while it runs, by which a later run finds what is left and ends it.

A server dies with its run where the kernel can be asked for that, but what it has started itself does not. A note names
the server by process number and start time, which no other process ever has both, and a random token that the server
and all it starts carry in their environment. Only what is recognised by one of these is ever ended.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from pytest_llmbench.errors import CellError
from pytest_llmbench.runtime.host import runtime_dir

logger = logging.getLogger(__name__)
TOKEN_VARIABLE = "LLMBENCH_SERVER"  # noqa: S105 -- it names processes and opens nothing
_TOKEN = re.compile(r"[0-9a-f]{32}")
_ROUNDS = 5  # a process may have started another one while it was being ended
_ENDING_SECONDS = 5.0
_OTHERS_SECONDS = 60.0  # how long another run may take to reap


@dataclass(frozen=True, slots=True)
class Reaped:
    """A process of a server that outlived its run. ``problem``: why it still runs; None where it was ended."""

    pid: int
    name: str  # of the process, as the system tells it
    server: str  # the program that was started, of which it is a part
    server_pid: int | None
    owner_pid: int  # the run that started it
    started_at: str  # when the server was started: ISO 8601, UTC
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Content:
    token: str
    boot: str  # which start of the machine the process numbers belong to …
    namespace: str  # … and which container
    owner_pid: int
    owner_start: str
    command: str
    started_at: str
    pid: int | None = None  # unknown until the server has been started
    start: str | None = None
    members: dict[str, str] = field(default_factory=dict)  # what the server has started: number → start time


class ServerNote:
    """The note of a server of this process, left before it is started. A note that can not be written is only logged:
    without it the server can still be measured and stopped.

    Args:
        command: the program's name, for people.
    """

    def __init__(self, command: str) -> None:
        pid = os.getpid()
        self._content = _Content(
            token=secrets.token_hex(16),
            boot=_boot(),
            namespace=_namespace(),
            owner_pid=pid,
            owner_start=start_mark(pid) or "",
            command=command,
            started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        self._path: Path | None = None
        try:
            folder = runtime_dir() / "servers"
            folder.mkdir(mode=0o700, exist_ok=True)
            self._path = folder / f"{self.token}.json"
        except (OSError, CellError) as exc:
            logger.warning("no note of the server %s can be left: %s", command, exc)
        self._write()

    @property
    def token(self) -> str:
        """What the server has to have in its environment as :data:`TOKEN_VARIABLE`."""
        return self._content.token

    def name_server(self, pid: int) -> None:
        """Add which process it is, once it has been started."""
        self._content = replace(self._content, pid=pid, start=start_mark(pid))
        self._write()

    def name_members(self, pids: Collection[int]) -> None:
        """Add what the server has started: a program may overwrite the environment it shows. Written if it is new."""
        marks = {str(pid): mark for pid in pids if pid != self._content.pid and (mark := start_mark(pid)) is not None}
        if marks != self._content.members:
            self._content = replace(self._content, members=marks)
            self._write()

    def end_carriers(self) -> list[str]:
        """End what the server has started, wherever it has gone; returns in words what is still there."""
        return [_in_words(one) for one in _end(self._content) if one.problem is not None]

    def remove(self) -> None:
        """Take the note away: the server is gone."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._path = None

    def _write(self) -> None:
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        try:
            new.write_text(json.dumps(asdict(self._content)), encoding="utf-8")
            new.replace(self._path)
        except OSError as exc:
            logger.warning("the note of the server %s can not be written: %s", self._content.command, exc)


def reap_orphans() -> list[Reaped]:
    """End what servers of runs that are gone have left behind, verified, and say what that was.

    Without a note of such a run this takes some ten microseconds. Two that reap at the same time do so one after the
    other, so the second one returns when nothing is left. Never raises for what a process or a note does.

    Raises:
        CellError: ``runtime_dir_unusable``.
    """
    folder = runtime_dir() / "servers"
    if not _abandoned(folder):
        return []
    try:
        with FileLock(folder / "reaping.lock", timeout=_OTHERS_SECONDS):
            return [reaped for path in _abandoned(folder) for reaped in _reap(path)]
    except (OSError, Timeout) as exc:
        logger.warning("what killed runs have left behind is not looked for: %s", exc)
        return []


def sentence(reaped: Sequence[Reaped]) -> str:
    """What was found, for the user; empty where nothing was."""
    parts = []
    for words, of in (
        ("ended what a killed run had left: ", [one for one in reaped if one.problem is None]),
        ("left by a killed run, and still there: ", [one for one in reaped if one.problem is not None]),
    ):
        if of:
            parts.append(words + ", ".join(map(_in_words, of)))
    return "; ".join(parts)


def start_mark(pid: int) -> str | None:
    """When a process was started, as this system counts; None where it has ended, if only its parent does not know."""
    seen = _look_at(pid)
    return seen.start if seen is not None else None


@dataclass(frozen=True, slots=True)
class _Seen:
    start: str
    parent: int


def _look_at(pid: int) -> _Seen | None:
    if not sys.platform.startswith("linux"):
        return _ask_psutil(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    facts = text.rpartition(")")[2].split()  # from the third on: the second, a name, may hold anything
    return _Seen(facts[19], int(facts[1])) if len(facts) > 19 and facts[0] not in "ZXx" else None


def _ask_psutil(pid: int) -> _Seen | None:
    try:
        process = psutil.Process(pid)
        has_ended = process.status() == psutil.STATUS_ZOMBIE
        return None if has_ended else _Seen(repr(process.create_time()), process.ppid())
    except (psutil.Error, OSError):
        return None


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _namespace() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 -- no path: "pid:[4026531836]"
    return ""


def _abandoned(folder: Path) -> list[Path]:
    """Notes that there is something to do about."""
    try:
        paths = [path for path in folder.iterdir() if path.suffix == ".json"]
    except OSError:  # no server was ever started
        return []
    return [path for path in paths if _is_abandoned(_read(path))]


def _is_abandoned(content: _Content | None) -> bool:
    """Whether nobody looks after the server any more. One in another container is not ours to judge."""
    if content is None or content.boot != _boot():
        return True
    return content.namespace == _namespace() and start_mark(content.owner_pid) != content.owner_start


def _reap(path: Path) -> list[Reaped]:
    content = _read(path)
    reaped = [] if content is None or content.boot != _boot() else _end(content)
    if all(one.problem is None for one in reaped):
        with suppress(OSError):
            path.unlink(missing_ok=True)
            path.with_suffix(".new").unlink(missing_ok=True)
    return reaped


def _read(path: Path) -> _Content | None:
    """A note; None where it says nothing that could be acted on."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or set(found) != {one.name for one in fields(_Content)}:
        return None
    kinds: dict[str, Any] = {"owner_pid": int, "pid": int | None, "start": str | None, "members": dict}
    is_sound = all(isinstance(value, kinds.get(name, str)) for name, value in found.items())
    return _Content(**found) if is_sound and _TOKEN.fullmatch(found["token"]) else None


def _end(content: _Content) -> list[Reaped]:
    """Kill what belongs to a note until nothing is left of it."""
    found: dict[int, Reaped] = {}
    for _ in range(_ROUNDS):
        members = _members(content)
        if not members:
            break
        for pid, start in members.items():
            found[pid] = _kill(pid, start, content)
        if not _are_gone(members, _ENDING_SECONDS) or all(found[pid].problem is not None for pid in members):
            break
    left = _members(content) if found else {}
    return [
        replace(one, problem=one.problem or "it does not end")
        if left.get(pid) is not None
        else replace(one, problem=None)
        for pid, one in found.items()
    ]


def _members(content: _Content) -> dict[int, str]:
    """The processes that certainly belong to a note, with their start times.

    The noted ones themselves; those that carry the token; and what descends from these in the server's session.
    """
    seen = {pid: one for pid in psutil.pids() if pid != os.getpid() and (one := _look_at(pid)) is not None}
    noted = {**content.members, str(content.pid): content.start}
    sure = {
        pid
        for pid, one in seen.items()
        if noted.get(str(pid)) == one.start
        or (not _is_older(one.start, content.start) and _carries(pid, content.token))
    }
    while new := {
        pid for pid, one in seen.items() if pid not in sure and one.parent in sure and _session(pid) == content.pid
    }:
        sure |= new
    return {pid: seen[pid].start for pid in sure}


def _is_older(start: str, server_start: str | None) -> bool:
    """Whether a process was there before the server, so that its environment need not be read, which is costly."""
    with suppress(ValueError):
        return server_start is not None and float(start) < float(server_start)
    return False


def _carries(pid: int, token: str) -> bool:
    with suppress(psutil.Error, OSError):  # it has ended, or is not ours to look at
        return psutil.Process(pid).environ().get(TOKEN_VARIABLE) == token
    return False


def _session(pid: int) -> int | None:
    with suppress(OSError):
        return os.getsid(pid)
    return None


def _kill(pid: int, start: str, content: _Content) -> Reaped:
    name, problem = "?", None
    try:
        process = psutil.Process(pid)
        name = process.name()
        if start_mark(pid) == start:
            process.kill()  # which makes sure itself that the number was not used again since
    except psutil.AccessDenied:
        problem = "it may not be signalled"
    except (psutil.Error, OSError):  # it has ended by itself
        pass
    return Reaped(pid, name, content.command, content.pid, content.owner_pid, content.started_at, problem)


def _are_gone(members: dict[int, str], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    waiting: Iterable[int] = members
    while waiting := [pid for pid in waiting if start_mark(pid) == members[pid]]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _in_words(one: Reaped) -> str:
    of = f" of {one.server}" if one.name != one.server else ""
    when = f", started at {one.started_at}" if one.started_at else ""
    why = f": {one.problem}" if one.problem is not None else ""
    return f"process {one.pid} ({one.name}{of}{when}){why}"
