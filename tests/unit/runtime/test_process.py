"""Server processes, with small children that behave and misbehave. Afterwards nothing may be left of any."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llmbench.errors import ServerError
from pytest_llmbench.runtime import process as process_module
from pytest_llmbench.runtime.endings import oom_kills
from pytest_llmbench.runtime.process import ReportingProcess, ServerProcess, free_port, running_servers

PRELUDE = """
import json, os, signal, subprocess, sys, time
instructions = json.loads(sys.stdin.readline())
def ready(**report):
    os.write(int(sys.argv[-1]), json.dumps(report).encode() + b"\\n")
def sleep_in_a_child(**options):
    return subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, **options).pid
"""
WAIT_FOR_THE_END = "\nsys.stdin.read()\n"
Start = Callable[..., ReportingProcess]


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie nobody reaps has."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a child that runs this code; whatever the test does, it is ended."""
    started: list[ReportingProcess] = []

    def start(code: str, instructions: dict[str, Any] | None = None, *, prelude: str = PRELUDE) -> ReportingProcess:
        command = [sys.executable, "-I", "-S", "-c", prelude + textwrap.dedent(code)]
        started.append(ReportingProcess(command, instructions or {}, tmp_path / "logs" / "tiny"))
        return started[-1]

    yield start
    for server in started:
        server.stop()
        assert gone(server.pid)


def test_a_server_that_gets_ready(start: Start) -> None:
    server = start("ready(url='http://x', key=instructions['key'])" + WAIT_FOR_THE_END, {"key": "secret"})
    assert server.wait_ready(10) == {"url": "http://x", "key": "secret"}
    assert server.alive
    assert "secret" not in " ".join(psutil.Process(server.pid).cmdline())
    server.stop()
    assert gone(server.pid)


def test_the_end_of_standard_input_is_enough(start: Start, tmp_path: Path) -> None:
    """What a child is told when its parent is killed: it can put its things in order."""
    note = tmp_path / "note"
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); sys.stdin.read(); open(instructions['note'], 'x')"
    server = start(code, {"note": str(note)})
    server.wait_ready(10)
    server.stop()
    assert note.exists()


