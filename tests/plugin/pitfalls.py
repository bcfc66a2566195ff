"""What the tests of the pitfalls share: suites on servers of several kinds, and what a run said of its one cell."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.plugin.bench import Bench
from tests.servers.fake_openai import FakeOpenAI
from tests.servers.ollama_models import Json
from tests.servers.ollama_server import OllamaModel, OllamaServer

ROOT = Path(__file__).parents[2]
Q4_K_M, Q8_0 = 15, 7  # numbers of general.file_type
PROPS: dict[str, Any] = {
    "default_generation_settings": {"n_ctx": 4096},
    "total_slots": 1,
    "model_alias": "fake",
    "model_ftype": "Q4_K - Medium",
}


def letters(text: str) -> list[int]:
    """A tokenizer unlike any other: every second character is a token."""
    return [ord(letter) for letter in text[::2]]


@dataclass
class Meddled(OllamaServer):
    """The Ollama-speaking test server, with a hand between the client and it.

    Attributes:
        meddle: gets the number of each request that generates, from 0 for the proof, and its JSON; returns what the
            server is to see.
    """

    meddle: Callable[[int, Json], Json] = lambda number, body: body

    def __post_init__(self) -> None:
        self._generated = 0

    def generate(self, body: Json) -> Any:
        if not body.get("prompt"):  # a load
            return super().generate(body)
        self._generated += 1
        return super().generate(self.meddle(self._generated - 1, body))


def ollama(**fields: Any) -> Meddled:
    """One model of words, named ``tiny``."""
    return Meddled(**{"models": {"tiny": OllamaModel()}, "unload_seconds": 0.0, **fields})


def on_ollama(bench: Bench, server: OllamaServer, *, model: str = "tiny", context: int = 2048) -> None:
    """Have the suite measure a model on the Ollama-speaking test server."""
    bench.config["backend"] = "ollama"
    bench.config["ollama"] = {"base_url": server.url, "default_ctx_size": context}
    bench.models["models"] = [{"name": "tiny", "size": "1B", "served": {"F16": model}}]
    bench.models["full_mode_quants"] = ["F16"]


def like_llama_cpp(fake: FakeOpenAI, **changes: Any) -> None:
    """Have a server pass for llama.cpp's, with a tokenizer of its own."""
    fake.props = {**PROPS, **changes}
    fake.tokenizer = letters


def cell_of(bench: Bench, *arguments: str) -> dict[str, Any]:
    """Run the suite; the record of its one cell."""
    bench.run("suites/", *arguments)
    (cell,) = bench.cells()
    return cell


def code_of(cell: dict[str, Any]) -> tuple[str, str | None]:
    """A cell's status and the code of its reason."""
    return cell["status"], cell["reason"] and cell["reason"]["code"]


def assert_measured(cell: dict[str, Any]) -> None:
    """Measured, and no doubt but those of a noisy machine."""
    assert code_of(cell) == ("passed", None), cell["reason"]
    assert set(cell["flags"]) <= {"imprecise", "drift", "client_late", "server_timing_mismatch", "outliers"}


def samples_of(bench: Bench) -> list[dict[str, Any]]:
    return [record for record in bench.requests() if record["phase"] == "sample"]


def gguf(path: Path, file_type: int) -> Path:
    """A GGUF file with a header and nothing else."""
    numbers = {"general.file_type": file_type, "llama.block_count": 2}
    entries = [struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"]
    entries += [struct.pack("<Q", len(key)) + key.encode() + struct.pack("<II", 4, n) for key, n in numbers.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries))
    return path


# A program that describes itself as llama-server does, ends at what it does not know, and answers with words.
_LLAMA_SERVER = """#!{python}
import os, sys, threading
sys.path.insert(0, {root!r})
flags = {flags!r}
arguments = sys.argv[1:]
if arguments == ["--help"]:
    print("----- common params -----\\n")
    for names, value in flags:
        print((", ".join(names) + " " + value).ljust(40) + "  about it")
    print("  (env: LLAMA_API_KEY)")
    sys.exit()
if arguments == ["--version"]:
    print("version: 1 (abc)")
    sys.exit()
known, given = {{name: (names[0], value) for names, value in flags for name in names}}, {{}}
while arguments:
    flag = arguments.pop(0)
    if flag not in known:
        sys.exit(f"error: invalid argument: {{flag}}")
    name, value = known[flag]
    given[name] = arguments.pop(0) if value else ""
open({seen!r}, "w").write(repr(given))
from tests.plugin.pitfalls import PROPS, letters
from tests.servers.fake_openai import FakeOpenAI
context = {{"n_ctx": {context!r} or int(given["-c"])}}
props = {{**PROPS, "default_generation_settings": context, "model_alias": given["--alias"]}}
with FakeOpenAI(
    models=(given["--alias"],), port=int(given["--port"]), key=os.environ["LLAMA_API_KEY"], props=props,
    tokenizer=letters,
):
    threading.Event().wait(100)
"""
_FLAGS = (
    (("-m", "--model"), "FNAME"),
    (("--alias",), "STRING"),
    (("--host",), "HOST"),
    (("--port",), "PORT"),
    (("-np", "--parallel"), "N"),
    (("-fit", "--fit"), "[on|off]"),
    (("--cache-ram",), "N"),
    (("-ctxcp", "--ctx-checkpoints"), "N"),
    (("--offline",), ""),
    (("--no-webui",), ""),
    (("-t", "--threads"), "N"),
    (("-ngl", "--gpu-layers"), "N"),
    (("-c", "--ctx-size"), "N"),
    (("-ctk", "--cache-type-k"), "TYPE"),
    (("-ctv", "--cache-type-v"), "TYPE"),
)


def llama_server(
    bench: Bench, *, without: tuple[str, ...] = (), context: int | None = None, file_type: int = Q4_K_M
) -> Path:
    """Have the suite start a program in llama-server's place, on a file with nothing but a header.

    Args:
        without: options that it does not have.
        context: the tokens it has room for, whatever it is asked for.

    Returns:
        The file into which it writes the arguments it was started with.
    """
    seen = bench.path / "arguments.txt"
    flags = tuple(flag for flag in _FLAGS if flag[0][0] not in without)
    text = _LLAMA_SERVER.format(python=sys.executable, root=str(ROOT), flags=flags, context=context, seen=str(seen))
    bench.write("llama-server", text).chmod(0o755)
    gguf(bench.path / "models" / "1B" / "tiny.gguf", file_type)
    bench.config["backend"] = "llama_cpp"
    bench.config["llama_cpp"] = {"server_path": "./llama-server", "default_ctx_size": 1024}
    bench.models["models"] = [{"name": "tiny", "size": "1B", "files": {"Q4_K_M": "tiny.gguf"}}]
    return seen


def started_by_command(bench: Bench, program: str) -> None:
    """Have the suite start a Python program as its server; it gets ``host`` and ``port``."""
    head = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nhost, port = sys.argv[1], int(sys.argv[2])\n"
    bench.write("serve.py", head + program)
    bench.config["openai"] = {"command": [sys.executable, "serve.py", "{host}", "{port}"]}
    bench.config["limits"] = {"max_load_time": 20.0}


def long_story(bench: Bench, words: int) -> str:
    """Have the suite tell a story of the user's own."""
    text = " ".join(f"chapter{number}" for number in range(words))
    bench.write("data/prompts/story.txt", text)
    return text
