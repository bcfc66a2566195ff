"""``llmbench doctor``: one line for each thing that a run needs, and what to do about it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pytest_llmbench.calibration import calibrate
from pytest_llmbench.cli import main
from pytest_llmbench.commands import doctor, doctor_machine
from pytest_llmbench.core.calibration import Calibration
from pytest_llmbench.errors import ServerError
from pytest_llmbench.runtime import host
from tests.servers.fake_openai import FakeOpenAI
from tests.servers.ollama_server import OllamaModel, OllamaServer
from tests.unit.backends.routes import Routes

Output = pytest.CaptureFixture[str]
SERVED = {"models": [{"name": "Tiny", "size": "135M", "served": {"Q4_K_M": "tiny"}}]}
FROM_FILE = {"models": [{"name": "Tiny", "size": "135M", "files": {"Q4_K_M": "tiny.gguf"}}]}


class Doctor:
    """Asks the doctor in a folder, without calibration unless told otherwise."""

    def __init__(self, capsys: Output) -> None:
        self._capsys = capsys
        self.status = -1

    def write(self, name: str, data: Any) -> None:
        path = Path("configs") / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(data))

    def configure(self, config: dict[str, Any], models: dict[str, Any] = FROM_FILE) -> None:
        self.write("config.yaml", config)
        self.write("models.yaml", models)

    def lines(self, *arguments: str) -> list[str]:
        self.status = main(["doctor", "--no-calibration", *arguments])
        captured = self._capsys.readouterr()
        assert captured.err == ""
        return captured.out.splitlines()

    def of(self, name: str) -> str:
        """The line of a check, or the lines together."""
        found = [line for line in self.lines() if line[2:].startswith(name)]
        assert found, f"no line for {name}"
        return "\n".join(found)


@pytest.fixture
def ask(here: Path, capsys: Output) -> Doctor:
    return Doctor(capsys)


class TestConfiguration:
    def test_without_any_it_looks_at_the_shipped_one(self, ask: Doctor) -> None:
        lines = ask.lines()
        assert ask.status == 0
        assert all(line.startswith(("✓ ", "– ")) for line in lines)
        assert any("(built-in defaults)" in line for line in lines)
        assert any("– model SmolLM2-135M-Instruct Q4_1: not here yet; the first run fetches" in line for line in lines)

    def test_a_mistake_is_told_and_nothing_checked(self, ask: Doctor, capsys: Output) -> None:
        ask.configure({"backnd": "embedded"})
        assert main(["doctor"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "llmbench: configs/config.yaml:1: backnd: unknown key" in captured.err

    def test_a_backend_that_does_not_exist(self, ask: Doctor, capsys: Output) -> None:
        ask.configure({"backend": "lama_cpp"})
        assert main(["doctor"]) == 2
        assert "llama_cpp" in capsys.readouterr().err

    def test_other_files(self, ask: Doctor) -> None:
        ask.configure({})
        Path("configs").rename("elsewhere")
        lines = ask.lines("--config", "elsewhere/config.yaml", "--models", "elsewhere/models.yaml")
        assert any("elsewhere/config.yaml and elsewhere/models.yaml" in line for line in lines)

    def test_a_file_that_is_not_there(self, capsys: Output, here: Path) -> None:
        assert main(["doctor", "--config", str(here / "no.yaml")]) == 2
        assert "can not be read" in capsys.readouterr().err

    def test_no_model_selected(self, ask: Doctor) -> None:
        ask.configure({}, {**FROM_FILE, "full_mode_quants": ["Q8_0"]})
        assert ask.of("models").startswith("✗ models: no model has a quantization of full_mode_quants")
        assert ask.status == 1


class TestServers:
    def test_embedded(self, ask: Doctor) -> None:
        assert ask.of("server embedded").startswith("✓ server embedded: xllamacpp 20")

    def test_an_engine_that_can_not_be_loaded(self, ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
        result = subprocess.CompletedProcess([], -4, b"", b"Traceback\nImportError: no libgomp\n")
        monkeypatch.setattr("pytest_llmbench.commands.doctor_servers.subprocess.run", lambda *_, **__: result)
        assert "can not be loaded: ImportError: no libgomp" in ask.of("server embedded")
        assert ask.status == 1

    def test_llama_server_is_missing(self, ask: Doctor) -> None:
        ask.configure({"backend": "llama_cpp"})
        assert ask.of("server llama_cpp").startswith("✗ server llama_cpp: ./llama-server")
        assert ask.status == 1

    def test_something_else_in_its_place(self, ask: Doctor) -> None:
        ask.configure({"backend": "llama_cpp", "llama_cpp": {"server_path": "/bin/true"}})
        assert "is it a llama-server?" in ask.of("server llama_cpp")

    def test_a_command_that_is_missing(self, ask: Doctor) -> None:
        command = "no-such-server --port {port}"
        ask.configure({"backend": "openai", "openai": {"command": command}}, SERVED)
        assert "✗ server openai: no-such-server is neither on PATH" in ask.of("server openai")

    def test_a_command(self, ask: Doctor) -> None:
        command = "sh -c {port}"
        ask.configure({"backend": "openai", "openai": {"command": command}}, SERVED)
        assert ask.of("server openai").endswith("sh, to be started")

    def test_ollama_to_be_started(self, ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        ask.configure({"backend": "ollama", "ollama": {"start": True}}, SERVED)
        assert "✗ server ollama: ollama is neither on PATH" in ask.of("server ollama")

    def openai(self, ask: Doctor, url: str, **more: Any) -> str:
        ask.configure({"backend": "openai", "openai": {"base_url": url, **more}}, SERVED)
        return ask.of("server openai")

    def test_a_closed_port(self, ask: Doctor) -> None:
        with Routes({}) as server:
            url = server.url
        assert "nothing listens there" in self.openai(ask, url)
        assert ask.status == 1

    def test_a_web_server(self, ask: Doctor) -> None:
        with Routes({"GET /v1/models": (200, "<html>hello</html>")}) as server:
            found = self.openai(ask, server.url)
        assert "the answer is not JSON" in found
        assert "nothing listens" not in found

    def test_another_model(self, ask: Doctor) -> None:
        with FakeOpenAI(models=("tinny",)) as server:
            found = self.openai(ask, server.url)
        assert "✓ server openai: " in found
        assert "does not serve 'tiny', did you mean 'tinny'" in found.replace("; did", ", did").replace(
            " (did", ", did"
        )
        assert ask.status == 1

    def test_all_is_well(self, ask: Doctor) -> None:
        with FakeOpenAI(models=("tiny",)) as server:
            found = self.openai(ask, server.url + "/v1")
        assert found.splitlines() == [
            f"✓ server openai: {server.url} answers as a model server",
            "✓ server openai: tiny is there",
        ]

    def test_a_key_that_is_not_set(self, ask: Doctor) -> None:
        found = self.openai(ask, "http://127.0.0.1:9", api_key_env="NOT_SET_ANYWHERE")
        assert found == (
            "✗ server openai: openai.api_key_env names NOT_SET_ANYWHERE, but that variable is not set; export it"
        )

    def test_a_key_is_used_and_not_told(self, ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SERVER_KEY", "sk-secret")
        with Routes({"GET /v1/models": (200, {"data": [{"id": "tiny"}]})}, key="sk-secret") as server:
            found = self.openai(ask, server.url, api_key_env="SERVER_KEY")
        assert "tiny is there" in found
        assert "sk-secret" not in found

    def test_ollama_with_a_model_of_its_own_and_one_to_import(self, ask: Doctor) -> None:
        models = [*SERVED["models"], {"name": "Mine", "size": "1B", "files": {"Q4_K_M": "mine.gguf"}}]
        with OllamaServer({"tiny": OllamaModel()}) as server:
            ask.configure({"backend": "ollama", "ollama": {"base_url": server.url}}, {"models": models})
            lines = ask.lines()
        assert "✓ server ollama: tiny is there" in lines
        assert any(line.startswith("✗ model Mine Q4_K_M: models/1B/mine.gguf is missing") for line in lines)
        assert not any("llmbench-mine" in line for line in lines)

    def test_every_kind_that_a_variant_names(self, ask: Doctor) -> None:
        variants = [{"id": "a"}, {"id": "b", "backend": "llama_cpp"}, {"id": "c", "server_path": "/x/llama-server"}]
        ask.configure({"variants": [variants[0], variants[1], {**variants[2], "backend": "llama_cpp"}]})
        found = ask.of("server")
        assert "server embedded" in found
        assert "./llama-server" in found
        assert "/x/llama-server" in found


class TestModels:
    def configure(self, ask: Doctor, **entry: Any) -> None:
        ask.configure({}, {"models": [{**FROM_FILE["models"][0], **entry}]})

    def test_there(self, ask: Doctor) -> None:
        self.configure(ask)
        path = Path("models/135M/tiny.gguf")
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(2_000_000))
        assert ask.of("model Tiny") == "✓ model Tiny Q4_K_M: models/135M/tiny.gguf, 2 MB"
        assert ask.status == 0

    def test_missing(self, ask: Doctor) -> None:
        self.configure(ask)
        assert "is missing, and configs/models.yaml names no source; put it there" in ask.of("model Tiny")
        assert ask.status == 1

    def test_one_shard_is_missing(self, ask: Doctor) -> None:
        self.configure(ask, files={"Q4_K_M": ["one.gguf", "two.gguf"]})
        Path("models/135M").mkdir(parents=True)
        Path("models/135M/one.gguf").write_bytes(b"x")
        assert "models/135M/two.gguf is missing" in ask.of("model Tiny")

    def test_elsewhere(self, ask: Doctor) -> None:
        Path("mine.gguf").write_bytes(b"x")
        self.configure(ask, source={"path": "mine.gguf"})
        assert ask.of("model Tiny") == "✓ model Tiny Q4_K_M: mine.gguf, 0 MB"
        self.configure(ask, source={"path": "gone.gguf"})
        assert "✗ model Tiny Q4_K_M: source.path gone.gguf is no file" in ask.of("model Tiny")

    def test_not_enough_room(self, ask: Doctor) -> None:
        source = {"wheel": "tiny==1", "member": "tiny.gguf", "size_bytes": 10**15}
        self.configure(ask, source=source)
        assert "needed; free some space" in ask.of("disk")
        assert ask.status == 1

    def test_a_catalogue_does_not_fill_the_screen(self, ask: Doctor) -> None:
        entries = [{**FROM_FILE["models"][0], "name": f"Tiny{i}"} for i in range(100)]
        ask.configure({}, {"models": entries})
        lines = [line for line in ask.lines() if line[2:].startswith("model")]
        assert len(lines) == 5
        assert lines[-1] == "✗ models: and 96 more like that, up to model Tiny99 Q4_K_M"


class TestMachine:
    def test_every_part_has_a_line(self, ask: Doctor) -> None:
        lines = ask.lines()
        for name in ("python", "packages", "GPU", "temperature", "load", "swap", "CPU governor", "timing"):
            assert any(line[2:].startswith(f"{name}: ") for line in lines), name

    def test_no_gpu_is_no_fault(self, ask: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("shutil.which", lambda _: None)
        monkeypatch.setattr(doctor_machine, "_DRI", tmp_path)
        monkeypatch.setattr(sys, "platform", "linux")
        assert ask.of("GPU") == "– GPU: none found; models run on the CPU"

    def test_a_render_device(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "renderD128").touch()
        monkeypatch.setattr("shutil.which", lambda _: None)
        monkeypatch.setattr(doctor_machine, "_DRI", tmp_path)
        assert doctor_machine._gpu().found.startswith("/dev/dri/renderD128")

    @pytest.mark.parametrize(
        ("script", "state", "found"),
        [
            ("echo 'NVIDIA H200, 143771 MiB, 570.1'", "ok", "NVIDIA H200, 143771 MiB, 570.1"),
            ("echo 'no devices were found'; exit 6", "absent", "nvidia-smi finds none: no devices were found"),
        ],
    )
    def test_nvidia(self, script: str, state: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr("shutil.which", lambda _: str(program))
        check = doctor_machine._gpu()
        assert (check.state, check.found) == (state, found)

    def test_sensors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sensors = {"coretemp": [type("Entry", (), {"current": 45.4})], "empty": []}
        monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
        assert doctor_machine._temperature().found == "coretemp 45 °C"

    @pytest.mark.parametrize(("load", "state"), [(0.1, "ok"), (1.0, "absent")])
    def test_load(self, load: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
        monkeypatch.setattr(host, "usable_cores", lambda: 2)
        check = doctor_machine._load()
        assert (check.state, check.found) == (state, f"{load} on 2 cores in the last minute")

    def test_swap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(psutil, "swap_memory", lambda: type("Swap", (), {"used": 3_000_000}))
        check = doctor_machine._swap()
        assert (check.state, check.found) == ("absent", "3 MB in use")

    @pytest.mark.parametrize(("governor", "state"), [("performance", "ok"), ("powersave", "absent")])
    def test_governor(self, governor: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(2):
            file = tmp_path / f"cpu{number}" / "cpufreq" / "scaling_governor"
            file.parent.mkdir(parents=True)
            file.write_text(governor + "\n")
        monkeypatch.setattr(doctor_machine, "_CPUS", tmp_path)
        check = doctor_machine._governor()
        assert (check.state, check.found) == (state, governor)


class TestTiming:
    def quick(self) -> Calibration:
        return calibrate(streams=(1, 2), seconds=0.1)

    def test_is_measured_while_nobody_else_may(
        self, ask: Doctor, capsys: Output, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = []

        def quick() -> Calibration:
            held.append(host.device_lock().is_locked or not _free())
            return self.quick()

        monkeypatch.setattr(doctor, "calibrate", quick)
        assert main(["doctor"]) == 0
        output = capsys.readouterr().out
        assert held == [True]
        assert _free()
        assert "✓ timing: measured for" in output
        assert "TTFT off" in output
        assert "With one stream, times to first token are right to ±" in output
        assert max(map(len, output.partition("TTFT off")[2].splitlines()[:4])) <= 100
        assert ask.lines()

    def test_not_while_another_benchmark_runs(self, ask: Doctor, capsys: Output) -> None:
        with host.device_lock().acquire():
            assert main(["doctor"]) == 0
        assert "– timing: another benchmark is measuring here now; run doctor again" in capsys.readouterr().out
        assert ask.lines()

    @pytest.mark.usefixtures("here")
    def test_fails(self, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken() -> Calibration:
            raise ServerError("calibration_failed", "no luck")

        monkeypatch.setattr(doctor, "calibrate", broken)
        assert main(["doctor"]) == 1
        assert "✗ timing: no luck" in capsys.readouterr().out
        assert _free()

    @pytest.mark.usefixtures("here")
    def test_json(self, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "calibrate", self.quick)
        assert main(["doctor", "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["usable"] is True
        assert {check["state"] for check in answer["checks"]} <= {"ok", "absent"}
        assert all(check["name"] and check["found"] for check in answer["checks"])
        assert [error["streams"] for error in answer["calibration"]["errors"]] == [1, 2]
        assert answer["calibration"]["claim"].startswith("With one stream")

    def test_json_of_a_problem(self, ask: Doctor, capsys: Output) -> None:
        ask.configure({})
        assert main(["doctor", "--json", "--no-calibration"]) == 1
        answer = json.loads(capsys.readouterr().out)
        assert (answer["usable"], answer["calibration"]) == (False, None)


def _free() -> bool:
    lock = host.device_lock()
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        return False
    lock.release()
    return True


def test_needs_no_pytest(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pytest_llmbench.cli import main\nmain(['doctor', '--no-calibration'])\n"
        "assert not {'pytest', '_pytest', 'pluggy'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