def test_a_server_that_ends_early(start: Start) -> None:
    server = start("print('no such model', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ServerError, match="exit status 3") as caught:
        server.wait_ready(10)
    assert caught.value.code == "server_start_failed"
    assert caught.value.evidence == {"exit_status": 3, "log_tail": "no such model"}
    assert "no such model" in caught.value.message
    assert gone(server.pid)


def test_a_server_that_ends_before_it_reads_its_instructions(start: Start) -> None:
    server = start("raise SystemExit(4)", {"padding": "x" * 20_000}, prelude="")
    with pytest.raises(ServerError, match="exit status 4"):
        server.wait_ready(10)


def test_a_server_that_is_killed_while_starting(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "oom_kills", lambda: None)
    server = start("os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(ServerError, match="killed by SIGKILL; perhaps the kernel ran out of memory") as caught:
        server.wait_ready(10)
    assert caught.value.evidence["exit_status"] == -signal.SIGKILL


def test_a_server_that_ends_in_the_middle_of_its_report(start: Start) -> None:
    server = start("os.write(int(sys.argv[-1]), b'{\"url\": ')")
    with pytest.raises(ServerError) as caught:
        server.wait_ready(10)
    assert caught.value.code == "server_start_failed"


def test_a_server_that_is_never_ready(start: Start) -> None:
    server = start("print('loading', file=sys.stderr, flush=True)" + WAIT_FOR_THE_END)
    began = time.monotonic()
    with pytest.raises(ServerError, match="loading") as caught:
        server.wait_ready(0.4)
    assert 0.3 < time.monotonic() - began < 3
    assert caught.value.code == "server_start_timeout"
    assert caught.value.evidence == {"timeout_seconds": 0.4, "log_tail": "loading"}
    assert gone(server.pid)


def test_a_server_that_will_not_be_asked_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_GRACE_SECONDS", 0.3)
    server = start("signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(60)")
    server.wait_ready(10)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began >= 0.3
    assert gone(server.pid)
    assert "killed by SIGKILL" in server.died("server_died", "it ended").message


def test_a_server_that_dies_in_use_is_described(start: Start) -> None:
    server = start("ready()" + WAIT_FOR_THE_END)
    server.wait_ready(10)
    os.kill(server.pid, signal.SIGABRT)
    error = server.died("server_died", "the server ended while it was being used")
    assert error.code == "server_died"
    assert error.evidence["exit_status"] == -signal.SIGABRT
    assert "killed by SIGABRT" in error.message
    assert "kernel" not in error.message
    assert not server.alive


def test_much_output_does_not_block(start: Start) -> None:
    server = start(
        """
        for stream in (sys.stderr, sys.stdout):
            for number in range(200):
                print(f"{number:04d}", "x" * 1018, file=stream)
            stream.flush()
        ready()
        sys.stdin.read()
        """
    )
    server.wait_ready(10)
    assert server.stderr_log.stat().st_size == 200 * 1024
    assert server.stdout_log.stat().st_size == 200 * 1024
    tail = server.log_tail()
    assert len(tail) <= 4096
    assert tail.splitlines()[-1].startswith("0199 ")
    server.stop()
    assert server.log_tail() == tail


def test_the_tail_is_that_of_the_last_start(start: Start) -> None:
    for word in ("first", "second"):
        server = start(f"print({word!r}, file=sys.stderr); sys.exit(1)")
        with pytest.raises(ServerError):
            server.wait_ready(10)
    assert server.log_tail() == "second"
    assert server.stderr_log.read_text() == "first\nsecond\n"


@pytest.mark.parametrize("dies_first", [False, True], ids=["running", "dead already"])
@pytest.mark.parametrize(
    "options",
    ["", "preexec_fn=os.setpgrp", "start_new_session=True"],
    ids=["same group", "group of its own", "session of its own"],
)
def test_what_the_server_started_ends_too(start: Start, options: str, dies_first: bool) -> None:
    ending = "sys.exit(0)" if dies_first else "sys.stdin.read()"
    server = start(f"ready(child=sleep_in_a_child({options})); {ending}")
    child: int = server.wait_ready(10)["child"]
    if dies_first:
        assert gone(server.pid)
    assert psutil.pid_exists(child)
    server.stop()
    assert gone(child)


def test_what_a_server_started_that_never_got_ready_ends_too(start: Start, tmp_path: Path) -> None:
    note = tmp_path / "child"
    server = start("open(instructions['note'], 'w').write(str(sleep_in_a_child()))", {"note": str(note)})
    with pytest.raises(ServerError):  # the child has inherited no pipe, so the end is seen
        server.wait_ready(10)
    assert gone(int(note.read_text()))


def test_stopping_again_signals_nobody(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """By then the number may belong to somebody else."""
    server = start("ready()" + WAIT_FOR_THE_END)
    server.wait_ready(10)
    server.stop()
    signalled: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *arguments: signalled.append(arguments))
    server.stop()
    assert signalled == []


@pytest.mark.parametrize(
    ("counts", "words", "evidence"),
    [
        ([0, 1], "killed by SIGKILL, by the kernel's out-of-memory killer; choose a smaller", True),
        ([3, 3], "killed by SIGKILL; the kernel's out-of-memory killer counts no kill", False),
    ],
    ids=["out of memory", "by hand"],
)
def test_the_kernels_own_counter_tells_who_killed(
    start: Start, monkeypatch: pytest.MonkeyPatch, counts: list[int], words: str, evidence: bool
) -> None:
    monkeypatch.setattr(process_module, "oom_kills", iter(counts).__next__)
    server = start("os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(ServerError, match=words) as caught:
        server.wait_ready(10)
    assert caught.value.evidence["out_of_memory"] is evidence


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the counter is Linux's")
def test_the_kernels_counter_is_a_number_here() -> None:
    kills = oom_kills()
    assert kills is None or kills >= 0


@pytest.mark.parametrize(
    "start_it",
    [ServerProcess, lambda command, log: ReportingProcess(command, {}, log)],
    ids=["foreign", "reporting"],
)
def test_a_program_that_does_not_exist(tmp_path: Path, start_it: Callable[[list[str], Path], ServerProcess]) -> None:
    before = psutil.Process().num_fds()
    with pytest.raises(ServerError, match=r"no-such-program can not be started: No such file") as caught:
        start_it([str(tmp_path / "no-such-program")], tmp_path / "tiny")
    assert caught.value.code == "server_start_failed"
    assert psutil.Process().num_fds() == before


def test_no_descriptor_is_left(start: Start) -> None:
    before = psutil.Process().num_fds()
    for code in ("ready()" + WAIT_FOR_THE_END, "sys.exit(1)"):
        server = start(code)
        try:
            server.wait_ready(10)
        except ServerError:
            continue
        server.stop()
    assert psutil.Process().num_fds() == before


# ---------------------------------------------------------------- programs that know nothing of us


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Run Python code as a foreign program; whatever the test does, it is ended."""
    started: list[ServerProcess] = []

    def run(code: str, *arguments: str, **options: Any) -> ServerProcess:
        command = [sys.executable, "-I", "-S", "-c", textwrap.dedent(code), *arguments]
        started.append(ServerProcess(command, tmp_path / "logs" / "foreign", **options))
        return started[-1]

    yield run
    for server in started:
        server.stop()
        assert gone(server.pid)


Run = Callable[..., ServerProcess]
SERVE = "import sys, time; open(sys.argv[1], 'x'); time.sleep(60)"


def test_a_program_is_waited_for_and_stopped(run: Run, tmp_path: Path) -> None:
    server = run(SERVE, str(tmp_path / "ready"))
    server.wait_until((tmp_path / "ready").exists, 10)
    assert psutil.Process(server.pid).cmdline()[-1] == str(tmp_path / "ready")  # it is the program, not its launcher
    identity = server.identity()
    assert identity is not None
    assert identity == server.identity()
    server.stop()
    assert gone(server.pid)
    assert server.identity() is None


def test_two_starts_have_two_identities(run: Run) -> None:
    assert run("import time; time.sleep(60)").identity() != run("import time; time.sleep(60)").identity()


def test_a_program_that_ends_while_it_is_waited_for(run: Run) -> None:
    server = run("import sys; sys.exit('error: invalid argument: --foo')")
    with pytest.raises(ServerError, match=r"exit status 1\): error: invalid argument: --foo") as caught:
        server.wait_until(lambda: False, 10)
    assert caught.value.code == "server_start_failed"


def test_a_program_that_logs_to_standard_output_is_quoted_too(run: Run) -> None:
    server = run("print('out of luck'); raise SystemExit(2)")
    assert server.ends_within(10)
    assert server.died("server_died", "it ended").evidence["log_tail"] == "out of luck"


def test_a_program_that_is_never_ready(run: Run) -> None:
    server = run("import time; time.sleep(60)")
    with pytest.raises(ServerError) as caught:
        server.wait_until(lambda: False, 0.2)
    assert caught.value.code == "server_start_timeout"
    assert gone(server.pid)


def test_an_error_of_the_check_is_not_swallowed(run: Run) -> None:
    def check() -> bool:
        raise ServerError("wrong_key", "no")

    with pytest.raises(ServerError, match="no"):
        run("import time; time.sleep(60)").wait_until(check, 10)


def test_a_program_gets_its_environment_and_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNWANTED", "1")
    code = "import os; print(os.environ.get('WANTED'), os.environ.get('UNWANTED'), os.getcwd(), sep='|')"
    server = run(code, environment={"WANTED": "yes", "UNWANTED": None}, cwd=tmp_path)
    assert server.ends_within(10)
    assert server.stdout_log.read_text() == f"yes|None|{tmp_path}\n"


def test_what_a_program_logged_is_found_for_this_start_only(run: Run) -> None:
    for word in ("first", "second"):
        server = run(f"print('{word} thing')")
        assert server.ends_within(10)
    assert server.logged("second thing")
    assert not server.logged("first")


def test_a_program_has_no_descriptor_of_ours(run: Run) -> None:
    code = "import os; print(sorted(int(fd) for fd in os.listdir('/dev/fd'))[3:])"
    server = run(code)
    assert server.ends_within(10)
    assert len(server.stdout_log.read_text().split(",")) == 1  # the one that lists the folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel for it, which only Linux does")
def test_a_killed_parent_takes_a_program_along(tmp_path: Path) -> None:
    parent = f"""
import time
from pathlib import Path
from pytest_llmbench.runtime.process import ServerProcess
server = ServerProcess(["sleep", "60"], Path({str(tmp_path / "log")!r}))
print(server.pid, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert psutil.Process(pid).name() == "sleep"
    process.kill()
    process.communicate()
    assert gone(pid)


# ---------------------------------------------------------------- from another thread

EXHAUSTED = ServerError("memory_exhausted", "it held too much; choose a smaller model", {"observed_bytes": 5})


def test_servers_are_known_from_start_to_stop(start: Start, run: Run, own_runtime_dir: Path) -> None:
    notes = own_runtime_dir / "servers"
    first, second = start(WAIT_FOR_THE_END), run("import time; time.sleep(60)")
    assert running_servers() == (first, second)
    assert len(list(notes.iterdir())) == 2
    assert second.name == Path(sys.executable).name
    first.stop()
    assert running_servers() == (second,)
    os.kill(second.pid, signal.SIGKILL)
    assert second.ends_within(5)
    assert running_servers() == (second,)  # it is still to be stopped
    second.stop()
    assert running_servers() == ()
    assert list(notes.iterdir()) == []


def test_what_could_not_be_started_is_not_known(tmp_path: Path, own_runtime_dir: Path) -> None:
    for program in (str(tmp_path / "no-such-program"), "null\0character"):
        with pytest.raises(ServerError, match="can not be started"):
            ServerProcess([program], tmp_path / "tiny")
    assert running_servers() == ()
    assert list((own_runtime_dir / "servers").iterdir()) == []


def test_a_server_without_a_note_serves_all_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMBENCH_RUNTIME_DIR", str(tmp_path / "file"))
    server = run("import time; time.sleep(60)")
    assert server.alive
    server.remember({server.pid})
    assert "no note of the server" in caplog.text


def test_a_server_that_is_ended_tells_why(run: Run) -> None:
    server = run(
        "import subprocess, sys; print('at work', file=sys.stderr, flush=True); subprocess.run(['sleep', '60'])"
    )
    until(lambda: server.log_tail() == "at work" and psutil.Process(server.pid).children())
    (child,) = psutil.Process(server.pid).children()
    assert server.end_because(EXHAUSTED)
    assert gone(server.pid)
    assert gone(child.pid)
    assert running_servers() == (server,)
    error = server.died("server_died", "the server ended while it was being used")
    assert (error.code, error.message) == (EXHAUSTED.code, EXHAUSTED.message)
    assert error.evidence == {"observed_bytes": 5, "log_tail": "at work"}
    assert EXHAUSTED.evidence == {"observed_bytes": 5}
    assert server.ended_because is EXHAUSTED
    assert running_servers() == ()


def test_a_server_that_is_ended_while_it_starts_tells_why(start: Start, run: Run) -> None:
    reporting, foreign = start(WAIT_FOR_THE_END), run("import time; time.sleep(60)")
    threading.Timer(0.1, reporting.end_because, [EXHAUSTED]).start()
    with pytest.raises(ServerError, match="it held too much"):
        reporting.wait_ready(10)
    with pytest.raises(ServerError, match="it held too much"):
        foreign.wait_until(lambda: foreign.end_because(EXHAUSTED) and False, 10)


def test_too_late_is_not_the_reason_where_there_is_another(run: Run) -> None:
    server = run("import time; time.sleep(60)")
    server.end_because(EXHAUSTED)
    assert server._too_slow(1).code == "memory_exhausted"


def test_a_check_that_fails_because_the_server_was_ended(run: Run) -> None:
    server = run("import time; time.sleep(60)")

    def check() -> bool:
        server.end_because(EXHAUSTED)
        raise ServerError("connection_lost", "no")

    with pytest.raises(ServerError, match="it held too much"):
        server.wait_until(check, 10)


def test_only_a_running_server_is_ended_and_only_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, ended, stopped = (run("import time; time.sleep(60)") for _ in range(3))
    os.kill(dead.pid, signal.SIGABRT)
    assert dead.ends_within(5)
    assert not dead.end_because(EXHAUSTED)
    assert "SIGABRT" in dead.died("server_died", "it ended").message
    assert ended.end_because(EXHAUSTED)
    assert not ended.end_because(ServerError("swapping", "later"))
    assert ended.died("server_died", "it ended").code == "memory_exhausted"
    stopped.stop()
    signalled: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *arguments: signalled.append(arguments))
    assert not stopped.end_because(EXHAUSTED)
    assert signalled == []
    assert "SIGTERM" in stopped.died("server_died", "it ended").message


def test_a_dead_server_keeps_its_number_until_it_is_stopped(run: Run) -> None:
    """Else the number could belong to somebody whom stopping it would kill."""
    server = run("pass")
    assert server.ends_within(5)
    assert not server.alive
    assert psutil.Process(server.pid).status() == psutil.STATUS_ZOMBIE
    server.stop()
    assert not psutil.pid_exists(server.pid)


def test_a_server_whose_status_somebody_took_is_signalled_no_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    server = run("pass")
    os.waitpid(server.pid, 0)
    assert not server.alive
    signalled: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *arguments: signalled.append(arguments))
    assert not server.end_because(EXHAUSTED)
    server.stop()
    assert signalled == []


def test_being_ended_interrupts_the_patience_of_stopping(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_GRACE_SECONDS", 60)
    server = start("signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(60)")
    server.wait_ready(10)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    assert server.end_because(EXHAUSTED)
    stopping.join(10)
    assert not stopping.is_alive()
    assert server.died("server_died", "it ended").code == "memory_exhausted"


def test_a_free_port_can_be_bound() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
