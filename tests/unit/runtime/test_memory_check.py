"""A prediction, compared with the memory there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.correction import Observation
from pytest_llmbench.core.gguf import GgufHeader, read_header
from pytest_llmbench.core.quantities import gigabytes
from pytest_llmbench.runtime import memory_check
from pytest_llmbench.runtime.available import AvailableMemory, DeviceMemory
from pytest_llmbench.runtime.host import repacked_types_of
from pytest_llmbench.runtime.memory_check import MemoryCheck, Prediction, settings_of
from tests.ggufs.shapes import SHAPES, write_shape

GB = 1_000_000_000


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    path = tmp_path_factory.mktemp("shapes") / "llama.gguf"
    return read_header(write_shape(path, SHAPES["llama-3.1-8b"], "Q4_K_M", vocabulary="none"))


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 30 GB free, no GPU, and a CPU that repacks nothing."""

    def available(limit_bytes: int | None = None) -> AvailableMemory:
        if limit_bytes is not None and limit_bytes < 30 * GB:
            return AvailableMemory(limit_bytes, "max_memory_gb", {})
        return AvailableMemory(30 * GB, "machine", {})

    monkeypatch.setattr(memory_check, "available_memory", available)
    monkeypatch.setattr(memory_check, "devices", list)
    monkeypatch.setattr(memory_check, "repacked_types", tuple)


def spec(**fields: Any) -> ServerSpec:
    return ServerSpec("llama_cpp", "m", **{"model_file": "x", "context_size": 8192, **fields})


def predict(
    header: GgufHeader | None, *, check: MemoryCheck | None = None, size: int | None = None, **fields: Any
) -> Prediction:
    prediction = (check or MemoryCheck()).predict(spec(**fields), "m", "Q4_K_M", header, size)
    assert prediction is not None
    return prediction


def test_fits(llama: GgufHeader) -> None:
    prediction = predict(llama)
    assert prediction.verdict == "fits"
    assert 6 * GB < prediction.required_bytes < 7 * GB
    record = prediction.record()
    assert record.predicted_bytes == sum(record.parts.values()) == prediction.required_bytes
    assert (record.available_bytes, record.bound_by, record.method) == (30 * GB, "machine", "header")
    assert record.observed_peak_bytes is None


def test_reason_holds_needed_available_and_the_part_that_is_too_big(llama: GgufHeader) -> None:
    prediction = predict(llama, check=MemoryCheck(14 * GB), context_size=131072)
    assert prediction.verdict == "does_not_fit"
    reason = prediction.reason("Q4_K_M")
    assert reason.code == "does_not_fit"
    assert reason.message.startswith(
        "needs 22.4 GB of memory with a context of 131072 tokens (KV cache 17.2 GB, weights 4.9 GB, compute 0.264 GB); "
    )
    assert "; 14.0 GB may be used (limits.max_memory_gb); largest part: KV cache; " in reason.message
    assert "it would fit with KV cache q4_0 (10.1 GB), or context 67328 (14.0 GB)" in reason.message
    evidence = reason.evidence
    assert evidence["required_bytes"] == prediction.required_bytes
    assert evidence["available_bytes"] == 14 * GB
    assert evidence["largest_part"] == "KV cache"
    assert evidence["kv_bytes"] == 17_179_869_184
    assert evidence["largest_context"] == 67328


