"""What a process tree occupies: real children that allocate known amounts, fake trees of ``/proc``, fake readers."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pytest_llmbench.telemetry import process as process_module
from pytest_llmbench.telemetry.process import MemoryWatch, PeakMemory
from pytest_llmbench.telemetry.process_tree import ProcessTree, ProcfsReader, PsutilReader, Usage
from pytest_llmbench.telemetry.ration import Ration

MIB = 2**20
PRELUDE = """
import mmap, os, sys
def anonymous(mib):
    memory = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for i in range(0, mib << 20, 4096): memory[i] = 1
    return memory
def mapped(path):
    with open(path, 'rb') as file: memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sum(memory[i] for i in range(0, len(memory), 4096))
    return memory
"""
# A line of standard input is code to run; its end is the child's.
EPILOGUE = """
print('ready', flush=True)
for line in sys.stdin:
    exec(line)
    print('done', flush=True)
"""
Child = subprocess.Popen[bytes]
Start = Callable[[str], Child]
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells PSS")


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("memory of")]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is due at every sample, whatever it costs."""
    for name in ("_SAMPLE_SHARE", "_TREE_SHARE", "_READING_SHARE", "_DEVICE_SHARE"):
        monkeypatch.setattr(process_module, name, 1e9)
    for name in ("_TREE_SECONDS", "_DEVICE_SECONDS"):
        monkeypatch.setattr(process_module, name, 0.0)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a child that runs this code, and wait until it has."""
    children: list[Child] = []

    def start(code: str) -> Child:
        command = [sys.executable, "-I", "-S", "-c", f"{PRELUDE}\n{code}\n{EPILOGUE}"]
        children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert _line(children[-1]) == b"ready\n"
        return children[-1]

    yield start
    for child in children:
        child.communicate()  # also waits for grandchildren, which hold its standard output


def tell(child: Child, code: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{code}\n".encode())
    child.stdin.flush()
    assert _line(child) == b"done\n"


def _line(child: Child) -> bytes:
    assert child.stdout is not None
    return child.stdout.readline()


def watch_once(pid: int) -> PeakMemory:
    watch = MemoryWatch(pid)
    watch.start()
    peak = watch.stop()
    assert peak is not None
    return peak


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


def next_sample(watch: MemoryWatch) -> Usage:
    """A sample that began after this call; the readings beside the one before are complete then."""
    for _ in range(2):
        before = watch.current()
        until(lambda before=before: watch.current() is not before)  # type: ignore[misc]
    now = watch.current()
    assert now is not None
    return now


def backed_by_files(peak: PeakMemory) -> int:
    """A file in a temporary folder that lies in memory counts as shared memory."""
    assert peak.file_bytes is not None
    assert peak.shmem_bytes is not None
    return peak.file_bytes + peak.shmem_bytes


@linux_only
class TestRealProcesses:
    def test_anonymous_memory(self, start: Start) -> None:
        bare, peak = watch_once(start("").pid), watch_once(start("memory = anonymous(64)").pid)
        assert peak.source == "pss"
        assert peak.anonymous_bytes is not None
        assert bare.anonymous_bytes is not None
        assert peak.anonymous_bytes - bare.anonymous_bytes == pytest.approx(64 * MIB, abs=MIB)
        assert peak.anonymous_bytes + backed_by_files(peak) == pytest.approx(peak.peak_pss_bytes, abs=8192)
        assert 64 * MIB < peak.peak_pss_bytes < 84 * MIB  # the interpreter is the rest
        assert peak.peak_rss_bytes >= peak.peak_pss_bytes
        assert peak.swap_bytes is not None
        assert peak.device_bytes is None
        assert peak.cpu_seconds > 0

    def test_a_mapped_file_counts_half_while_another_process_maps_it(self, start: Start, tmp_path: Path) -> None:
        path = tmp_path / "model"
        path.write_bytes(b"x" * (32 * MIB))
        code = f"memory = mapped({str(path)!r})"
        pid = start(code).pid
        alone = watch_once(pid)
        start(code)
        shared = watch_once(pid)
        assert backed_by_files(alone) >= 32 * MIB
        assert backed_by_files(alone) - backed_by_files(shared) == pytest.approx(16 * MIB, abs=3 * MIB)
        assert shared.peak_rss_bytes == pytest.approx(alone.peak_rss_bytes, abs=8 * MIB)  # the counter is not exact

    def test_a_file_mapped_twice_within_the_tree_counts_once(self, start: Start, tmp_path: Path) -> None:
        path = tmp_path / "model"
        path.write_bytes(b"x" * (32 * MIB))
        fork = "ours, theirs = os.pipe()\nend, held = os.pipe()\nparent = os.fork()"
        work = f"memory = mapped({str(path)!r})"
        # Only the parent may say that it is ready, or the child would while the parent has not mapped all of it yet.
        wait = "if parent: os.read(ours, 1)\nelse: os.close(held); os.write(theirs, b'x'); os.read(end, 1)"
        peak = watch_once(start(f"{fork}\n{work}\n{wait}").pid)
        assert 32 * MIB <= backed_by_files(peak) < 48 * MIB
        assert peak.peak_rss_bytes > 64 * MIB

    @pytest.mark.usefixtures("unhurried")
    def test_grandchildren_count_even_as_orphans(self, start: Start) -> None:
        fork = "ours, theirs = os.pipe()\nancestor = os.fork() or os.fork()"
        work = "if not ancestor: memory = anonymous(48); os.write(theirs, b'xx')"
        child = start(f"{fork}\n{work}\nelse: os.read(ours, 1)")
        (middle,) = psutil.Process(child.pid).children()
        (last,) = middle.children()
        watch = MemoryWatch(child.pid, interval_seconds=0.01)
        watch.start()
        assert next_sample(watch).total_bytes > 48 * MIB
        tree = ProcessTree(child.pid)
        tree.search()
        assert set(tree.pids) == {child.pid, middle.pid, last.pid}
        middle.kill()
        until(lambda: last.ppid() != middle.pid)
        assert next_sample(watch).total_bytes > 48 * MIB
        assert len(tree.samples()) == 2
        assert set(tree.pids) == {child.pid, last.pid}
        peak = watch.stop()
        assert peak is not None
        assert peak.anonymous_bytes is not None
        assert peak.anonymous_bytes > 48 * MIB

    @pytest.mark.usefixtures("unhurried")
    def test_a_peak_in_between(self, start: Start) -> None:
        child = start("")
        watch = MemoryWatch(child.pid, interval_seconds=0.01)
        watch.start()
        before = next_sample(watch).total_bytes
        tell(child, "memory = anonymous(48)")
        assert next_sample(watch).total_bytes - before == pytest.approx(48 * MIB, abs=8 * MIB)
        tell(child, "memory.close()")
        assert next_sample(watch).total_bytes - before < 8 * MIB
        peak = watch.stop()
        assert peak is not None
        assert peak.source == "pss"
        assert peak.anonymous_bytes is not None
        assert peak.anonymous_bytes > 48 * MIB

    def test_what_comes_and_goes_between_two_samples_is_in_the_upper_bound(self, start: Start) -> None:
        child = start("")
        watch = MemoryWatch(child.pid, interval_seconds=60)
        watch.start()
        until(watch.current)
        tell(child, "memory = anonymous(48); memory.close()")
        peak = watch.stop()
        assert peak is not None
        assert peak.peak_pss_bytes < 32 * MIB
        assert peak.peak_rss_bytes > 48 * MIB

    @pytest.mark.usefixtures("unhurried")
    def test_a_server_that_dies_leaves_what_was_seen(self, start: Start) -> None:
        child = start("memory = anonymous(32)")
        watch = MemoryWatch(child.pid, interval_seconds=0.01)
        watch.start()
        next_sample(watch)
        child.kill()
        until(lambda: watch.current() is None)
        peak = watch.stop()
        assert peak is not None
        assert peak.peak_pss_bytes > 32 * MIB
        assert peak.samples >= 2

    def test_a_server_that_was_never_there(self, start: Start) -> None:
        child = start("")
        child.communicate()
        watch = MemoryWatch(child.pid)
        watch.start()
        assert watch.current() is None
        assert watch.stop() is None

    def test_without_the_kernel_s_pss(self, start: Start) -> None:
        pid = start("memory = anonymous(32)\nos.fork()").pid
        watch = MemoryWatch(pid, reader=PsutilReader())
        watch.start()
        peak = watch.stop()
        assert peak is not None
        assert peak.source == "rss"
        assert peak.peak_pss_bytes > 64 * MIB  # twice the same pages
        assert (peak.anonymous_bytes, peak.file_bytes, peak.swap_bytes) == (None, None, None)
        assert PsutilReader().began(pid) == psutil.Process(pid).create_time()


def test_psutil_has_no_answer_for_a_process_that_is_gone() -> None:
    reader = PsutilReader()
    unused = 2**31 - 1
    assert reader.began(unused) is None
    assert reader.sample(unused) is None
    assert reader.descendants({unused}) == set()


class FakeProc:
    """A tree of files as in ``/proc``; sizes are in KiB, as there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def process(self, pid: int, rss: int, *, parent: int = 1, began: int = 100, **rollup: int) -> None:
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        fields = ["S", str(parent), *["0"] * 17, str(began), "0"]
        (folder / "stat").write_text(f"{pid} (a) b (c 7) {' '.join(fields)}\n", encoding="ascii")
        sizes = {"VmHWM": 2 * rss, "VmRSS": rss, "RssAnon": rss - 3, "RssFile": 2, "RssShmem": 1, "VmSwap": 5}
        self.write(folder / "status", {"Threads": 3, **sizes})
        if rollup:
            self.write(folder / "smaps_rollup", rollup)

    def write(self, path: Path, sizes: dict[str, int]) -> None:
        path.write_text("".join(f"{name}:\t{size} kB\n" for name, size in sizes.items()), encoding="ascii")

    def threads(self, pid: int, **children: str) -> None:
        for name, text in children.items():
            folder = self.root / str(pid) / "task" / name.lstrip("t")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "children").write_text(text, encoding="ascii")

    def watch(self, pid: int) -> PeakMemory | None:
        watch = MemoryWatch(pid, reader=ProcfsReader(self.root))
        watch.start()
        return watch.stop()


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


