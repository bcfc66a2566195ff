"""What is left of killed runs is ended, and nothing else: real processes that are, or only look like, such a rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from pytest_llmbench.runtime import orphans
from pytest_llmbench.runtime.orphans import TOKEN_VARIABLE, Reaped, ServerNote, reap_orphans, sentence, start_mark

TOKEN, OTHER_TOKEN = "0123456789abcdef" * 2, "f" * 32
Child = subprocess.Popen[bytes]
Spawn = Callable[..., Child]
# Starts a child, names it, and waits.
PARENT = """
import subprocess, sys
child = subprocess.Popen(["sleep", "60"], env=eval(sys.argv[1]), stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start processes that know nothing of us; afterwards none is left."""
    children: list[Child] = []

    def spawn(command: tuple[str, ...] = ("sleep", "60"), **options: Any) -> Child:
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, **options))
        return children[-1]

    yield spawn
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def folder(own_runtime_dir: Path) -> Path:
    folder = own_runtime_dir / "servers"
    folder.mkdir()
    return folder


def leave(folder: Path, **changes: Any) -> Path:
    """A note of a run that is gone."""
    content = orphans._Content(
        token=TOKEN,
        boot=orphans._boot(),
        namespace=orphans._namespace(),
        owner_pid=os.getpid(),
        owner_start="of another process with this number",
        command="llama-server",
        started_at="2026-01-02T03:04:05+00:00",
    )
    path = folder / f"{TOKEN}.json"
    path.write_text(json.dumps({**asdict(content), **changes}), encoding="utf-8")
    return path


def mark_of(child: Child) -> str:
    mark = start_mark(child.pid)
    assert mark is not None
    return mark


def carrying(token: str) -> dict[str, str]:
    return {**os.environ, TOKEN_VARIABLE: token}


def has_ended(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while start_mark(pid) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the server itself lives on, too")
def test_what_a_server_of_a_killed_run_has_started_is_ended(tmp_path: Path, own_runtime_dir: Path) -> None:
    """``kill -9`` of the run takes the server along, but not what that has started: the whole story."""
    owner_code = f"""
import sys, time
from pathlib import Path
from pytest_llmbench.runtime.process import ServerProcess
server = ServerProcess(["sh", "-c", "sleep 60 & echo $!; wait"], Path({str(tmp_path / "log")!r}))
while not (text := server.stdout_log.read_text()).endswith("\\n"):
    time.sleep(0.01)
print(server.pid, text, flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", owner_code], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    server_pid, child_pid = (int(word) for word in owner.stdout.readline().split())
    assert reap_orphans() == []
    assert start_mark(child_pid) is not None
    owner.kill()  # and nobody has taken its status yet: it is gone all the same
    assert has_ended(server_pid)
    assert start_mark(child_pid) is not None
    (reaped,) = reap_orphans()
    assert has_ended(child_pid)
    owner.communicate()
    assert (reaped.pid, reaped.name, reaped.server, reaped.problem) == (child_pid, "sleep", "sh", None)
    assert (reaped.server_pid, reaped.owner_pid) == (server_pid, owner.pid)
    assert sentence([reaped]).startswith(f"ended what a killed run had left: process {child_pid} (sleep of sh, started")
    assert not list((own_runtime_dir / "servers").glob("*.json"))
    assert reap_orphans() == []


class TestWhatBelongsToANote:
    def test_the_server_itself(self, folder: Path, spawn: Spawn) -> None:
        child = spawn()
        note = leave(folder, pid=child.pid, start=mark_of(child))
        assert [one.pid for one in reap_orphans()] == [child.pid]
        assert child.wait(5) == -signal.SIGKILL
        assert not note.exists()

    def test_what_carries_its_token_even_in_a_session_of_its_own(self, folder: Path, spawn: Spawn) -> None:
        """Also where the run was killed before it could write down which process the server is."""
        child = spawn(env=carrying(TOKEN), start_new_session=True)
        leave(folder)
        assert [one.pid for one in reap_orphans()] == [child.pid]
        assert child.wait(5) == -signal.SIGKILL

    def test_what_descends_from_it_in_its_session(self, folder: Path, spawn: Spawn) -> None:
        """Though it has no token: programs may clear their environment."""
        server = spawn((sys.executable, "-c", PARENT, "{}"), start_new_session=True)
        assert server.stdout is not None
        child_pid = int(server.stdout.readline())
        leave(folder, pid=server.pid, start=mark_of(server))
        assert {one.pid for one in reap_orphans()} == {server.pid, child_pid}
        assert has_ended(child_pid)

    def test_what_was_noted_as_started_by_it(self, folder: Path, spawn: Spawn) -> None:
        child = spawn()
        leave(folder, members={str(child.pid): mark_of(child)})
        assert [one.pid for one in reap_orphans()] == [child.pid]
        assert child.wait(5) == -signal.SIGKILL


class TestWhatDoesNot:
    def test_another_process_with_the_server_s_number(self, folder: Path, spawn: Spawn) -> None:
        child = spawn(start_new_session=True)
        note = leave(folder, pid=child.pid, start="1", members={str(child.pid): "2"})
        assert reap_orphans() == []
        assert child.poll() is None
        assert not note.exists()

    def test_another_session_with_the_server_s_number(self, folder: Path, spawn: Spawn) -> None:
        """Neither its leader, nor what that has started, nor what is left when the leader has ended."""
        leader = spawn((sys.executable, "-c", PARENT, "None"), start_new_session=True)
        assert leader.stdout is not None
        child_pid = int(leader.stdout.readline())
        try:
            leave(folder, pid=leader.pid, start="1")
            assert reap_orphans() == []
            assert leader.poll() is None
            leader.kill()
            leader.wait()
            assert os.getsid(child_pid) == leader.pid
            leave(folder, pid=leader.pid, start="1")
            assert reap_orphans() == []
            assert start_mark(child_pid) is not None
        finally:
            os.kill(child_pid, signal.SIGKILL)

    def test_a_descendant_elsewhere_that_carries_nothing(self, folder: Path, spawn: Spawn) -> None:
        server = spawn((sys.executable, "-c", PARENT, "{}"))
        assert server.stdout is not None
        child_pid = int(server.stdout.readline())
        try:
            leave(folder, pid=server.pid, start=mark_of(server))
            assert [one.pid for one in reap_orphans()] == [server.pid]
            assert start_mark(child_pid) is not None
        finally:
            os.kill(child_pid, signal.SIGKILL)

    @pytest.mark.parametrize("environment", [{}, {TOKEN_VARIABLE: OTHER_TOKEN}, {"OTHER": TOKEN}, {TOKEN_VARIABLE: ""}])
    def test_whoever_does_not_carry_the_token(self, folder: Path, spawn: Spawn, environment: dict[str, str]) -> None:
        child = spawn(env={**os.environ, **environment})
        leave(folder)
        assert reap_orphans() == []
        assert child.poll() is None

    def test_a_server_whose_run_lives(self, folder: Path, spawn: Spawn) -> None:
        child = spawn(env=carrying(TOKEN))
        note = leave(folder, owner_start=start_mark(os.getpid()), pid=child.pid, start=mark_of(child))
        assert reap_orphans() == []
        assert child.poll() is None
        assert note.exists()

    def test_a_server_in_another_container(self, folder: Path, spawn: Spawn) -> None:
        """Its numbers mean other processes there, so nobody here knows whether its run lives."""
        child = spawn(env=carrying(TOKEN))
        note = leave(folder, namespace="pid:[1]", pid=child.pid, start=mark_of(child))
        assert reap_orphans() == []
        assert child.poll() is None
        assert note.exists()

    def test_anything_before_the_machine_was_started(self, folder: Path, spawn: Spawn) -> None:
        child = spawn()
        same = {"owner_start": start_mark(os.getpid()), "pid": child.pid, "start": mark_of(child)}  # by chance
        note = leave(folder, boot="another", **same)
        assert reap_orphans() == []
        assert child.poll() is None
        assert not note.exists()

    def test_ourselves(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Somebody may start a run from what a server has started."""
        leave(folder, pid=os.getpid(), start=start_mark(os.getpid()))
        assert reap_orphans() == []


class TestNotes:
    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "null", "7", "{}", '{"token": ""}', "\0\xff", "[" * 100_000],
        ids=["empty", "torn", "list", "null", "number", "no keys", "few keys", "binary", "deep"],
    )
    def test_one_that_says_nothing_is_removed(self, folder: Path, text: str) -> None:
        path = folder / f"{TOKEN}.json"
        path.write_text(text, encoding="latin-1")
        assert reap_orphans() == []
        assert not path.exists()

    @pytest.mark.parametrize(
        "changes",
        [
            {"token": ""},
            {"token": "*"},
            {"token": None},
            {"members": []},
            {"pid": "7"},
            {"owner_pid": None},
            {"new": 1},
        ],
        ids=str,
    )
    def test_one_that_can_not_be_ours_names_nobody(self, folder: Path, spawn: Spawn, changes: dict[str, Any]) -> None:
        child = spawn(env={**os.environ, TOKEN_VARIABLE: ""})
        path = leave(folder, **{"pid": child.pid, "start": mark_of(child), **changes})
        assert reap_orphans() == []
        assert child.poll() is None
        assert not path.exists()

    def test_without_one_of_a_dead_run_no_process_is_looked_at(
        self, own_runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(psutil, "pids", lambda: 1 // 0)
        assert reap_orphans() == []
        note = ServerNote("llama-server")
        assert reap_orphans() == []
        note.remove()
        assert reap_orphans() == []

    def test_what_is_added_to_one(self, own_runtime_dir: Path, spawn: Spawn) -> None:
        server, child = spawn(), spawn()
        note = ServerNote("llama-server")
        note.name_server(server.pid)
        note.name_members({server.pid, child.pid, 2**30})
        (path,) = (own_runtime_dir / "servers").iterdir()
        content = json.loads(path.read_text(encoding="utf-8"))
        assert (content["token"], content["command"]) == (note.token, "llama-server")
        assert (content["owner_pid"], content["owner_start"]) == (os.getpid(), start_mark(os.getpid()))
        assert (content["pid"], content["start"]) == (server.pid, mark_of(server))
        assert content["members"] == {str(child.pid): mark_of(child)}
        before = path.stat()
        note.name_members({child.pid})
        assert path.stat() == before  # nothing new
        note.remove()
        note.name_members({server.pid})  # a look that came late
        assert list((own_runtime_dir / "servers").iterdir()) == []

    def test_a_full_disk_is_no_reason_to_fail(
        self, own_runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        ServerNote("llama-server").name_server(os.getpid())
        assert "No space left on device" in caplog.text


class TestTrouble:
    def test_a_process_that_may_not_be_signalled_is_reported(
        self, folder: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        child = spawn()

        def refuse(process: psutil.Process) -> None:
            raise psutil.AccessDenied(process.pid)

        monkeypatch.setattr(psutil.Process, "kill", refuse)
        monkeypatch.setattr(orphans, "_ENDING_SECONDS", 0.0)
        note = leave(folder, pid=child.pid, start=mark_of(child))
        (reaped,) = reap_orphans()
        assert reaped.problem == "it may not be signalled"
        assert child.poll() is None
        assert note.exists()  # the next run says so again
        assert sentence([reaped]) == (
            f"left by a killed run, and still there: process {child.pid} (sleep of llama-server, started at "
            "2026-01-02T03:04:05+00:00): it may not be signalled"
        )

    def test_a_process_that_does_not_end_is_reported(
        self, folder: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        child = spawn()
        monkeypatch.setattr(psutil.Process, "kill", lambda process: None)
        monkeypatch.setattr(orphans, "_ENDING_SECONDS", 0.0)
        leave(folder, pid=child.pid, start=mark_of(child))
        assert [one.problem for one in reap_orphans()] == ["it does not end"]

    def test_processes_vanish_while_they_are_looked_at(
        self, folder: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        child, ended = spawn(env=carrying(TOKEN)), spawn()
        ended.kill()
        ended.wait()
        there = psutil.pids

        def vanish(process: psutil.Process) -> dict[str, str]:
            raise psutil.NoSuchProcess(process.pid)

        monkeypatch.setattr(psutil, "pids", lambda: [*there(), ended.pid, 2**30])
        monkeypatch.setattr(psutil.Process, "environ", vanish)
        leave(folder, pid=ended.pid, start="1")
        assert reap_orphans() == []
        assert child.poll() is None

    def test_another_run_that_reaps_is_waited_for(
        self, folder: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        child = spawn()
        note = leave(folder, pid=child.pid, start=mark_of(child))
        monkeypatch.setattr(orphans, "_OTHERS_SECONDS", 0.0)
        with FileLock(folder / "reaping.lock"):
            assert reap_orphans() == []
        assert note.exists()
        assert "not looked for" in caplog.text

    def test_two_that_reap_at_once_report_a_process_once(self, folder: Path, spawn: Spawn) -> None:
        child = spawn()
        leave(folder, pid=child.pid, start=mark_of(child))
        found: list[list[Reaped]] = []
        threads = [threading.Thread(target=lambda: found.append(reap_orphans())) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert [one.pid for some in found for one in some] == [child.pid]


def test_nothing_is_said_of_nothing() -> None:
    assert sentence([]) == ""


def test_a_process_that_is_gone_has_no_start(spawn: Spawn) -> None:
    child = spawn()
    assert start_mark(child.pid) == mark_of(child)
    child.kill()
    assert has_ended(child.pid)  # a zombie: nobody has taken its status
    assert child.returncode is None
    assert start_mark(2**30) is None
