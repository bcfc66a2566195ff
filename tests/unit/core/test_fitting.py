"""What fits, and what would make it fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmbench.core.fitting import Room, largest_context, verdict, ways_to_fit
from pytest_llmbench.core.gguf import GgufHeader, read_header
from pytest_llmbench.core.memory import Device, ServingSettings, estimate_from_size, estimate_memory
from tests.ggufs.shapes import SHAPES, write_shape

GB = 1_000_000_000
AT_128K = ServingSettings(131072)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    return header_of("llama-3.1-8b", tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    return header_of("mamba-2.8b", tmp_path_factory.mktemp("shapes"))


def header_of(name: str, folder: Path) -> GgufHeader:
    return read_header(write_shape(folder / name, SHAPES[name], "Q4_K_M", vocabulary="none"))


def unknown(header: GgufHeader) -> GgufHeader:
    metadata = {key.replace("llama.", "newest."): value for key, value in header.metadata.items()}
    return replace(header, metadata={**metadata, "general.architecture": "newest"})


def test_fits_exactly_or_not_by_a_byte(llama: GgufHeader) -> None:
    estimate = estimate_memory(llama, AT_128K)
    assert verdict(estimate, Room(estimate.total_bytes)) == "fits"
    assert verdict(estimate, Room(estimate.total_bytes - 1)) == "does_not_fit"


def test_what_can_be_dropped_need_not_be_there(llama: GgufHeader) -> None:
    estimate = estimate_memory(llama, replace(AT_128K, repacked_types=(("Q4_K", 8),)))
    assert estimate.reclaimable_bytes > 3 * GB
    assert estimate.most.required_host_bytes() == estimate.total_bytes - estimate.reclaimable_bytes
    assert verdict(estimate, Room(estimate.total_bytes - estimate.reclaimable_bytes)) == "fits"


def test_a_correction_moves_the_verdict(llama: GgufHeader) -> None:
    estimate = estimate_memory(llama, AT_128K)
    room = Room(int(estimate.total_bytes * 1.05))
    assert verdict(estimate, room) == "fits"
    assert verdict(estimate, room, factor=1.1) == "does_not_fit"


def test_a_correction_moves_the_devices_part_too(llama: GgufHeader) -> None:
    estimate = estimate_memory(llama, replace(AT_128K, gpu_layers=16, device="gpu"))
    room = Room(10**12, int(estimate.device.total_bytes * 1.05))
    assert verdict(estimate, room) == "fits"
    assert verdict(estimate, room, factor=1.1) == "does_not_fit"


def test_between_the_bounds_nobody_knows(llama: GgufHeader) -> None:
    estimate = estimate_memory(unknown(llama), AT_128K)
    assert verdict(estimate, Room(estimate.least.total_bytes)) == "uncertain"
    assert verdict(estimate, Room(estimate.least.total_bytes - 1)) == "does_not_fit"
    assert verdict(estimate, Room(estimate.most.total_bytes)) == "fits"


def test_either_memory_can_be_too_small(llama: GgufHeader) -> None:
    estimate = estimate_memory(llama, replace(AT_128K, gpu_layers=16, device="gpu"))
    host, device = estimate.host.total_bytes, estimate.device.total_bytes
    assert verdict(estimate, Room(host, device)) == "fits"
    assert verdict(estimate, Room(host - 1, device)) == "does_not_fit"
    assert verdict(estimate, Room(host, device - 1)) == "does_not_fit"


@settings(max_examples=30, deadline=None)
@given(gigabytes=st.integers(5, 24))
def test_largest_context_is_the_largest(llama: GgufHeader, gigabytes: int) -> None:
    room = Room(gigabytes * GB)
    largest = largest_context(llama, AT_128K, room)

    def outcome(tokens: int) -> str:
        return verdict(estimate_memory(llama, replace(AT_128K, context_tokens=tokens)), room)

    assert largest == 0 or outcome(largest) == "fits"
    assert largest == 131072 or outcome(largest + 256) == "does_not_fit"


def test_largest_context_ends_where_training_did(llama: GgufHeader) -> None:
    assert largest_context(llama, AT_128K, Room(10**15)) == 131072
    assert largest_context(llama, replace(AT_128K, parallel=4), Room(10**15)) == 4 * 131072


def test_trained_context_need_not_be_a_multiple(llama: GgufHeader) -> None:
    header = replace(llama, metadata={**llama.metadata, "llama.context_length": 1000})
    assert largest_context(header, AT_128K, Room(10**15)) == 1000


def test_a_header_without_a_trained_context_ends_somewhere(llama: GgufHeader) -> None:
    metadata = {key: value for key, value in llama.metadata.items() if key != "llama.context_length"}
    assert largest_context(replace(llama, metadata=metadata), AT_128K, Room(10**18)) == 1 << 24


def test_no_context_fits(llama: GgufHeader) -> None:
    assert largest_context(llama, AT_128K, Room(2 * GB)) == 0


def test_ways_to_fit_do_fit(llama: GgufHeader) -> None:
    room = Room(14 * GB)
    ways = ways_to_fit(llama, AT_128K, room)
    assert [way.change for way in ways][:2] == ["KV cache q4_0", f"context {largest_context(llama, AT_128K, room)}"]
    assert all(way.total_bytes <= room.host_bytes for way in ways)


def test_a_smaller_quantization_is_a_way_where_weights_are_too_big(llama: GgufHeader) -> None:
    ways = ways_to_fit(llama, ServingSettings(4096), Room(5 * GB))
    assert [(way.change, way.about) for way in ways] == [("quantization Q3_K_M", True)]


def test_size_of_a_smaller_quantization(llama: GgufHeader) -> None:
    settings_ = replace(ServingSettings(4096), repacked_types=(("Q4_K", 8),))
    estimate = estimate_memory(llama, settings_)
    expected = estimate.most.required_host_bytes() - int(llama.tensor_bytes * (1 - 0.290 / 0.306))
    (way,) = [way for way in ways_to_fit(llama, settings_, Room(expected + 2)) if way.about]
    assert way.change == "quantization Q4_0"
    assert way.total_bytes == pytest.approx(expected, abs=2)
    unnamed = replace(llama, metadata={**llama.metadata, "general.file_type": None})
    from_f16 = ways_to_fit(unnamed, settings_, Room(expected), quantization="F16")
    assert [way.change for way in from_f16 if way.about] == [
        "quantization Q8_0"
    ]  # the largest that fits, and only that


@pytest.mark.parametrize(("file_type", "named"), [(32, None), (1, "f16-mine")], ids=["BF16", "a name of one's own"])
def test_quantization_as_the_header_says(llama: GgufHeader, file_type: int, named: str | None) -> None:
    header = replace(llama, metadata={**llama.metadata, "general.file_type": file_type})
    assert [way for way in ways_to_fit(header, ServingSettings(4096), Room(5 * GB), quantization=named) if way.about]


def test_a_smaller_quantization_has_to_fit_where_it_is_placed(llama: GgufHeader) -> None:
    on_gpu = ServingSettings(8192, gpu_layers=-1, device="gpu")
    changes = [way.change for way in ways_to_fit(llama, on_gpu, Room(30 * GB, 4 * GB))]
    assert not [change for change in changes if change.startswith("quantization Q4")]


def test_a_cache_is_quantized_in_blocks_of_whole_heads(llama: GgufHeader) -> None:
    odd = replace(
        llama, metadata={**llama.metadata, "llama.attention.key_length": 80, "llama.attention.value_length": 80}
    )
    ways = ways_to_fit(odd, AT_128K, Room(14 * GB))
    assert ways
    assert not [way for way in ways if "KV cache" in way.change]
    assert ways_to_fit(odd, replace(AT_128K, parallel=64), Room(int(6.0 * GB)), quantization="?") == ()


def test_a_guess_on_the_gpu_refuses_nothing(llama: GgufHeader) -> None:
    estimate = estimate_memory(unknown(llama), replace(AT_128K, gpu_layers=-1, device="gpu"))
    assert estimate.device.total_bytes > 20 * GB
    assert verdict(estimate, Room(64 * GB, 12 * GB)) == "uncertain"
    assert verdict(estimate, Room(64 * GB, 3 * GB)) == "does_not_fit"  # not even the weights do


def test_where_the_parts_go_is_not_known_before_the_header_is() -> None:
    assert verdict(estimate_from_size(40 * GB, gpu=True), Room(16 * GB, 80 * GB)) == "uncertain"
    assert verdict(estimate_from_size(40 * GB), Room(16 * GB)) == "does_not_fit"
    assert verdict(estimate_from_size(40 * GB, gpu=True), Room(16 * GB, 30 * GB)) == "does_not_fit"


def test_size_alone_promises_nothing() -> None:
    assert verdict(estimate_from_size(GB), Room(100 * GB)) == "uncertain"


def test_a_context_beyond_the_trained_one_is_what_has_to_change(llama: GgufHeader) -> None:
    ways = ways_to_fit(llama, ServingSettings(2 * 131072), Room(14 * GB))
    assert [way.change for way in ways] == [f"context {largest_context(llama, AT_128K, Room(14 * GB))}"]
    assert ways_to_fit(llama, ServingSettings(2 * 131072), Room(GB)) == ()


def test_copied_weights_are_not_taken_off_the_lower_bound(llama: GgufHeader) -> None:
    estimate = estimate_memory(unknown(llama), replace(AT_128K, repacked_types=(("Q4_K", 8),)))
    assert estimate.least.required_host_bytes() >= llama.tensor_bytes


def test_what_fits_needs_no_other_context(llama: GgufHeader) -> None:
    assert not [way for way in ways_to_fit(llama, ServingSettings(4096), Room(100 * GB)) if "context" in way.change]


def test_a_smaller_cache_needs_flash_attention(llama: GgufHeader) -> None:
    """Without it llama.cpp refuses quantized values (src/llama-context.cpp), so the way is counted with it."""
    slow = replace(AT_128K, flash_attention=False)
    fast = estimate_memory(llama, replace(AT_128K, cache_type_k="q4_0", cache_type_v="q4_0"))
    ways = ways_to_fit(llama, slow, Room(fast.total_bytes))
    assert (ways[0].change, ways[0].total_bytes) == ("KV cache q4_0 with flash attention", fast.total_bytes)
    (both,) = ways_to_fit(llama, replace(slow, parallel=64), Room(int(6.7 * GB)), quantization="?")
    assert both.change == "KV cache q8_0 and context 16384"
    chosen = replace(AT_128K, context_tokens=16384, parallel=64, cache_type_k="q8_0", cache_type_v="q8_0")
    assert both.total_bytes == estimate_memory(llama, chosen).total_bytes


def test_a_cache_that_is_small_already_is_no_way(llama: GgufHeader) -> None:
    small = replace(AT_128K, cache_type_k="q4_0", cache_type_v="q4_0")
    changes = [way.change for way in ways_to_fit(llama, small, Room(9 * GB))]
    assert changes
    assert "KV cache q4_0" not in changes
    assert "KV cache q8_0" not in changes
    assert not [way for way in ways_to_fit(llama, small, Room(100 * GB)) if "KV cache" in way.change]


def test_two_changes_where_none_alone_does(llama: GgufHeader) -> None:
    (way,) = ways_to_fit(llama, replace(AT_128K, parallel=64), Room(int(6.7 * GB)), quantization="?")
    assert way.change.startswith("KV cache q8_0 and context ")


def test_nothing_helps(llama: GgufHeader) -> None:
    assert ways_to_fit(llama, AT_128K, Room(GB)) == ()


def test_a_recurrent_model_has_no_cache_to_shrink(mamba: GgufHeader) -> None:
    assert ways_to_fit(mamba, ServingSettings(4096), Room(GB), quantization="?") == ()


def test_fewer_layers_for_a_small_gpu(llama: GgufHeader) -> None:
    settings_ = ServingSettings(8192, gpu_layers=-1, device="gpu")
    ways = ways_to_fit(llama, settings_, Room(30 * GB, 4 * GB))
    (layers,) = [way for way in ways if "layers" in way.change]
    count = int(layers.change.split()[0])
    assert 0 < count < 33
    assert layers.change == f"{count} of 33 layers on the GPU"
    assert verdict(estimate_memory(llama, replace(settings_, gpu_layers=count)), Room(30 * GB, 4 * GB)) == "fits"
    fewer = estimate_memory(llama, replace(settings_, gpu_layers=count))
    assert layers.total_bytes == fewer.total_bytes  # of both memories
    more = estimate_memory(llama, replace(settings_, gpu_layers=count + 1))
    assert verdict(more, Room(30 * GB, 4 * GB)) == "does_not_fit"


def test_as_many_layers_as_now_are_no_way(llama: GgufHeader) -> None:
    settings_ = ServingSettings(8192, gpu_layers=10, device="gpu")
    estimate = estimate_memory(llama, settings_)
    room = Room(estimate.host.total_bytes, estimate.device.total_bytes)
    assert not [way for way in ways_to_fit(llama, settings_, room) if "layers" in way.change]


@pytest.mark.parametrize("device", ["cpu", "unified"])
def test_layers_are_no_way_without_memory_of_their_own(llama: GgufHeader, device: Device) -> None:
    settings_ = ServingSettings(8192, gpu_layers=5, device=device)
    assert not [way for way in ways_to_fit(llama, settings_, Room(30 * GB, 10 * GB)) if "layers" in way.change]
