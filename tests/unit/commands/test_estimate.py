"""``llmbench estimate``: the figures, what is advised, what a name means, and the exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_llmbench import cli
from pytest_llmbench.cli import main
from pytest_llmbench.core.memory import CACHE_ELEMENT_BYTES
from pytest_llmbench.core.records import MemoryRecord
from pytest_llmbench.runtime import host, memory_check
from pytest_llmbench.runtime.available import AvailableMemory, DeviceMemory
from pytest_llmbench.runtime.modelstore import transfer
from pytest_llmbench.runtime.run_folder import RunFolder
from tests.ggufs.shapes import SHAPES, write_shape
from tests.ggufs.writer import Value, write_gguf
from tests.servers.hub import COMMIT, Hub, HubFile, HubRepo, small_gguf
from tests.unit.factories import cell_record

Output = pytest.CaptureFixture[str]
LLAMA = SHAPES["llama-3.1-8b"]
KV_BYTES = 2 * 32 * 8 * 128 * 2 * 8192  # keys and values, layers, heads, width, F16, tokens
PARTS = ("weights", "repacked", "kv", "recurrent", "compute", "output", "overhead")


class Estimate:
    """Runs the command in a folder, on a machine with 16 GB free and neither a GPU nor repacked weights."""

    def __init__(self, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self.status, self.out, self.err = -1, "", ""
        self._monkeypatch = monkeypatch
        self.set("available_memory", _available)
        self.set("repacked_types", lambda: ())
        self.has_gpus()

    def set(self, name: str, answer: Callable[..., Any]) -> None:
        self._monkeypatch.setattr(memory_check, name, answer)

    def has_gpus(self, *found: DeviceMemory) -> None:
        self.set("devices", lambda: list(found))

    def configure(self, config: dict[str, Any], *models: dict[str, Any]) -> None:
        Path("configs").mkdir(exist_ok=True)
        Path("configs/config.yaml").write_text(yaml.safe_dump(config))
        if models:
            Path("configs/models.yaml").write_text(yaml.safe_dump({"models": list(models)}, sort_keys=False))

    def __call__(self, *arguments: str) -> str:
        self.status = main(["estimate", *arguments])
        captured = self._capsys.readouterr()
        self.out, self.err = captured.out, captured.err
        return self.out

    def facts(self, *arguments: str) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self(*arguments, "--json"))
        assert facts["schema_version"] == 1
        return facts

    def refusal(self, *arguments: str) -> str:
        self(*arguments)
        assert (self.status, self.out) == (2, "")
        assert self.err.startswith("llmbench: ")
        assert self.err.count("\n") == 1
        return self.err


def _available(limit_bytes: int | None) -> AvailableMemory:
    machine = 16_000_000_000
    if limit_bytes is not None and limit_bytes < machine:
        return AvailableMemory(limit_bytes, "max_memory_gb", {})
    return AvailableMemory(machine, "machine", {})


@pytest.fixture
def estimate(here: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> Estimate:
    return Estimate(capsys, monkeypatch)


def llama(name: str = "llama.gguf", quantization: str = "Q4_K_M") -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(write_shape(path, LLAMA, quantization, vocabulary="none"))


class TestFile:
    def test_that_fits(self, estimate: Estimate) -> None:
        text = estimate(llama())
        assert estimate.status == 0
        first, second, third, *rest = text.splitlines()
        assert first == "fits: needs 6.2 GB of 16.0 GB, 9.8 GB to spare"
        assert second == "llama Q4_K_M (llama): llama.gguf"
        assert third == "context 8192, KV cache f16, ubatch 512, flash attention on, for embedded"
        table = dict(line.rsplit(maxsplit=2)[:2] for line in rest if line.endswith(" GB"))
        assert table["KV cache"] == "1.074"
        assert table["weights"] == "4.913"
        assert "recurrent state" not in table
        assert "available: 16.0 GB, free on this machine now" in rest
        assert any(line.startswith("largest context that fits: ") for line in rest)
        assert "would fit" not in text

    def test_facts(self, estimate: Estimate) -> None:
        facts = estimate.facts(llama())
        assert facts["weights_bytes"] == LLAMA.weight_bytes("Q4_K_M")
        assert facts["kv_bytes"] == KV_BYTES
        assert facts["total_bytes"] == sum(facts[f"{part}_bytes"] for part in PARTS)
        assert facts["total_bytes"] == facts["low_bytes"] == facts["high_bytes"] == facts["required_bytes"]
        expected = {
            "fits": True,
            "available_bytes": 16_000_000_000,
            "bound_by": "machine",
            "device_bytes": 0,
            "device_free_bytes": None,
            "reclaimable_bytes": 0,
            "method": "header",
            "architecture": "llama",
            "model": "llama",
            "quantization": "Q4_K_M",
            "context_tokens": 8192,
            "parallel": 1,
            "cache_type_k": "f16",
            "cache_type_v": "f16",
            "ubatch": 512,
            "gpu_layers": 0,
            "flash_attention": True,
            "correction_factor": None,
            "notes": [],
            "ways": [],
        }
        assert {key: facts[key] for key in expected} == expected

    def test_that_does_not_fit(self, estimate: Estimate) -> None:
        path = llama()
        facts = estimate.facts(path, "--ctx", "32768", "--memory", "7")
        assert (estimate.status, facts["fits"], facts["bound_by"]) == (1, False, "max_memory_gb")
        ways = {way["change"]: way for way in facts["ways"]}
        context = f"context {facts['largest_context']}"
        assert list(ways) == ["KV cache q4_0", context, *[name for name in ways if "quantization" in name]]
        for change, options in (("KV cache q4_0", ["--cache-type-k", "q4_0", "--cache-type-v", "q4_0"]), (context, [])):
            tokens = "32768" if options else str(facts["largest_context"])
            changed = estimate.facts(path, "--ctx", tokens, "--memory", "7", *options)
            assert (estimate.status, changed["fits"]) == (0, True)
            assert changed["required_bytes"] == ways[change]["total_bytes"]
        text = estimate(path, "--ctx", "32768", "--memory", "7")
        assert text.startswith("does not fit: needs 9.4 GB of 7.0 GB, 2.4 GB too much\n")
        assert f"largest context that fits: {facts['largest_context']}" in text
        assert f"would fit with KV cache q4_0 (6.3 GB), or {context} (7.0 GB)" in text
        assert "the limit: --memory" in text

    def test_the_largest_context_is_the_largest(self, estimate: Estimate) -> None:
        path = llama()
        largest = estimate.facts(path, "--memory", "7")["largest_context"]
        estimate(path, "--memory", "7", "--ctx", str(largest + 256))
        assert estimate.status == 1

    def test_that_fits_by_no_means(self, estimate: Estimate) -> None:
        text = estimate(llama(quantization="Q2_K"), "--memory", "1")
        assert estimate.status == 1
        assert "largest context that fits: none" in text
        assert "no context, cache type or quantization known here makes it fit" in text

    def test_with_a_repacked_copy(self, estimate: Estimate) -> None:
        path = llama()
        before = estimate.facts(path)
        estimate.set("repacked_types", lambda: (("Q4_K", 8),))
        facts = estimate.facts(path)
        assert facts["repacked_bytes"] > 1_000_000_000
        assert facts["repacked_bytes"] == facts["reclaimable_bytes"]
        assert facts["required_bytes"] == before["required_bytes"]
        text = estimate(path)
        assert "without what the kernel can drop   6." in text
        assert "the kernel can drop 3.4 GB" in text

    def test_of_several_shards(self, estimate: Estimate) -> None:
        names = ["tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf"]
        for number, name in enumerate(names):
            Path(name).write_bytes(small_gguf(split=(number, 2)))
        for name in names:
            assert estimate.facts(name)["weights_bytes"] == 2 * 8192
        Path(names[1]).unlink()
        assert "'tiny-00002-of-00002.gguf' is not beside it" in estimate.refusal(names[0])

    def test_of_an_unknown_architecture(self, estimate: Estimate) -> None:
        keys = {"embedding_length": 2048, "block_count": 20, "attention.head_count": 8}
        metadata: dict[str, Value] = {"general.architecture": "novel"}
        metadata |= {f"novel.{key}": value for key, value in keys.items()}
        path = str(write_gguf(Path("novel.gguf"), metadata, [("blk.0.w", (2048, 204800), "Q8_0")]))
        facts = estimate.facts(path, "--memory", "0.6")
        assert (estimate.status, facts["fits"]) == (0, None)
        assert facts["low_bytes"] < 600_000_000 < facts["high_bytes"]
        text = estimate(path, "--memory", "0.6")
        assert text.startswith("may fit: needs 0.47")
        assert "note: the architecture 'novel' is not known here" in text
        assert "would surely fit with context" in text
        assert estimate(path).startswith("fits: needs 0.47")

    def test_whose_layers_are_not_described(self, estimate: Estimate) -> None:
        metadata: dict[str, Value] = {"general.architecture": "novel"}
        path = str(write_gguf(Path("novel.gguf"), metadata, [("blk.0.w", (2048, 204800), "Q8_0")]))
        facts = estimate.facts(path)
        assert (facts["fits"], facts["largest_context"]) == (True, None)
        assert "largest context" not in estimate(path)

    def test_whose_name_is_meant_for_the_terminal(self, estimate: Estimate) -> None:
        metadata = {"general.architecture": "llama", "general.name": "\x1b[31mred\nfits: needs nothing"}
        path = str(write_gguf(Path("evil.gguf"), metadata, [("blk.0.w", (32,), "F32")]))
        assert "\\x1b[31mred fits: needs nothing" in estimate(path)
        assert "\x1b" not in estimate.out

    def test_that_is_none(self, estimate: Estimate) -> None:
        Path("text.gguf").write_text("hello")
        assert "text.gguf is no usable GGUF file" in estimate.refusal("text.gguf", "--json")
        Path("folder.gguf").mkdir()
        assert "'folder.gguf' is a folder" in estimate.refusal("folder.gguf")
        assert "'" + "x" * 300 in estimate.refusal("x" * 300)


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "part", "factor"),
        [
            (["--ctx", "16384"], "kv_bytes", 2.0),
            (["--parallel", "2"], "kv_bytes", 1.0),
            (["--parallel", "2"], "output_bytes", 2.0),
            (["--parallel", "2", "--unified-kv"], "kv_bytes", 1.0),
            (["--cache-type-k", "q8_0"], "kv_bytes", (34 / 32 + 2) / 4),
            (["--cache-type-v", "q4_0"], "kv_bytes", (18 / 32 + 2) / 4),
            (["--ubatch", "1024"], "compute_bytes", 2.0),
        ],
        ids=str,
    )
    def test_change_a_part(self, estimate: Estimate, options: list[str], part: str, factor: float) -> None:
        path = llama()
        before, facts = estimate.facts(path), estimate.facts(path, *options)
        assert facts[part] == pytest.approx(before[part] * factor, rel=1e-6)

    def test_without_flash_attention(self, estimate: Estimate) -> None:
        path = llama()
        facts = estimate.facts(path, "--flash-attention", "off")
        assert facts["flash_attention"] is False
        assert facts["compute_bytes"] > 32 * 8192 * 512 * 4  # every head's scores

    def test_are_told(self, estimate: Estimate) -> None:
        options = ["--ctx", "4096", "--parallel", "4", "--unified-kv", "--cache-type-k", "q8_0", "--ubatch", "256"]
        facts = estimate.facts(llama(), *options, "--engine", "llama_cpp")
        told = {"context_tokens": 4096, "parallel": 4, "unified_kv": True, "cache_type_k": "q8_0", "ubatch": 256}
        assert {key: facts[key] for key in told} == told
        expected = (
            "context 4096, 4 slots that share it, KV cache q8_0/f16, ubatch 256, flash attention on, for llama_cpp"
        )
        assert expected in estimate("llama.gguf", *options, "--engine", "llama_cpp")
        assert "4 slots with a part of it each" in estimate("llama.gguf", "--parallel", "4")

    def test_of_the_configuration(self, estimate: Estimate) -> None:
        path = llama()
        arguments = ["-fa", "off", "-ub", "256"]
        section = {"default_ctx_size": 2048, "extra_args": arguments}
        limits = {"max_memory_gb": 6}
        estimate.configure({"backend": "llama_cpp", "llama_cpp": section, "limits": limits})
        facts = estimate.facts(path)
        assert (facts["engine"], facts["context_tokens"]) == ("llama_cpp", 2048)
        assert (facts["flash_attention"], facts["ubatch"], facts["available_bytes"]) == (False, 256, 6_000_000_000)
        facts = estimate.facts(path, "--ctx", "1024", "--cache-type-k", "f16", "--memory", "8", "--engine", "embedded")
        assert (facts["context_tokens"], facts["cache_type_k"]) == (1024, "f16")
        assert (facts["ubatch"], facts["available_bytes"]) == (512, 8_000_000_000)
        estimate.configure({"limits": {"max_memory_gb": 1_000_000}})
        assert estimate.facts(path)["bound_by"] == "machine"

    @pytest.mark.parametrize(("backend", "noted"), [("embedded", False), ("llama_cpp", False), ("ollama", True)])
    def test_another_backend_than_is_counted(self, estimate: Estimate, backend: str, *, noted: bool) -> None:
        estimate.configure({"backend": backend})
        note = f"counted for the engine embedded; the configured backend is {backend!r}"
        assert (note in estimate.facts(llama())["notes"]) == noted

    def test_beyond_the_training(self, estimate: Estimate) -> None:
        note = "context 131328 is more than the 131072 tokens that the model was trained for"
        facts = estimate.facts(llama(), "--ctx", "131328", "--memory", "15.5")
        assert (facts["context_tokens"], facts["notes"]) == (131328, [note])
        assert f"note: {note}" in estimate("llama.gguf", "--ctx", "131328")
        assert not estimate.facts("llama.gguf", "--ctx", "131328", "--parallel", "2")["notes"]

    @pytest.mark.parametrize(
        "options",
        [
            ["--ctx", "0"],
            ["--ctx", "many"],
            ["--parallel", "-1"],
            ["--ubatch", "0"],
            ["--gpu-layers", "-2"],
            ["--memory", "0"],
            ["--memory", "nan"],
            ["--cache-type-k", "q3"],
            ["--flash-attention", "maybe"],
            ["--engine", "ollama"],
        ],
        ids=" ".join,
    )
    def test_that_are_refused(self, options: list[str], estimate: Estimate, capsys: Output) -> None:
        with pytest.raises(SystemExit) as ended:
            estimate(llama(), *options)
        assert ended.value.code == 2
        assert f"argument {options[0]}: " in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (["--ctx", str(10**30)], f"--ctx {10**30} is more than any engine takes"),
            (["--gpu-layers", str(2**31)], "--gpu-layers 2147483648 is more than any engine takes"),
            (["--cache-type-v", "q8_0", "--flash-attention", "off"], "refuses a V cache of q8_0 without flash"),
            (["--revision", "main"], "--revision is for a file on the hub, and 'llama.gguf' is a file here"),
        ],
    )
    def test_that_can_not_be(self, estimate: Estimate, options: list[str], complaint: str) -> None:
        assert complaint in estimate.refusal(llama(), *options)

    def test_cache_types_are_those_of_the_core(self) -> None:
        assert set(cli._CACHE_TYPES) == set(CACHE_ELEMENT_BYTES)


class TestGpu:
    GPU = DeviceMemory(0, "Some GPU", 24_000_000_000, 20_000_000_000, unified=False)

    def test_takes_its_part(self, estimate: Estimate) -> None:
        path = llama()
        estimate.has_gpus(self.GPU)
        facts = estimate.facts(path, "--gpu-layers", "-1")
        assert facts["fits"]
        assert facts["device_free_bytes"] == 20_000_000_000
        assert facts["device_bytes"] > facts["required_bytes"] > 0
        assert facts["device_bytes"] + facts["required_bytes"] == facts["total_bytes"]
        text = estimate(path, "--gpu-layers", "-1")
        assert "on the GPU 6." in text.splitlines()[0]
        assert "all layers on Some GPU" in text
        assert text.splitlines()[4].split() == ["memory", "GPU", "both"]

    def test_that_is_too_small(self, estimate: Estimate) -> None:
        path = llama()
        estimate.has_gpus(DeviceMemory(0, "Small GPU", 4_000_000_000, 4_000_000_000, unified=False))
        facts = estimate.facts(path, "--gpu-layers", "33")
        assert (estimate.status, facts["fits"]) == (1, False)
        change = next(way["change"] for way in facts["ways"] if "layers" in way["change"])
        assert estimate.facts(path, "--gpu-layers", change.split()[0])["fits"]
        assert "GB too much" in estimate(path, "--gpu-layers", "33").splitlines()[0]

    def test_that_is_not_there(self, estimate: Estimate) -> None:
        path = llama()
        on_cpu, facts = estimate.facts(path), estimate.facts(path, "--gpu-layers", "20")
        assert facts == {**on_cpu, "notes": ["no GPU was found; counted for the CPU"]}

    def test_that_is_not_used(self, estimate: Estimate) -> None:
        estimate.has_gpus(self.GPU)
        assert estimate.facts(llama())["device_free_bytes"] is None


MODEL: dict[str, Any] = {
    "name": "Llama",
    "size": "8B",
    "files": {"Q3_K_M": "l-q3.gguf", "Q4_K_M": "l-q4.gguf", "Q8_0": "l-q8.gguf"},
}


class TestModelsFile:
    @pytest.fixture
    def listed(self, estimate: Estimate) -> Estimate:
        estimate.configure({}, MODEL)
        for quantization, name in MODEL["files"].items():
            llama(f"models/8B/{name}", quantization)
        return estimate

    def test_every_quantization(self, listed: Estimate) -> None:
        models = listed.facts("Llama", "--memory", "7")["models"]
        assert [(one["quantization"], one["fits"]) for one in models] == [
            ("Q3_K_M", True),
            ("Q4_K_M", True),
            ("Q8_0", False),
        ]
        assert listed.status == 0
        assert [one["weights_bytes"] for one in models] == [LLAMA.weight_bytes(name) for name in MODEL["files"]]
        text = listed("Llama", "--memory", "7")
        assert text.startswith("fits: 2 of 3 quantizations; the largest of them, Q4_K_M, needs 6.2 GB of 7.0 GB")
        rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("Q")}
        assert " ".join(rows["Q8_0"].split()) == "Q8_0 8.533 GB 1.074 GB 0.200 GB 9.8 GB none does not fit"
        assert max(map(len, text.splitlines())) <= 120

    def test_none_of_which_fits(self, listed: Estimate) -> None:
        text = listed("Llama", "--memory", "4")
        assert listed.status == 1
        assert text.startswith("does not fit: none of 3 quantizations; the smallest, Q3_K_M, needs 5.3 GB of 4.0 GB")

    def test_one(self, listed: Estimate) -> None:
        facts = listed.facts("Llama:q4_k_m")
        assert (facts["model"], facts["quantization"], facts["origin"]) == ("Llama", "Q4_K_M", "models/8B/l-q4.gguf")

    def test_real_figures_of_the_others_are_the_ways(self, listed: Estimate) -> None:
        needed = {q: listed.facts(f"Llama:{q}")["required_bytes"] for q in ("Q3_K_M", "Q4_K_M")}
        facts = listed.facts("Llama:Q8_0", "--memory", "7")
        expected = [
            {"change": f"quantization {q}", "total_bytes": needed[q], "about": False} for q in ("Q4_K_M", "Q3_K_M")
        ]
        assert [way for way in facts["ways"] if "quantization" in way["change"]] == expected
        assert listed.facts("Llama", "--memory", "7")["models"][2]["ways"] == facts["ways"]

    def test_on_a_gpu_the_ways_hold_both_memories(self, listed: Estimate) -> None:
        listed.has_gpus(DeviceMemory(0, "Small GPU", 8_000_000_000, 8_000_000_000, unified=False))
        needed = listed.facts("Llama:Q4_K_M", "--gpu-layers", "-1")["total_bytes"]
        ways = listed.facts("Llama:Q8_0", "--gpu-layers", "-1")["ways"]
        assert {"change": "quantization Q4_K_M", "total_bytes": needed, "about": False} in ways

    def test_all_are_compared_with_the_same_memory(self, listed: Estimate) -> None:
        there = iter([9_000_000_000, 1_000_000_000, 1_000_000_000])
        listed.set("available_memory", lambda limit_bytes: AvailableMemory(next(there), "machine", {}))
        models = listed.facts("Llama")["models"]
        assert [one["available_bytes"] for one in models] == [9_000_000_000] * 3

    def test_a_file_wins(self, listed: Estimate) -> None:
        llama("Llama", "Q2_K")
        assert listed.facts("Llama")["quantization"] == "Q2_K"

    def test_one_that_is_missing(self, listed: Estimate) -> None:
        Path("models/8B/l-q4.gguf").unlink()
        models = listed.facts("Llama")["models"]
        assert [one["total_bytes"] is None for one in models] == [False, True, False]
        assert "names no source" in models[1]["problem"]
        assert "Q4_K_M is not known: Llama Q4_K_M: models/8B/l-q4.gguf is missing" in listed("Llama")
        assert "names no source" in listed.refusal("Llama:Q4_K_M")

    def test_one_of_another_quantization(self, listed: Estimate) -> None:
        llama("models/8B/l-q4.gguf", "Q8_0")
        assert "its header says Q8_0" in listed.refusal("Llama:Q4_K_M")

    def test_by_the_size_of_a_wheel(self, estimate: Estimate) -> None:
        facts = estimate.facts("SmolLM2-135M-Instruct")  # as it is shipped
        assert facts["method"] == "file_size"
        assert facts["total_bytes"] == int(98_362_432 * 1.2)
        assert (facts["largest_context"], facts["ways"]) == (None, [])
        text = estimate("SmolLM2-135M-Instruct")
        assert text.startswith("may fit: needs about 0.118 GB of 16.0 GB")
        assert "note: from the file's size × 1.2" in text

    def test_a_link_to_nowhere(self, estimate: Estimate) -> None:
        Path("dangling.gguf").symlink_to("gone.gguf")
        assert "dangling.gguf is a link to gone.gguf, which is not there" in estimate.refusal("dangling.gguf")

    def test_of_unknown_size(self, estimate: Estimate) -> None:
        source = {"wheel": "some-model==1", "member": "x.gguf"}
        estimate.configure({}, {"name": "Tiny", "size": "1M", "files": {"Q4_1": "x.gguf"}, "source": source})
        assert "Tiny Q4_1: nobody tells its size before it is downloaded" in estimate.refusal("Tiny")

    @pytest.mark.parametrize(
        ("what", "complaint"),
        [
            ("Lama", "neither a file 'Lama' nor a model of that name in configs/models.yaml (did you mean 'Llama'?)"),
            ("Lama:Q8_0", "(did you mean 'Llama:Q8_0'?)"),
            ("Llama:Q8_1", "Llama has no quantization 'Q8_1' (did you mean 'Q8_0'?); it has Q3_K_M, Q4_K_M, Q8_0"),
            ("models/8B/l-q5.gguf", "(did you mean 'models/8B/l-q"),
            ("models/8B", "'models/8B' is a folder (did you mean 'models/8B/l-q8.gguf'?); name one GGUF file"),
            ("Served:Q8_0", "Served has no file, only a name on a server that brings it"),
            ("", "there is neither a file ''"),
        ],
    )
    def test_no_such_thing(self, listed: Estimate, what: str, complaint: str) -> None:
        listed.configure({}, MODEL, {"name": "Served", "size": "8B", "served": {"Q8_0": "served:q8"}})
        assert complaint in listed.refusal(what)

    def test_a_revision_of_it(self, listed: Estimate) -> None:
        assert "leave it out" in listed.refusal("Llama", "--revision", "main")


class TestHub:
    REPO = "somebody/llama-GGUF"

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
        from huggingface_hub import close_session, constants

        path = write_shape(tmp_path_factory.mktemp("hub") / "l.gguf", LLAMA, "Q8_0", vocabulary="none")
        with path.open("rb") as file:
            remote = HubFile(file.read(1_000_000), size_bytes=path.stat().st_size, sha256="0" * 64)
        with Hub({self.REPO: HubRepo({"sub/l-q8.gguf": remote}, {"main": COMMIT, "v2": COMMIT})}) as server:
            monkeypatch.setenv("HF_ENDPOINT", server.url)
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
            monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
            monkeypatch.setattr(transfer, "_LONGEST_PAUSE_SECONDS", 0.001)
            close_session()
            yield server
            close_session()

    def test_a_file(self, estimate: Estimate, hub: Hub) -> None:
        facts = estimate.facts(f"{self.REPO}/sub/l-q8.gguf")
        assert facts["origin"] == f"sub/l-q8.gguf of {self.REPO} on Hugging Face"
        assert hub.bytes_sent < 10_000_000 < facts["weights_bytes"]
        assert not list(Path().rglob("*.gguf"))
        same = estimate.facts(llama("l-q8.gguf", "Q8_0"))
        assert {**facts, "origin": ""} == {**same, "origin": ""}

    def test_a_revision(self, estimate: Estimate, hub: Hub) -> None:
        assert estimate.facts(f"{self.REPO}/sub/l-q8.gguf", "--revision", "v2")["fits"]
        complaint = estimate.refusal(f"{self.REPO}/sub/l-q8.gguf", "--revision", "v3")
        assert f"no repository '{self.REPO}' with a revision 'v3'" in complaint

    @pytest.mark.parametrize(
        ("what", "complaint"),
        [
            (f"{REPO}/sub/l-q9.gguf", "holds no file 'sub/l-q9.gguf' (did you mean 'sub/l-q8.gguf'?)"),
            ("nobody/nothing/l-q8.gguf", "no file 'nobody/nothing/l-q8.gguf' is here, and the hub has no repository"),
        ],
    )
    def test_no_such_file(self, estimate: Estimate, hub: Hub, what: str, complaint: str) -> None:
        assert complaint in estimate.refusal(what)

    def test_that_can_not_be_asked(self, estimate: Estimate, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert "HF_HUB_OFFLINE is set" in estimate.refusal(f"{self.REPO}/sub/l-q8.gguf")
        assert not hub.requests

    def test_a_folder_of_ours_is_not_asked_for(self, estimate: Estimate, hub: Hub) -> None:
        Path("models/8B").mkdir(parents=True)
        estimate.refusal("models/8B/l-q8.gguf")
        assert not hub.requests

    def test_of_the_models_file(self, estimate: Estimate, hub: Hub) -> None:
        files = {"Q8_0": "sub/l-q8.gguf", "Q4_K_M": "sub/l-q4.gguf"}
        estimate.configure({}, {"name": "Llama", "size": "8B", "repo": self.REPO, "files": files})
        first, second = estimate.facts("Llama")["models"]
        assert first["problem"] is None
        assert first["weights_bytes"] == LLAMA.weight_bytes("Q8_0")
        assert first["origin"] == f"{self.REPO} on Hugging Face"
        assert "holds no file 'sub/l-q4.gguf'" in second["problem"]


class TestEarlierRuns:
    @pytest.fixture
    def remember(self, here: Path) -> Callable[..., None]:
        def cell(observed: float, **changes: Any) -> None:
            predicted = 6_000_000_000
            memory = MemoryRecord(
                method="header", predicted_bytes=predicted, observed_peak_bytes=int(predicted * observed)
            )
            names = {"model": "llama", "quantization": "Q4_K_M", "backend": "embedded"}
            machine = host.fingerprint(host.describe_hardware())
            folder = RunFolder(here / "results", "20260101T000000Z-0001")
            folder.create({})
            folder.append_cell(cell_record(**{**names, "host": machine, "memory": memory, **changes}))

        return cell

    def test_correct_it(self, estimate: Estimate, remember: Callable[..., None]) -> None:
        path = llama()
        before = estimate.facts(path)
        remember(1.1)
        facts = estimate.facts(path)
        assert (facts["correction_factor"], facts["correction_samples"]) == (pytest.approx(1.1), 1)
        assert facts["total_bytes"] == before["total_bytes"]
        assert facts["required_bytes"] == pytest.approx(before["required_bytes"] * 1.1, abs=2)
        assert facts["largest_context"] < before["largest_context"]
        text = estimate(path)
        assert "corrected by +10.0 %   6.8" in text
        assert "corrected by what 1 earlier run on this machine showed" in text

    def test_correct_the_ways_too(self, estimate: Estimate, remember: Callable[..., None]) -> None:
        estimate.configure({}, MODEL)
        for quantization, name in MODEL["files"].items():
            llama(f"models/8B/{name}", quantization)
        remember(1.1)
        needed = estimate.facts("Llama:Q4_K_M")["required_bytes"]
        ways = estimate.facts("Llama:Q8_0", "--memory", "7")["ways"]
        assert {"change": "quantization Q4_K_M", "total_bytes": needed, "about": False} in ways

    def test_of_this_machine_and_engine_only(self, estimate: Estimate, remember: Callable[..., None]) -> None:
        path = llama()
        remember(1.1, host="0" * 16)
        assert estimate.facts(path)["correction_factor"] is None
        Path("results/20260101T000000Z-0001").rename("results/20260101T000000Z-0000")
        remember(1.1)
        assert estimate.facts(path, "--engine", "llama_cpp")["correction_factor"] is None


class TestUsage:
    def test_help(self, capsys: Output) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["estimate", "--help"])
        assert ended.value.code == 0
        assert "example:\n  llmbench estimate models/" in capsys.readouterr().out

    def test_loads_neither_pytest_nor_http(self, here: Path) -> None:
        code = (
            f"import sys\nfrom pytest_llmbench.cli import main\nmain(['estimate', {llama()!r}])\n"
            "assert not {'pytest', '_pytest', 'pluggy', 'huggingface_hub', 'requests', 'numpy'} & set(sys.modules)"
        )
        ended = subprocess.run([sys.executable, "-c", code], cwd=here, check=False, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, "")