class TestProcfs:
    def test_a_peak_in_all_its_parts(self, proc: FakeProc) -> None:
        proc.process(7, 1000, Pss=800, Pss_Anon=500, Pss_File=250, Pss_Shmem=50, SwapPss=4)
        peak = proc.watch(7)
        assert peak is not None
        assert (peak.peak_pss_bytes, peak.source) == (800 * 1024, "pss")
        assert (peak.anonymous_bytes, peak.file_bytes, peak.shmem_bytes) == (500 * 1024, 250 * 1024, 50 * 1024)
        assert (peak.swap_bytes, peak.peak_rss_bytes) == (4 * 1024, 2000 * 1024)

    def test_an_old_kernel_does_not_tell_the_parts(self, proc: FakeProc) -> None:
        proc.process(7, 1000, Pss=800)
        peak = proc.watch(7)
        assert peak is not None
        assert (peak.peak_pss_bytes, peak.anonymous_bytes, peak.swap_bytes) == (800 * 1024, None, 5 * 1024)

    def test_where_pss_can_not_be_read_of_one_the_sum_is_called_rss(self, proc: FakeProc) -> None:
        proc.process(7, 1000, Pss=800, Pss_Anon=800, Pss_File=0, Pss_Shmem=0, SwapPss=0)
        proc.process(8, 300, parent=7)
        proc.threads(7, t7="8 ")
        peak = proc.watch(7)
        assert peak is not None
        assert (peak.peak_pss_bytes, peak.source) == (1100 * 1024, "rss")
        assert peak.anonymous_bytes == (800 + 297) * 1024

    def test_children_of_every_thread(self, proc: FakeProc) -> None:
        proc.threads(7, t7="8 9 ", t70="10 ")
        proc.threads(9, t9="11 ")
        assert ProcfsReader(proc.root).descendants({7}) == {8, 9, 10, 11}
        assert ProcfsReader(proc.root).descendants({7, 8, 9}) == {10, 11}

    def test_children_where_the_kernel_keeps_no_list(self, proc: FakeProc) -> None:
        for pid, parent in ((7, 1), (8, 7), (9, 8), (10, 1)):
            proc.process(pid, 100, parent=parent)
        assert ProcfsReader(proc.root).descendants({7}) == {8, 9}

    @pytest.mark.usefixtures("unhurried")
    def test_another_process_of_the_same_number_is_not_counted(self, proc: FakeProc) -> None:
        proc.process(7, 1000, Pss=800)
        watch = MemoryWatch(7, interval_seconds=0.01, reader=ProcfsReader(proc.root))
        watch.start()
        next_sample(watch)
        (proc.root / "7" / "status").unlink()  # it ends, and the number comes back
        until(lambda: watch.current() is None)
        proc.process(7, 9000, began=200, Pss=9000)
        peak = watch.stop()
        assert peak is not None
        assert peak.peak_pss_bytes == 800 * 1024

    def test_a_child_s_number_that_is_used_again(self, proc: FakeProc) -> None:
        proc.process(7, 1000)
        proc.process(8, 500, parent=7)
        tree = ProcessTree(7, ProcfsReader(proc.root))
        tree.search()
        proc.process(8, 600, began=101)
        total = tree.sample()
        assert total is not None
        assert total.total_bytes == 1000 * 1024
        assert tree.pids == (7,)

    @pytest.mark.parametrize("text", ["", "7 (a", "7 (a) S 1", "VmRSS: many kB", "VmRSS:\t5", "VmRSS: 5 MB"], ids=repr)
    def test_files_that_say_nothing(self, proc: FakeProc, text: str) -> None:
        proc.process(7, 1000)
        for name in ("stat", "status", "smaps_rollup"):
            (proc.root / "7" / name).write_text(text, encoding="ascii")
        reader = ProcfsReader(proc.root)
        assert (reader.began(7), reader.sample(7), reader.reading(7)) == (None, None, None)
        assert reader.descendants({7}) == set()
        assert proc.watch(7) is None


