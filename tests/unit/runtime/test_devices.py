"""The pool of devices: who may measure beside whom, who waits, and what is left of one that was killed."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

from pytest_llmbench.errors import CellError
from pytest_llmbench.runtime import available, devices, host
from pytest_llmbench.runtime.available import DeviceMemory
from pytest_llmbench.runtime.devices import DevicePool, Lease, device_count

GPUS = ["0", "1"]


@pytest.fixture(autouse=True)
def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: no GPU, and nobody is patient."""
    monkeypatch.setattr(devices, "_uuids", dict)
    monkeypatch.setattr(available, "devices", list)
    monkeypatch.setattr(devices, "_POLL_SECONDS", 0.005)
    monkeypatch.setattr(devices, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


class Users:
    """Takes leases, each in a thread of its own, and ends them all."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._leases: list[Lease] = []
        self._threads: list[threading.Thread] = []

    def now(
        self, *gpus: str, run: str = "ours", when_busy: Literal["wait", "fail"] = "wait", uses_gpu: bool = True
    ) -> Lease:
        pool = DevicePool(list(gpus) or "cpu", one_each=True, run_id=run, when_busy=when_busy)
        lease = pool.lease(uses_gpu, self.told.append)
        self._leases.append(lease)
        return lease

    def later(self, *gpus: str, run: str = "ours") -> Callable[[float], Lease | None]:
        """Begin to wait for a lease; the answer gets it, or None when it is not had within some seconds."""
        got: list[Lease] = []
        done = threading.Event()

        def wait() -> None:
            got.append(self.now(*gpus, run=run))
            done.set()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        self._threads.append(thread)
        return lambda seconds: got[0] if done.wait(seconds) else None

    def soon(self, action: Callable[[], None]) -> None:
        """Do something that ends a wait which has not begun yet."""
        self._threads.append(threading.Timer(0.2, action))
        self._threads[-1].start()

    def end(self) -> None:
        while any(thread.is_alive() for thread in self._threads):
            for lease in list(self._leases):
                lease.release()
            for thread in self._threads:
                thread.join(0.005)
        for lease in self._leases:
            lease.release()


@pytest.fixture
def users() -> Iterator[Users]:
    some = Users()
    yield some
    some.end()


class Elsewhere:
    """A process that holds a lease until it is killed."""

    def __init__(self, *gpus: str, run: str = "theirs") -> None:
        code = (
            "import sys, json\n"
            "from pytest_llmbench.runtime.devices import DevicePool\n"
            "pool = DevicePool(json.loads(sys.argv[1]), one_each=True, run_id=sys.argv[2], when_busy='wait')\n"
            "lease = pool.lease(True, print)\n"
            "print(lease.name, flush=True)\n"
            "sys.stdin.read()\n"
        )
        command = [sys.executable, "-c", code, json.dumps(list(gpus) or "cpu"), run]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.lease_name = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def elsewhere(users: Users) -> Iterator[Callable[..., Elsewhere]]:
    started: list[Elsewhere] = []

    def start(*gpus: str, run: str = "theirs") -> Elsewhere:
        started.append(Elsewhere(*gpus, run=run))
        return started[-1]

    yield start
    users.end()
    for one in started:
        one.kill()


class TestWhoMayMeasureBesideWhom:
    def test_the_cpus_are_one_device(self, users: Users) -> None:
        lease = users.now()
        second = users.later()
        assert second(0.05) is None
        lease.release()
        assert second(5)

    def test_gpus_are_leased_side_by_side(self, users: Users) -> None:
        assert [users.now(*GPUS).name, users.now(*GPUS).name] == ["0", "1"]

    def test_each_gpu_to_one(self, users: Users) -> None:
        leases = [users.now(*GPUS), users.now(*GPUS)]
        third = users.later(*GPUS)
        assert third(0.05) is None
        leases[1].release()
        lease = third(5)
        assert lease
        assert lease.name == "1"

    @pytest.mark.parametrize("holder", [(), ("0",)])
    def test_never_a_gpu_beside_the_cpus(self, users: Users, holder: tuple[str, ...]) -> None:
        lease = users.now(*holder)
        other = users.later(*([] if holder else GPUS))
        assert other(0.05) is None
        lease.release()
        assert other(5)

    def test_several_gpus_as_one_device_are_all_leased(self, users: Users) -> None:
        lease = users.now("0,1")
        assert lease.name == "0,1"
        one = users.later("1", run="theirs")
        assert one(0.05) is None
        assert users.now("2", run="theirs").name == "2"
        lease.release()
        assert one(5)

    def test_one_part_that_is_taken_leaves_the_other_free(self, users: Users) -> None:
        users.now("1")
        both = users.later("0,1", run="theirs")
        assert both(0.05) is None
        assert users.now("0").name == "0"

    def test_a_cell_that_uses_no_gpu_takes_the_cpus(self, users: Users) -> None:
        assert users.now("0", uses_gpu=False).name == "cpu"
        assert users.later("0")(0.05) is None

    def test_who_waits_for_the_cpus_is_not_overtaken(self, users: Users) -> None:
        first = users.now("0")
        cpus = users.later()
        assert cpus(0.05) is None  # it stands in the queue now
        gpu = users.later("1")
        assert gpu(0.05) is None  # free, but somebody was there before
        first.release()
        lease = cpus(5)
        assert lease
        assert gpu(0) is None
        lease.release()
        assert gpu(5)

    def test_nor_who_waits_for_a_gpu(self, users: Users) -> None:
        first = users.now()
        gpu = users.later("0")
        assert gpu(0.05) is None
        cpus = users.later()
        assert cpus(0.05) is None
        first.release()
        lease = gpu(5)
        assert lease
        assert cpus(0) is None
        lease.release()
        assert cpus(5)


class TestLease:
    def test_released_twice(self, users: Users) -> None:
        lease = users.now()
        lease.release()
        users.now(when_busy="fail")
        lease.release()
        assert users.later()(0.05) is None  # the second one's lease was not given back

    def test_leaves_nothing_but_the_locks(self, users: Users, own_runtime_dir: Path) -> None:
        before = psutil.Process().num_fds()
        for gpus in ((), ("0",), ("0,1",)):
            users.now(*gpus).release()
        assert {path.suffix for path in own_runtime_dir.iterdir()} == {".lock"}
        assert psutil.Process().num_fds() <= before

    def test_waiting_takes_no_more_files(self, users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[int] = []
        closed: list[int] = []
        real_open, real_close = os.open, os.close

        def watched(*args: Any, **named: Any) -> int:
            opened.append(1)
            return real_open(*args, **named)

        def watched_close(file: int) -> None:
            closed.append(1)
            real_close(file)

        lease = users.now()
        monkeypatch.setattr(os, "open", watched)
        monkeypatch.setattr(os, "close", watched_close)
        waiting = users.later()
        assert waiting(0.1) is None
        assert len(opened) - len(closed) <= 2  # the queue, and the try of this moment
        lease.release()
        assert waiting(5)

    def test_released_while_a_copy_of_this_process_lives(self, users: Users) -> None:
        """A fork has copies of our descriptors, which keep a lock that is only closed."""
        lease = users.now()
        copies = [os.dup(file.fd) for file in psutil.Process().open_files() if file.path.endswith("/device-cpu.lock")]
        try:
            lease.release()
            assert len(copies) == 1
            users.now(when_busy="fail")
        finally:
            for copy in copies:
                os.close(copy)

    def test_is_not_inherited(self, users: Users) -> None:
        lease = users.now()
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
        try:
            lease.release()
            users.now(when_busy="fail")
        finally:
            child.communicate(b"\n")


class TestAnotherProcess:
    def test_its_lease_counts(self, users: Users, elsewhere: Callable[..., Elsewhere]) -> None:
        assert elsewhere("0").lease_name == "0"
        assert users.now(*GPUS).name == "1"

    @pytest.mark.parametrize("gpus", [(), ("0",)])
    def test_its_lease_ends_with_it(
        self, users: Users, elsewhere: Callable[..., Elsewhere], own_runtime_dir: Path, gpus: tuple[str, ...]
    ) -> None:
        other = elsewhere(*gpus)
        waiting = users.later(*gpus)
        assert waiting(0.05) is None
        other.kill()
        assert waiting(5)
        assert not list(own_runtime_dir.glob(f"gpu-*@{other.process.pid}-*.json"))

    def test_note_of_a_killed_one_is_not_believed(
        self, users: Users, elsewhere: Callable[..., Elsewhere], own_runtime_dir: Path
    ) -> None:
        other = elsewhere("0")
        other.kill()
        assert list(own_runtime_dir.glob(f"*@{other.process.pid}-*.json"))
        users.now("0", run="ours")
        users.now("1", run="ours", when_busy="fail")
        with pytest.raises(CellError, match="run ours"):
            users.now(run="third", when_busy="fail")


class TestAnotherRun:
    def test_is_waited_for_with_a_message(self, users: Users) -> None:
        lease = users.now(run="theirs")
        waiting = users.later()
        assert waiting(0.3) is None
        lease.release()
        assert waiting(5)
        assert len(users.told) == 1
        assert f"another benchmark (run theirs, process {os.getpid()}, since " in users.told[0]
        assert users.told[0].endswith("measures on this machine; waiting for it")

    def test_is_not_mentioned_when_it_ends_soon(self, users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "_PATIENCE_SECONDS", 60)
        lease = users.now(run="theirs")
        waiting = users.later()
        assert waiting(0.05) is None
        lease.release()
        assert waiting(5)
        assert users.told == []

    @pytest.mark.parametrize("theirs", [(), ("0",)])
    @pytest.mark.parametrize("ours", [(), ("0",)])
    def test_can_be_a_failure(self, users: Users, theirs: tuple[str, ...], ours: tuple[str, ...]) -> None:
        users.now(*theirs, run="theirs")
        with pytest.raises(
            CellError, match=r"another benchmark .run theirs, process .* or with --llmbench-when"
        ) as info:
            users.now(*ours, when_busy="fail")
        assert info.value.code == "device_busy"
        assert info.value.evidence == {"holder_pid": os.getpid(), "holder_run": "theirs"}

    def test_is_no_failure_while_another_gpu_is_ours(self, users: Users) -> None:
        users.now("0", run="theirs")
        mine = users.now("1", run="ours")
        pool = DevicePool(GPUS, one_each=True, run_id="ours", when_busy="fail")
        users.soon(mine.release)
        lease = pool.lease(True, users.told.append)
        assert lease.name == "1"
        lease.release()

    def test_without_a_note_is_a_failure_only_when_it_lasts(self, users: Users) -> None:
        with host.device_lock():  # it leaves none
            with pytest.raises(CellError, match="left no note") as info:
                users.now(when_busy="fail")
            waiting = users.later()
            assert waiting(0.3) is None
        assert info.value.code == "device_busy"
        assert waiting(5)
        assert ["left no note" in text for text in users.told] == [True]


class TestTheSameRun:
    @pytest.fixture(autouse=True)
    def patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "_PATIENCE_SECONDS", 60)

    @pytest.mark.parametrize("gpus", [(), ("0",)])
    def test_is_waited_for_silently(
        self, users: Users, elsewhere: Callable[..., Elsewhere], gpus: tuple[str, ...]
    ) -> None:
        other = elsewhere(*gpus, run="ours")
        pool = DevicePool(list(gpus) or "cpu", one_each=True, run_id="ours", when_busy="fail")
        users.soon(other.kill)
        pool.lease(True, users.told.append).release()
        assert users.told == []

    def test_waiting_in_the_queue_is_no_failure_for_its_gpus(self, users: Users) -> None:
        first = users.now("0")
        cpus = users.later()
        assert cpus(0.05) is None
        pool = DevicePool(["1"], one_each=True, run_id="ours", when_busy="fail")

        def make_room() -> None:
            first.release()
            lease = cpus(5)
            assert lease
            lease.release()

        users.soon(make_room)
        pool.lease(True, users.told.append).release()
        assert users.told == []


class Nvml:
    """A driver with GPUs of these UUIDs; None where a GPU tells none."""

    class NVMLError(Exception):
        pass

    def __init__(self, *uuids: str | bytes | None) -> None:
        self._uuids = uuids

    def nvmlInit(self) -> None:  # noqa: N802
        if not self._uuids:
            raise self.NVMLError

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:  # noqa: N802
        uuid = self._uuids[handle]
        if uuid is None:
            raise self.NVMLError
        return uuid


UUIDS_OF = devices._uuids


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def install(*uuids: str | bytes | None) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", Nvml(*uuids))
        monkeypatch.setattr(devices, "_uuids", UUIDS_OF)
        gpus = [DeviceMemory(index, "GPU", 1, 1, unified=False) for index in range(len(uuids))]
        monkeypatch.setattr(available, "devices", lambda: gpus)

    UUIDS_OF.cache_clear()
    yield install
    UUIDS_OF.cache_clear()


def pool_of(configured: str | Sequence[str], *, one_each: bool) -> tuple[str, ...]:
    return DevicePool(configured, one_each=one_each, run_id="ours", when_busy="wait").gpus


class TestWhatThePoolHolds:
    @pytest.mark.parametrize("one_each", [True, False])
    def test_a_list_is_believed(self, one_each: bool) -> None:
        assert pool_of(["0,1", "7"], one_each=one_each) == ("0,1", "7")
        assert device_count(["0,1", "7"]) == 2

    @pytest.mark.parametrize("configured", ["cpu", "auto"])
    def test_the_cpus_where_there_is_no_gpu(self, configured: str, users: Users) -> None:
        assert pool_of(configured, one_each=True) == pool_of(configured, one_each=False) == ()
        assert device_count(configured) == 1

    def test_gpus_by_uuid(self, driver: Callable[..., None]) -> None:
        driver("GPU-a", b"GPU-b", None)
        assert pool_of("auto", one_each=True) == ("GPU-a", "GPU-b", "2")
        assert pool_of("auto", one_each=False) == ("GPU-a,GPU-b,2",)
        assert pool_of("cpu", one_each=True) == ()
        assert (device_count("auto"), device_count("cpu")) == (3, 1)

    def test_only_visible_gpus(self, driver: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
        driver("GPU-a", "GPU-b")
        second = DeviceMemory(1, "GPU", 1, 1, unified=True)
        monkeypatch.setattr(available, "devices", lambda: [second])
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert pool_of("auto", one_each=True) == ("GPU-b",)

    def test_parts_of_a_gpu(self, driver: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
        driver("GPU-a")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a, MIG-gone")
        assert pool_of("auto", one_each=True) == ("MIG-a",)

    def test_what_a_lease_hides_stays_in_the_pool(
        self, driver: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        driver("GPU-a")
        pool = DevicePool("auto", one_each=True, run_id="ours", when_busy="wait")
        pool.lease(False, print).release()
        monkeypatch.setattr(available, "devices", list)  # as with CUDA_VISIBLE_DEVICES=-1
        assert pool.gpus == ("GPU-a",)

    def test_driver_that_fails(self, driver: Callable[..., None]) -> None:
        driver()
        assert devices._uuids() == {}

    def test_number_and_uuid_are_the_same_gpu(self, driver: Callable[..., None], users: Users) -> None:
        driver("GPU-a1", "GPU-b1")
        users.now("0", run="theirs")
        for name in ("GPU-a1", "GPU-a", "GPU-b,GPU-a"):
            with pytest.raises(CellError, match="run theirs"):
                users.now(name, when_busy="fail")
        assert users.now("GPU", "GPU-b").name == "GPU"  # could be both, so it is taken by its word


class TestEnvironment:
    def test_numbers_are_for_every_driver(self, users: Users) -> None:
        assert users.now("1,3").environment == {
            "CUDA_VISIBLE_DEVICES": "1,3",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "HIP_VISIBLE_DEVICES": "1,3",
            "GGML_VK_VISIBLE_DEVICES": "1,3",
            "ZE_AFFINITY_MASK": "1,3",
        }

    @pytest.mark.parametrize("name", ["GPU-8932f937-d72c", "MIG-1", "0,GPU-8932f937-d72c"])
    def test_uuids_are_for_cuda(self, users: Users, name: str) -> None:
        assert users.now(name).environment == {"CUDA_VISIBLE_DEVICES": name}

    def test_the_cpus_hide_the_gpus(self, users: Users) -> None:
        environment = users.now().environment
        assert environment["CUDA_VISIBLE_DEVICES"] == environment["HIP_VISIBLE_DEVICES"] == "-1"
        assert environment["GGML_VK_VISIBLE_DEVICES"] == ""


class TestAFolderThatCanNotBeUsed:
    def test_for_opening(self, users: Users, own_runtime_dir: Path) -> None:
        (own_runtime_dir / "device-queue.lock").mkdir()
        with pytest.raises(CellError, match=r"can not be opened \(Is a directory\)") as info:
            users.now()
        assert info.value.code == "runtime_dir_unusable"

    def test_for_locking(self, users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(CellError, match=r"No locks available.*local disk"):
            users.now("0")

    def test_for_notes(self, users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        users.now()
        with pytest.raises(CellError, match="left no note"):
            users.now(run="theirs", when_busy="fail")

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid":"a","started":0,"run_id":"b","since":0}'])
    def test_broken_notes(self, users: Users, own_runtime_dir: Path, text: str) -> None:
        users.now()
        (own_runtime_dir / "device-cpu@1-0.json").write_text(text)
        with pytest.raises(CellError, match="run ours"):
            users.now(run="theirs", when_busy="fail")
