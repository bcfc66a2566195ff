"""What machine this is: stable, anonymous, and never a reason to fail."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import Timeout

from pytest_llmbench.runtime import host

HARDWARE = {
    "cpu": "A CPU",
    "physical_cores": 4,
    "logical_cores": 8,
    "memory_bytes": 16 * 2**30,
    "machine": "x86_64",
    "os": "Linux-6.1",
}


class TestFingerprint:
    def test_is_the_same_in_another_process(self) -> None:
        code = "from pytest_llmbench.runtime import host; print(host.fingerprint(host.describe_hardware()))"
        other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert other.stdout.strip() == host.fingerprint(host.describe_hardware())

    @pytest.mark.parametrize(
        "change", [{"os": "Linux-6.2"}, {"memory_bytes": 16 * 2**30 - 3_000_000}, {"hostname": "a"}], ids=str
    )
    def test_survives_an_update(self, change: dict[str, object]) -> None:
        assert host.fingerprint({**HARDWARE, **change}) == host.fingerprint(HARDWARE)

    @pytest.mark.parametrize(
        "change", [{"cpu": "B"}, {"physical_cores": 2}, {"memory_bytes": 2**35}, {"machine": "arm64"}], ids=str
    )
    def test_tells_hardware_apart(self, change: dict[str, object]) -> None:
        assert host.fingerprint({**HARDWARE, **change}) != host.fingerprint(HARDWARE)

    def test_hardware_holds_nothing_that_names_this_one_machine(self) -> None:
        described = json.dumps(host.describe_hardware())
        assert set(host.describe_hardware()) == set(HARDWARE)
        node = os.uname().nodename
        names = [node] if node not in {"localhost", ""} else []
        machine_id = Path("/etc/machine-id")
        names += [machine_id.read_text().strip()] if machine_id.is_file() else []
        assert not [name for name in names if name and name in described]


def test_software_and_clock_are_primitives() -> None:
    software = host.describe_software()
    assert {"python", "pytest-llmbench", "pytest"} <= set(software)
    clock = host.describe_clock()
    assert clock["monotonic"] is True
    assert 0 < clock["resolution_seconds"] <= 1e-6
    json.dumps([software, clock, host.describe_hardware()])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
class TestPageCache:
    def test_a_file_just_read_is_in_it(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(bytes(300_001))
        path.read_bytes()
        percent = host.page_cache_percent(path)
        assert percent is not None
        assert 90 < percent <= 100

    def test_a_file_dropped_from_it_is_not(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(bytes(4_000_000))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        percent = host.page_cache_percent(path)
        if percent == 100:
            pytest.skip("this file system does not let go of pages")
        assert percent is not None
        assert percent < 50

    def test_an_empty_file_and_none(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        assert host.page_cache_percent(tmp_path / "empty") is None
        assert host.page_cache_percent(tmp_path / "missing") is None
        assert host.page_cache_percent(tmp_path) is None


class TestGitCommit:
    @pytest.fixture(autouse=True)
    def _no_git_around(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in os.environ if name.startswith("GIT_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

    def test_none_outside_a_repository(self, tmp_path: Path) -> None:
        assert host.git_commit(tmp_path) is None
        assert host.git_commit(tmp_path / "missing") is None

    def test_none_without_git(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert host.git_commit(tmp_path) is None

    def test_the_commit_of_a_repository(self, tmp_path: Path) -> None:
        def git(*arguments: str) -> str:
            command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.invalid", *arguments]
            return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

        git("init", "--quiet")
        assert host.git_commit(tmp_path) is None  # nothing committed yet
        git("commit", "--quiet", "--allow-empty", "--message", "one")
        assert host.git_commit(tmp_path) == git("rev-parse", "HEAD")


class TestTheDeviceLock:
    def test_is_held_by_one(self, own_runtime_dir: Path) -> None:
        with host.device_lock():
            assert (own_runtime_dir / "device-cpu.lock").exists()
            with pytest.raises(Timeout):
                host.device_lock().acquire(timeout=0.01)
        with host.device_lock().acquire(timeout=0.01):
            pass

    def test_lies_in_a_folder_of_this_user(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLMBENCH_RUNTIME_DIR", str(tmp_path / "a" / "b"))
        assert host.runtime_dir() == tmp_path / "a" / "b"
        assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_cores_outside_the_affinity_are_not_used() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert host.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= host.usable_cores() <= len(before)


def test_the_lock_does_not_depend_on_where_temporary_files_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LLMBENCH_RUNTIME_DIR")
    expected = Path(f"/tmp/pytest-llmbench-{os.getuid()}")
    was_there = expected.exists()
    try:
        assert host.runtime_dir() == expected
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        assert host.runtime_dir() == expected
    finally:
        if not was_there:
            expected.rmdir()


def test_a_label_tells_machines_apart_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMBENCH_HOST_LABEL", raising=False)
    plain = host.fingerprint(host.describe_hardware())
    assert "label" not in host.describe_hardware()
    monkeypatch.setenv("LLMBENCH_HOST_LABEL", "left")
    left = host.fingerprint(host.describe_hardware())
    monkeypatch.setenv("LLMBENCH_HOST_LABEL", "right")
    assert len({plain, left, host.fingerprint(host.describe_hardware())}) == 3
