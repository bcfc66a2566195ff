"""A model small enough for every test, of which one of two variants fits."""

from __future__ import annotations

from tests.ggufs.attention_models import dense
from tests.ggufs.shape import write_shape
from tests.plugin.bench import Bench

SMALL, LARGE = 1024, 131072
TINY = dense("llama", 2, 256, 4, 2, 512, 320, LARGE, tokenizer="llama")


def put_tiny_model(bench: Bench, backend: str) -> None:
    """Its file in ``model_dir``, two contexts as variants, and a limit of memory that only the small one keeps."""
    bench.config |= {
        "backend": backend,
        "limits": {"max_memory_gb": 0.1},
        "variants": [{"id": "small", "ctx_size": SMALL}, {"id": "large", "ctx_size": LARGE}],
    }
    bench.models = {
        "models": [{"name": "tiny", "size": "1B", "files": {"Q4_0": "tiny.gguf"}}],
        "full_mode_quants": ["Q4_0"],
    }
    folder = bench.path / "models" / "1B"
    folder.mkdir(parents=True)
    write_shape(folder / "tiny.gguf", TINY, "Q4_0", vocabulary="none")
