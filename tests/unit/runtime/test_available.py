"""How much memory there is: fake cgroup trees of both versions, and a fake NVIDIA driver."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pytest_llmbench.runtime import available
from pytest_llmbench.runtime.available import DeviceMemory, available_memory, devices

GIB = 2**30
NO_LIMIT_V1 = 9223372036854771712
Tree = Callable[[str, dict[str, str]], None]


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 16 GiB, 10 of them available."""
    memory = SimpleNamespace(total=16 * GIB, available=10 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write files into a folder below the root of a fake ``/proc`` and ``/sys/fs/cgroup``."""

    def write(folder: str, files: dict[str, str]) -> None:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (path / name).write_text(text + "\n", encoding="ascii")

    return write


def look(root: Path, limit_bytes: int | None = None) -> available.AvailableMemory:
    return available_memory(limit_bytes, proc=root / "proc", cgroups=root / "cgroup")


def v2(limit: int | str, used: int, inactive: int = 0, high: int | str = "max") -> dict[str, str]:
    return {
        "memory.max": str(limit),
        "memory.high": str(high),
        "memory.current": str(used),
        "memory.stat": f"anon 1\nactive_file 500\ninactive_file {inactive}\nslab 7",
    }


class TestTheMachine:
    def test_alone(self, tmp_path: Path) -> None:
        found = look(tmp_path)
        assert (found.bytes, found.bound_by, found.cgroup) == (10 * GIB, "machine", None)
        assert found.details == {"machine_available": 10 * GIB, "machine_total": 16 * GIB}

    def test_of_this_test_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        found = available_memory()
        assert 0 <= found.bytes <= psutil.virtual_memory().total

    @pytest.mark.parametrize(("limit", "bound_by"), [(9 * GIB, "max_memory_gb"), (11 * GIB, "machine")])
    def test_beside_a_configured_limit(self, tmp_path: Path, limit: int, bound_by: str) -> None:
        found = look(tmp_path, limit)
        assert (found.bytes, found.bound_by) == (min(limit, 10 * GIB), bound_by)
        assert found.details["max_memory"] == limit


class TestVersion2:
    def test_what_is_used_is_taken_off_and_idle_file_pages_are_not(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "0::/app"})
        tree("cgroup/app", v2(4 * GIB, used=3 * GIB, inactive=GIB))
        found = look(tmp_path)
        assert (found.bytes, found.bound_by) == (2 * GIB, "cgroup")
        assert found.cgroup == str(tmp_path / "cgroup" / "app")
        assert found.details["cgroup_limit"] == 4 * GIB
        assert found.details["cgroup_used"] == 3 * GIB
        assert found.details["cgroup_reclaimable"] == GIB

    def test_every_level_counts(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "0::/a/b/c"})
        tree("cgroup/a", v2(8 * GIB, used=7 * GIB))  # 1 left, though the two below have more
        tree("cgroup/a/b", v2("max", used=6 * GIB))
        tree("cgroup/a/b/c", v2(5 * GIB, used=2 * GIB))
        found = look(tmp_path)
        assert (found.bytes, found.cgroup) == (GIB, str(tmp_path / "cgroup" / "a"))

    def test_a_container_with_its_own_namespace(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "0::/"})
        tree("cgroup", v2(2 * GIB, used=GIB))
        assert look(tmp_path).bytes == GIB

    def test_a_container_that_sees_only_its_part_of_the_host_s_tree(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "0::/system.slice/docker-1.scope"})
        tree("cgroup", v2(2 * GIB, used=GIB))
        assert look(tmp_path).bytes == GIB

    def test_a_path_out_of_the_namespace_does_not_lead_out_of_the_mount(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "0::/../../other"})
        tree("cgroup", v2(3 * GIB, used=GIB))
        tree("other", v2(GIB, used=GIB))
        assert look(tmp_path).bytes == 2 * GIB

    def test_being_throttled_counts_as_a_limit(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "0::/app"})
        tree("cgroup/app", v2(8 * GIB, used=GIB, high=3 * GIB))
        assert look(tmp_path).bytes == 2 * GIB
        tree("cgroup/app", v2("max", used=GIB, high=3 * GIB))
        assert look(tmp_path).bytes == 2 * GIB

    def test_more_used_than_allowed_leaves_nothing(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "0::/app"})
        tree("cgroup/app", v2(GIB, used=2 * GIB))
        assert look(tmp_path).bytes == 0

    def test_idle_pages_are_never_more_than_what_is_used(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "0::/app"})
        tree("cgroup/app", v2(2 * GIB, used=GIB, inactive=5 * GIB))
        assert look(tmp_path).bytes == 2 * GIB

    def test_no_limit_at_all(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "0::/app"})
        tree("cgroup/app", v2("max", used=GIB))
        found = look(tmp_path)
        assert (found.bound_by, found.cgroup) == ("machine", None)
        assert "cgroup_limit" not in found.details

    def test_a_limit_whose_usage_is_not_told_still_is_one(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "0::/app"})
        tree("cgroup/app", {"memory.max": str(2 * GIB)})
        assert look(tmp_path).bytes == 2 * GIB


class TestVersion1:
    def test_a_limit(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "9:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/"})
        files = {"memory.limit_in_bytes": str(4 * GIB), "memory.usage_in_bytes": str(3 * GIB)}
        statistics = f"inactive_file 1\nhierarchical_memory_limit {NO_LIMIT_V1}\ntotal_inactive_file {GIB}"
        tree("cgroup/memory/docker/abc", {**files, "memory.stat": statistics})
        found = look(tmp_path)
        assert (found.bytes, found.bound_by) == (2 * GIB, "cgroup")

    def test_the_huge_value_is_none(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "4:memory:/x"})
        files = {"memory.limit_in_bytes": str(NO_LIMIT_V1), "memory.usage_in_bytes": "4096"}
        tree("cgroup/memory", files)
        tree("cgroup/memory/x", files)
        assert look(tmp_path).cgroup is None

    def test_a_limit_above_what_the_container_sees(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "4:memory:/docker/abc"})
        files = {"memory.limit_in_bytes": str(NO_LIMIT_V1), "memory.usage_in_bytes": str(GIB)}
        tree("cgroup/memory", {**files, "memory.stat": f"hierarchical_memory_limit {2 * GIB}"})
        assert look(tmp_path).bytes == GIB

    def test_both_versions_at_once(self, tmp_path: Path, tree: Tree) -> None:
        tree("proc/self", {"cgroup": "4:memory:/a\n0::/b"})
        tree("cgroup/memory/a", {"memory.limit_in_bytes": str(5 * GIB), "memory.usage_in_bytes": str(GIB)})
        tree("cgroup/unified/b", v2(3 * GIB, used=GIB))
        found = look(tmp_path)
        assert (found.bytes, found.cgroup) == (2 * GIB, str(tmp_path / "cgroup" / "unified" / "b"))


@pytest.mark.parametrize("text", ["", "nonsense", "4:memory", "0::", ":::", "0::/a\x00b"], ids=repr)
def test_a_strange_list_of_cgroups_is_no_limit(tmp_path: Path, tree: Tree, text: str) -> None:
    tree("proc/self", {"cgroup": text})
    assert look(tmp_path).bound_by == "machine"


@pytest.mark.parametrize("value", ["", "-1", "1 2", "lots", "²"], ids=repr)
def test_a_strange_limit_is_none(tmp_path: Path, tree: Tree, value: str) -> None:
    tree("proc/self", {"cgroup": "0::/app"})
    tree("cgroup/app", v2("max", used=GIB))
    (tmp_path / "cgroup" / "app" / "memory.max").write_text(value, encoding="utf-8")
    assert look(tmp_path).bound_by == "machine"


def test_a_folder_in_the_place_of_a_file_is_no_limit(tmp_path: Path, tree: Tree) -> None:
    tree("proc/self", {"cgroup": "0::/app"})
    (tmp_path / "cgroup" / "app" / "memory.max").mkdir(parents=True)
    assert look(tmp_path).bound_by == "machine"


class NvmlError(Exception):
    """The driver's own error."""


class NotSupported(NvmlError):
    """What it answers to a question that makes no sense for this GPU."""


class Driver(SimpleNamespace):
    """As much of the module ``pynvml`` as is used; a GPU is a dictionary, a missing key is not supported."""

    NVMLError = NvmlError
    NVMLError_NotSupported = NotSupported

    def __init__(self, *gpus: dict[str, Any], parts: dict[str, dict[str, Any]] | None = None) -> None:
        super().__init__(gpus=gpus, parts=parts or {}, opened=0)

    def nvmlInit(self) -> None:  # noqa: N802 -- the module's names
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        gpu: dict[str, Any] = self.gpus[index]
        if "lost" in gpu:
            raise NvmlError
        return gpu

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> dict[str, Any]:  # noqa: N802
        if uuid not in self.parts:
            raise NvmlError
        part: dict[str, Any] = self.parts[uuid]
        return part

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, part: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        whole: dict[str, Any] = part["of"]
        return whole

    def nvmlDeviceGetIndex(self, gpu: dict[str, Any]) -> int:  # noqa: N802
        return list(self.gpus).index(gpu)

    def nvmlDeviceGetUUID(self, gpu: dict[str, Any]) -> Any:  # noqa: N802
        return self._told(gpu, "uuid")

    def nvmlDeviceGetName(self, gpu: dict[str, Any]) -> Any:  # noqa: N802
        return self._told(gpu, "name")

    def nvmlDeviceGetMemoryInfo(self, gpu: dict[str, Any]) -> Any:  # noqa: N802
        return SimpleNamespace(total=self._told(gpu, "total"), free=self._told(gpu, "free"))

    def nvmlDeviceGetMigMode(self, gpu: dict[str, Any]) -> Any:  # noqa: N802
        return [self._told(gpu, "mig"), 0]

    def _told(self, gpu: dict[str, Any], key: str) -> Any:
        if key not in gpu:
            raise NotSupported
        if isinstance(gpu[key], Exception):
            raise gpu[key]
        return gpu[key]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Driver]:
    """Install a driver with these GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(*gpus: dict[str, Any], parts: dict[str, dict[str, Any]] | None = None) -> Driver:
        fake = Driver(*gpus, parts=parts)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


def gpu(number: int, **more: Any) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{number}{number}-x",
        "name": f"G{number}",
        "total": 8 * GIB,
        "free": (number + 1) * GIB,
    } | more


class TestDevices:
    def test_none_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert devices() == []

    def test_none_where_its_namesake_only_complains(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        text = "import warnings\nwarnings.warn('install the other one', FutureWarning)"
        (tmp_path / "pynvml.py").write_text(text, encoding="ascii")
        monkeypatch.delitem(sys.modules, "pynvml", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        assert devices() == []

    def test_none_without_a_driver(self, driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> None:
            raise NvmlError

        monkeypatch.setattr(driver(gpu(0)), "nvmlInit", refuse)
        assert devices() == []

    def test_all_of_them(self, driver: Callable[..., Driver]) -> None:
        fake = driver(gpu(0), gpu(1, name=b"G1", uuid=b"GPU-1"))
        assert devices() == [
            DeviceMemory(0, "G0", 8 * GIB, GIB, unified=False),
            DeviceMemory(1, "G1", 8 * GIB, 2 * GIB, unified=False),
        ]
        assert fake.opened == 0  # and it was closed again

    def test_one_that_is_lost_hides_no_other(self, driver: Callable[..., Driver]) -> None:
        fake = driver(gpu(0, lost=True), gpu(1), gpu(2, free=NvmlError()))
        assert [device.index for device in devices()] == [1]
        assert fake.opened == 0

    def test_a_driver_that_fails_is_closed(
        self, driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> int:
            raise NvmlError

        fake = driver(gpu(0))
        monkeypatch.setattr(fake, "nvmlDeviceGetCount", fail)
        assert devices() == []
        assert fake.opened == 0

    def test_one_without_memory_of_its_own_has_the_machine_s(self, driver: Callable[..., Driver]) -> None:
        driver({"name": "NVIDIA GB10"}, {})
        assert devices() == [
            DeviceMemory(0, "NVIDIA GB10", 16 * GIB, 10 * GIB, unified=True),
            DeviceMemory(1, "GPU", 16 * GIB, 10 * GIB, unified=True),
        ]

    @pytest.mark.parametrize(
        ("visible", "expected"),
        [
            ("1", [1]),
            ("2,0", [2, 0]),
            (" 1 , 2 ", [1, 2]),
            ("", []),
            ("-1", []),
            ("0,-1,1", [0]),
            ("0,7,1", [0]),
            ("GPU-11-x", [1]),
            ("GPU-2,0", [2, 0]),
            ("GPU-", []),  # could be any
            ("GPU-9", []),
            ("NoDevFiles", []),
        ],
        ids=repr,
    )
    def test_those_that_are_visible(
        self, driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[int]
    ) -> None:
        driver(gpu(0), gpu(1), gpu(2))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [device.index for device in devices()] == expected

    def test_one_that_is_cut_up_counts_by_its_parts(
        self, driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = gpu(1, mig=1)
        part = {"name": "G1 MIG 1g.2gb", "total": 2 * GIB, "free": GIB, "mig": 1, "of": whole}
        driver(gpu(0, mig=0), whole, parts={"MIG-a": part})
        assert [device.index for device in devices()] == [0]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert devices() == []
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b,0")
        assert devices() == [DeviceMemory(1, "G1 MIG 1g.2gb", 2 * GIB, GIB, unified=False)]

    @pytest.mark.parametrize(("machine", "count"), [("arm64", 1), ("x86_64", 0)])
    def test_apple_silicon_is_one(self, monkeypatch: pytest.MonkeyPatch, machine: str, count: int) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(platform, "machine", lambda: machine)
        assert devices() == [DeviceMemory(0, "Apple GPU", 16 * GIB, 10 * GIB, unified=True)] * count


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_limit_that_must_not_be_read_is_none(tmp_path: Path, tree: Tree) -> None:
    tree("proc/self", {"cgroup": "0::/app"})
    tree("cgroup/app", v2(GIB, used=0))
    (tmp_path / "cgroup" / "app" / "memory.max").chmod(0)
    assert look(tmp_path).bound_by == "machine"