def test_weights_that_are_copied_are_named_once(llama: GgufHeader, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = predict(llama, context_size=131072)
    monkeypatch.setattr(memory_check, "repacked_types", lambda: (("Q4_K", 8),))
    copied = predict(llama, context_size=131072)
    assert copied.record().parts["repacked_bytes"] > 3 * GB
    assert copied.required_bytes == plain.required_bytes
    assert copied.breakdown() == "KV cache 17.2 GB, weights 4.9 GB, compute 0.264 GB"


def unknown(header: GgufHeader) -> GgufHeader:
    metadata = {key.replace("llama.", "newest."): value for key, value in header.metadata.items()}
    return replace(header, metadata={**metadata, "general.architecture": "newest"})


def test_an_unknown_architecture_needs_at_least_its_weights(llama: GgufHeader) -> None:
    prediction = predict(unknown(llama), check=MemoryCheck(4 * GB))
    record = prediction.record()
    assert record.predicted_low_bytes is not None
    assert record.predicted_high_bytes is not None
    assert record.required_bytes == record.predicted_low_bytes < record.predicted_high_bytes
    assert prediction.verdict == "does_not_fit"
    assert prediction.reason("Q4_K_M").message.startswith(f"needs at least {gigabytes(prediction.required_bytes)} of ")


def test_a_header_that_names_no_layers(llama: GgufHeader) -> None:
    header = replace(llama, metadata={"general.architecture": "llama"})
    prediction = predict(header, check=MemoryCheck(4 * GB))
    assert prediction.verdict == "does_not_fit"
    assert prediction.largest_context is None


@pytest.mark.parametrize("kind", ["embedded", "llama_cpp"])
def test_what_a_kind_needs_and_taught(llama: GgufHeader, kind: str) -> None:
    """An engine has its own overhead, and learns from its own runs alone."""
    total = predict(llama).estimate.total_bytes
    runs = [Observation("embedded", "m", "Q4_K_M", total, int(total * 1.1))]
    asked = ServerSpec(kind, "m", model_file="x", context_size=8192)
    prediction = MemoryCheck(None, lambda: runs).predict(asked, "m", "Q4_K_M", llama, None)
    assert prediction is not None
    assert (prediction.correction is not None) == (kind == "embedded")
    assert (prediction.estimate.total_bytes > total) == (kind == "embedded")


def test_without_a_context_the_model_has_its_own(llama: GgufHeader) -> None:
    assert predict(llama, context_size=None).estimate == predict(llama, context_size=131072).estimate


def test_nothing_makes_it_fit(llama: GgufHeader) -> None:
    message = predict(llama, check=MemoryCheck(GB)).reason("Q4_K_M").message
    assert message.endswith("; no context, cache type or quantization known here makes it fit")


def test_founding_rule_before_a_wheel_is_there() -> None:
    prediction = predict(None, size=10 * GB, check=MemoryCheck(11 * GB))
    assert prediction.estimate.method == "file_size"
    assert prediction.verdict == "does_not_fit"
    assert prediction.largest_context is None
    assert prediction.ways("Q4_K_M") == ()
    message = prediction.reason("Q4_K_M").message
    assert message.startswith("needs 12.0 GB of memory")
    assert "known here" not in message  # nothing was tried: a context can not be computed without a header


def test_nothing_is_known() -> None:
    assert MemoryCheck().predict(spec(), "m", "Q4_K_M", None, None) is None


def test_earlier_runs_correct_it(llama: GgufHeader) -> None:
    plain = predict(llama)
    runs = [Observation("llama_cpp", "m", "Q4_K_M", plain.estimate.total_bytes, int(plain.estimate.total_bytes * 1.1))]
    corrected = predict(llama, check=MemoryCheck(None, lambda: runs))
    record = corrected.record()
    assert record.correction_factor == pytest.approx(1.1)
    assert record.correction_samples == 1
    assert record.predicted_bytes == plain.estimate.total_bytes  # both are shown
    assert record.required_bytes == pytest.approx(plain.required_bytes * 1.1, rel=1e-6)
    assert corrected.breakdown() == f"{plain.breakdown()}, by earlier runs × 1.10"


def test_earlier_runs_say_nothing_about_the_founding_rule() -> None:
    runs = [Observation("llama_cpp", "m", "Q4_K_M", 12 * GB, 13 * GB)]
    assert predict(None, size=10 * GB, check=MemoryCheck(None, lambda: runs)).correction is None


class TestDevices:
    def test_gpus_count_together_and_beside_the_host(self, llama: GgufHeader, monkeypatch: pytest.MonkeyPatch) -> None:
        gpus = [DeviceMemory(index, "GPU", 3 * GB, 2 * GB, unified=False) for index in range(2)]
        monkeypatch.setattr(memory_check, "devices", lambda: gpus)
        prediction = predict(llama, gpu_layers=-1)
        assert prediction.room.device_bytes == 4 * GB
        assert prediction.verdict == "does_not_fit"
        reason = prediction.reason("Q4_K_M")
        assert reason.message.startswith("needs 0.346 GB of main memory and 6.3 GB of the GPU's with a context of ")
        assert "; 4.0 GB are free on the GPU; " in reason.message
        assert "may be used" not in reason.message  # main memory is not what is short
        assert " layers on the GPU (" in reason.message
        assert reason.evidence["device_free_bytes"] == 4 * GB
        assert prediction.record().device_free_bytes == 4 * GB

    def test_the_largest_part_is_that_of_the_memory_that_is_short(
        self, llama: GgufHeader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpu = DeviceMemory(0, "GPU", 9 * GB, 9 * GB, unified=False)
        monkeypatch.setattr(memory_check, "devices", lambda: [gpu])
        on_gpu = predict(llama, gpu_layers=-1, context_size=131072)
        assert on_gpu.estimate.host.kv_bytes == 0
        assert on_gpu.too_big == "KV cache"
        fits_there = predict(llama, gpu_layers=-1, context_size=16384, check=MemoryCheck(1))
        assert fits_there.too_big == "weights"  # of the host: the embedding of tokens

    def test_earlier_runs_correct_the_devices_part(self, llama: GgufHeader, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = DeviceMemory(0, "GPU", 24 * GB, 24 * GB, unified=False)
        monkeypatch.setattr(memory_check, "devices", lambda: [gpu])
        plain = predict(llama, gpu_layers=-1)
        total = plain.estimate.total_bytes
        runs = [Observation("llama_cpp", "m", "Q4_K_M", total, int(total * 1.1))]
        corrected = predict(llama, gpu_layers=-1, check=MemoryCheck(None, lambda: runs))
        assert corrected.device_bytes == pytest.approx(plain.device_bytes * 1.1, rel=1e-6)

    def test_one_unified_gpu_among_others_is_what_counts(
        self, llama: GgufHeader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpus = [DeviceMemory(index, "GPU", 3 * GB, 2 * GB, unified=index == 1) for index in range(2)]
        monkeypatch.setattr(memory_check, "devices", lambda: gpus)
        assert predict(llama, gpu_layers=-1).device == gpus[1]

    def test_unified_memory_is_the_machines(self, llama: GgufHeader, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = DeviceMemory(0, "Orin", 60 * GB, 50 * GB, unified=True)
        monkeypatch.setattr(memory_check, "devices", lambda: [gpu])
        prediction = predict(llama, gpu_layers=-1)
        assert prediction.settings.device == "unified"
        assert prediction.room.device_bytes is None
        assert prediction.device_bytes == 0

    @pytest.mark.parametrize(("gpu_layers", "placed"), [(None, False), (10, True)])
    def test_ollama_places_layers_itself(
        self, llama: GgufHeader, monkeypatch: pytest.MonkeyPatch, gpu_layers: int | None, *, placed: bool
    ) -> None:
        gpu = DeviceMemory(0, "GPU", 80 * GB, 80 * GB, unified=False)
        monkeypatch.setattr(memory_check, "devices", lambda: [gpu])
        ollama = ServerSpec("ollama", "m", model_file="x", context_size=131072, gpu_layers=gpu_layers)
        prediction = MemoryCheck(6 * GB).predict(ollama, "m", "Q4_K_M", llama, None)
        assert prediction is not None
        assert prediction.estimate.placed == placed
        assert prediction.verdict == ("does_not_fit" if placed else "fits")

    def test_no_layers_no_question(self, llama: GgufHeader, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory_check, "devices", lambda: pytest.fail("a GPU was asked for"))
        assert predict(llama).device is None


class TestArguments:
    def test_types_of_the_cache_are_those_of_the_spec(self) -> None:
        settings = settings_of(spec(cache_type_k="q8_0", cache_type_v="q4_0"), None)
        assert (settings.cache_type_k, settings.cache_type_v) == ("q8_0", "q4_0")

    @pytest.mark.parametrize(
        ("arguments", "fast"),
        [(("--flash-attn", word), word not in {"off", "0", "false"}) for word in ("on", "auto", "off", "0", "false")],
    )
    def test_flash_attention_by_its_long_name(self, arguments: tuple[str, ...], *, fast: bool) -> None:
        assert settings_of(spec(extra_args=arguments), None).flash_attention == fast

    def test_what_changes_memory_is_obeyed(self) -> None:
        arguments = ("-ub", "128", "-fa", "off", "--threads", "3")
        settings = settings_of(spec(extra_args=arguments), None)
        assert settings.ubatch_tokens == 128
        assert not settings.flash_attention

    def test_nonsense_is_left_to_the_binary(self) -> None:
        assert settings_of(spec(extra_args=("-ub", "many", "-ub", "0", "-ub")), None) == settings_of(spec(), None)


@pytest.mark.parametrize(
    ("machine", "flags", "names"),
    [
        ("x86_64", {"avx2"}, {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}),
        ("x86_64", {"avx2", "avx512f"}, {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4", "Q2_K"}),
        ("x86_64", {"sse4_2"}, set()),
        ("aarch64", {"asimddp"}, {"Q4_K", "Q5_K", "Q6_K", "Q4_0", "IQ4_NL", "MXFP4", "Q8_0", "Q1_0"}),
        ("aarch64", {"asimd"}, set()),
        ("riscv64", {"v"}, set()),
    ],
)
def test_types_that_a_cpu_repacks(machine: str, flags: set[str], names: set[str]) -> None:
    assert {name for name, _ in repacked_types_of(machine, frozenset(flags))} == names


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 bytes"), (999_999, "999999 bytes"), (1_000_000, "0.001 GB"), (14 * 2**30, "15.0 GB"), (GB, "1.0 GB")],
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert gigabytes(size_bytes) == text