class FakeReader:
    """One process whose RSS is given, sample by sample, and whose PSS is half of it."""

    def __init__(self, *rss_bytes: int, swap_bytes: tuple[int, ...] = (0,), reading_seconds: float = 0) -> None:
        self._sizes = itertools.chain(rss_bytes, itertools.repeat(rss_bytes[-1]))
        self._swaps = itertools.chain(swap_bytes, itertools.repeat(swap_bytes[-1]))
        self._reading_seconds = reading_seconds
        self._rss = self._swap = 0
        self.samples = self.readings = 0

    def began(self, pid: int) -> float | None:
        return 1.0

    def descendants(self, pids: Collection[int]) -> set[int]:
        return set()

    def sample(self, pid: int) -> Usage | None:
        self.samples += 1
        self._rss, self._swap = next(self._sizes), next(self._swaps)
        return Usage(self._rss, None, None, None, self._swap, self._rss, is_pss=False)

    def reading(self, pid: int) -> Usage | None:
        self.readings += 1
        end = time.thread_time() + self._reading_seconds
        while time.thread_time() < end:
            pass
        return Usage(self._rss // 2, None, None, None, self._swap, self._rss, is_pss=True)


def readings_in(reader: FakeReader, samples: int) -> tuple[int, PeakMemory]:
    """How often PSS was read in so many samples before the last, and the outcome."""
    watch = MemoryWatch(7, interval_seconds=0.002, reader=reader)
    watch.start()
    until(lambda: reader.samples > samples)
    peak = watch.stop()
    assert peak is not None
    assert peak.readings == reader.readings
    assert peak.samples == reader.samples
    return reader.readings - 1, peak


class TestCost:
    @pytest.mark.usefixtures("unhurried")
    def test_pss_is_not_read_while_nothing_changes(self) -> None:
        assert readings_in(FakeReader(1000 * MIB, 1009 * MIB, 991 * MIB, 1000 * MIB), 20)[0] == 1

    @pytest.mark.usefixtures("unhurried")
    def test_pss_is_read_when_the_rss_has_grown(self) -> None:
        count, peak = readings_in(FakeReader(1000 * MIB, 1011 * MIB, 1012 * MIB, 1100 * MIB), 20)
        assert count == 3
        assert peak.peak_pss_bytes == 550 * MIB

    @pytest.mark.usefixtures("unhurried")
    def test_pss_is_not_read_where_it_can_not_be_a_new_peak(self) -> None:
        assert readings_in(FakeReader(1000 * MIB, 400 * MIB, 300 * MIB, 450 * MIB), 20)[0] == 1

    @pytest.mark.usefixtures("unhurried")
    def test_what_is_swapped_out_is_noticed_though_the_rss_falls(self) -> None:
        reader = FakeReader(1000 * MIB, 400 * MIB, 1000 * MIB, swap_bytes=(0, 500 * MIB, 0))
        count, peak = readings_in(reader, 20)
        assert count == 3
        assert peak.swap_bytes == 500 * MIB

    def test_a_costly_reading_is_not_soon_repeated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """5 ms at 0.2 % of a core: not again for 2.5 s, however the memory grows."""
        monkeypatch.setattr(process_module, "_SAMPLE_SHARE", 1e9)
        reader = FakeReader(*(MIB << i for i in range(30)), reading_seconds=0.005)
        assert readings_in(reader, 10)[0] == 1

    def test_costly_samples_are_taken_less_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ration = Ration(0.001, 0.25)
        clock = iter([1.0, 1.0004])
        monkeypatch.setattr(time, "thread_time", lambda: next(clock))
        monkeypatch.setattr(time, "monotonic", lambda: 100.0)
        assert ration.due()
        with ration.spent():
            pass
        assert not ration.due()
        assert ration.seconds_left() == pytest.approx(0.4)

    @pytest.mark.usefixtures("unhurried")
    def test_where_there_is_only_rss_every_sample_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reader = FakeReader(1000 * MIB, 1001 * MIB, 1004 * MIB, 1000 * MIB)
        monkeypatch.setattr(reader, "reading", lambda pid: Usage(1000 * MIB, None, None, None, 0, 0, is_pss=False))
        watch = MemoryWatch(7, interval_seconds=0.002, reader=reader)
        watch.start()
        until(lambda: reader.samples > 5)
        peak = watch.stop()
        assert peak is not None
        assert (peak.peak_pss_bytes, peak.source, peak.readings) == (1004 * MIB, "rss", 2)


class TestTheThread:
    def test_is_started_once_and_stopped_as_often_as_one_likes(self) -> None:
        watch = MemoryWatch(7, reader=FakeReader(MIB))
        assert watch.stop() is None
        watch = MemoryWatch(7, reader=FakeReader(MIB))
        watch.start()
        watch.start()
        assert [thread.name for thread in threading.enumerate()].count("memory of 7") == 1
        assert watch.stop() == watch.stop()

    def test_a_short_watch_waits_for_no_interval(self) -> None:
        began = time.monotonic()
        watch = MemoryWatch(7, interval_seconds=60, reader=FakeReader(MIB))
        watch.start()
        until(watch.current)
        peak = watch.stop()
        assert time.monotonic() - began < 5
        assert peak is not None
        assert peak.samples == 2

    def test_an_error_ends_the_watch_and_nothing_else(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        reader = FakeReader(MIB)
        watch = MemoryWatch(7, interval_seconds=0.002, reader=reader)
        watch.start()
        until(lambda: reader.samples > 2)
        monkeypatch.setattr(reader, "sample", lambda pid: 1 // 0)
        until(lambda: watch.current() is None)
        peak = watch.stop()
        assert peak is not None
        assert peak.peak_pss_bytes == MIB // 2
        assert "the memory of process 7 is no longer watched" in caplog.text

    def test_a_system_that_does_not_answer_holds_nobody_up(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(process_module, "_JOIN_SECONDS", 0.05)
        reader, answer = FakeReader(MIB), threading.Event()
        monkeypatch.setattr(reader, "sample", lambda pid: answer.wait(5) and None)
        watch = MemoryWatch(7, reader=reader)
        watch.start()
        assert watch.stop() is None
        assert "takes over 0.05 s to read" in caplog.text
        answer.set()
        assert watch._thread is not None
        watch._thread.join(5)


class NvmlError(Exception):
    """The driver's own error."""


class Driver(SimpleNamespace):
    """As much of the module ``pynvml`` as is used: GPUs are lists of (process number, bytes), None does not tell."""

    NVMLError = NvmlError

    def __init__(self, *gpus: list[tuple[int, int | None]] | None) -> None:
        super().__init__(gpus=gpus, opened=0)

    def nvmlInit(self) -> None:  # noqa: N802 -- the module's names
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, index: int) -> list[SimpleNamespace]:  # noqa: N802
        if self.gpus[index] is None:
            raise NvmlError
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.gpus[index]]


class TestDeviceMemory:
    @pytest.mark.parametrize(
        ("gpus", "expected"),
        [
            ([[(7, 5 * MIB), (8, 100 * MIB)], [(7, 3 * MIB)]], 8 * MIB),
            ([None, [(7, 3 * MIB)]], 3 * MIB),
            ([[(8, 100 * MIB)]], None),
            ([[(7, None)]], None),
            ([None], None),
            ([], None),
        ],
    )
    def test_of_these_processes_on_all_gpus(
        self, monkeypatch: pytest.MonkeyPatch, gpus: list[list[tuple[int, int | None]] | None], expected: int | None
    ) -> None:
        driver = Driver(*gpus)
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        watch = MemoryWatch(7, reader=FakeReader(MIB))
        watch.start()
        peak = watch.stop()
        assert peak is not None
        assert peak.device_bytes == expected
        assert driver.opened == 0

    @pytest.mark.usefixtures("unhurried")
    def test_the_peak_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        driver = Driver([(7, 9 * MIB)])
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        watch = MemoryWatch(7, interval_seconds=0.002, reader=FakeReader(MIB))
        watch.start()
        next_sample(watch)
        driver.gpus = ([(7, 2 * MIB)],)
        peak = watch.stop()
        assert peak is not None
        assert peak.device_bytes == 9 * MIB

    def test_none_without_a_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> None:
            raise NvmlError

        driver = Driver([(7, MIB)])
        monkeypatch.setattr(driver, "nvmlInit", refuse)
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        watch = MemoryWatch(7, reader=FakeReader(MIB))
        watch.start()
        peak = watch.stop()
        assert peak is not None
        assert peak.device_bytes is None
        assert driver.opened == 0
