"""The ``llama_cpp`` kind, with a small program that describes itself as a llama-server does.

The real one is started in ``tests/integration/test_llama_server.py``.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llmbench.backends import checks, llama_cpp
from pytest_llmbench.backends.base import StartRequest
from pytest_llmbench.backends.llama_binary import LlamaBinary, describe_binary, find_program, parse_help
from pytest_llmbench.backends.llama_common import LlamaServer, check_properties, clamp_gpu_layers
from pytest_llmbench.backends.llama_cpp import LlamaCppBackend
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.gguf import GgufHeader
from pytest_llmbench.errors import CellError, ServerError

HELP = """----- common params -----

-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
                                        (env: LLAMA_ARG_THREADS)
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to enable KV cache offloading (default: enabled)
--perf, --no-perf                       whether to enable internal libllama performance timings (default:
                                        false)
-ctk,  --cache-type-k TYPE              KV cache data type for K
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
                                        override tensor buffer type
--control-vector-layer-range START END
                                        layer range to apply the control vector(s) to, start and end inclusive
-m,    --model FNAME                    model path to load
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM, either an exact number,
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max or
                                        --spec-ngram-mod-n-max
                                        (env: LLAMA_ARG_DRAFT_MAX)
-np,   --parallel N                     number of server slots (default: -1, -1 = auto)
-fit,  --fit [on|off]                   whether to adjust unset arguments to fit in device memory
--offline                               Offline mode: forces use of cache, prevents network access
--ui,  --webui, --no-ui, --no-webui     whether to enable the Web UI (default: enabled)
-a,    --alias STRING                   set model name aliases, comma-separated (to be used by API)
--host HOST                             IP addresses to listen on, comma-separated
--port PORT                             port to listen (default: 8080)
--api-key KEY                           API key to use for authentication, multiple keys can be provided as a
                                        (env: LLAMA_API_KEY)
"""

# How the program misbehaves is the first word of the model's alias.
PROGRAM = """#!{python}
import os, sys, time
if "--help" in sys.argv:
    open(os.path.join({folder!r}, "asked"), "a").write("x")
    print({help!r})
    sys.exit(0)
if "--version" in sys.argv:
    print("version: 9999 (abcdef)\\nbuilt with care", file=sys.stderr)
    sys.exit(0)
sys.path.insert(0, {root!r})
from tests.unit.backends import routes as module
value = lambda flag: sys.argv[sys.argv.index(flag) + 1]
alias, port, key = value("--alias"), int(value("--port")), os.environ["LLAMA_API_KEY"]
print(*sys.argv, "NO" if "LLAMA_ARG_THREADS" not in os.environ else "YES", "threads-in-environment", file=sys.stderr)
how = alias.partition("_")[0]
if how == "nogpu":
    print("warning: no usable GPU found, --gpu-layers option will be ignored", file=sys.stderr)
if how == "dies":
    sys.exit("error loading model: tensor 'x' not found")
if how == "taken" and not os.path.exists("tried"):
    open("tried", "x")
    sys.exit("E srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1")
class Fixed(module.ThreadingHTTPServer):
    def __init__(self, address, handler):
        super().__init__(("127.0.0.1", port), handler)
module.ThreadingHTTPServer = Fixed
props = {{"default_generation_settings": {{"n_ctx": int(value("-c"))}}, "total_slots": 2 if how == "slots" else 1}}
table = {{"GET /health": (200, {{}}), "GET /props": (200, {{**props, "model_alias": alias}})}}
completion = module.completion(model=alias)
table["POST /completion"] = lambda body: os._exit(3) if how == "fragile" else (200, completion)
class Open(module.Routes):
    def __getattribute__(self, name):  # the health check needs no key
        open_route = name == "key" and self.requests and self.requests[-1][1] == "/health"
        return None if open_route or (name == "key" and how == "open") else super().__getattribute__(name)
with Open(table, key):
    time.sleep(60)
"""


def gguf_bytes(blocks: int = 30, file_type: int = 3) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    entries = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    entries += [
        text(key) + struct.pack("<II", 4, value)
        for key, value in (("llama.block_count", blocks), ("general.file_type", file_type))
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries)


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    root = str(Path(__file__).parents[3])
    text = PROGRAM.format(python=sys.executable, help=HELP, root=root, folder=str(tmp_path))
    return write_program(tmp_path / "bin" / "llama-server", text)


def start(tmp_path: Path, label: str = "good_Q4_1", quantization: str | None = "Q4_1", **fields: Any) -> LlamaServer:
    model = tmp_path / "m.gguf"
    model.write_bytes(gguf_bytes())
    given = {"server_path": "./bin/llama-server", "context_size": 512, "threads": 1, "max_load_seconds": 20.0}
    spec = ServerSpec("llama_cpp", label, model_file="1B/m.gguf", **{**given, **fields})
    server = LlamaCppBackend().start(StartRequest(spec, model, tmp_path / "logs" / "x", quantization, tmp_path))
    assert isinstance(server, LlamaServer)
    return server


def refused(tmp_path: Path, label: str = "good_Q4_1", **fields: Any) -> CellError:
    with pytest.raises(CellError) as caught:
        start(tmp_path, label, **fields)
    left = [child for child in psutil.Process(os.getpid()).children() if "--alias" in child.cmdline()]
    assert not left
    return caught.value


# ---------------------------------------------------------------- the program


def test_the_options_of_a_help_text() -> None:
    options = parse_help(HELP)
    values = {flag: options[flag].values for flag in ("-t", "--threads", "-fa", "-ot", "--alias", "-np")}
    assert values == dict.fromkeys(values, 1)
    without = {flag: options[flag].values for flag in ("--perf", "--no-kv-offload", "--offline", "--no-webui")}
    assert without == dict.fromkeys(without, 0)
    assert options["--control-vector-layer-range"].values == 2
    assert options["-nkvo"].flags == ("-kvo", "--kv-offload", "-nkvo", "--no-kv-offload")
    assert options["--draft-n"].removed == "use --spec-draft-n-max or --spec-ngram-mod-n-max"
    assert "----- common params -----" not in options


def test_a_text_that_is_no_help_has_no_options() -> None:
    assert parse_help("") == {}
    assert parse_help("usage: x\n  -a  indented\nmore - text") == {}


@pytest.fixture
def binary() -> LlamaBinary:
    return LlamaBinary(Path("/bin/llama-server"), "9999", parse_help(HELP), key_from_environment=True)


def test_only_known_flags_are_passed_and_the_others_named(binary: LlamaBinary) -> None:
    arguments, notes = binary.keep_known(
        [["-np", "1"], ["-x", "1"], ["--offline"], ["--gone|--no-ui"], ["--draft", "2"]]
    )
    assert arguments == ["-np", "1", "--offline", "--no-ui"]
    assert notes == ("this llama-server (9999) knows no -x 1, --draft 2; left out",)
    assert binary.keep_known([["--offline"]]) == (["--offline"], ())


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--flash-attn", "on"],
        ["-ot", "-x=CPU", "--no-perf"],
        ["--control-vector-layer-range", "-1", "2", "--offline"],
        ["--flash_attn", "on"],
    ],
)
def test_extra_arguments_that_the_program_takes(binary: LlamaBinary, extra: list[str]) -> None:
    binary.check_extra(extra, {})


@pytest.mark.parametrize(
    ("extra", "code", "words"),
    [
        (["--flash-atn", "on"], "unknown_flag", "knows no '--flash-atn'; did you mean --flash-attn"),
        (["on"], "unknown_flag", "knows no 'on'; see llama-server --help"),
        (["--offline", "5"], "unknown_flag", "knows no '5'"),
        (["--draft", "5"], "unknown_flag", "it was removed: use --spec-draft-n-max or --spec-ngram-mod-n-max"),
        (["--flash-attn=on"], "unknown_flag", "did you mean --flash-attn"),
        (["-fa"], "unknown_flag", "-fa needs a value behind it"),
        (["--control-vector-layer-range", "1"], "unknown_flag", "needs a value"),
        (["--port", "1"], "reserved_flag", "--port: it is chosen for each start"),
        (["-a", "x"], "reserved_flag", "-a: it is chosen for each start"),
        (["-t", "8"], "reserved_flag", "-t: write default_threads, or threads in a variant"),
    ],
)
def test_extra_arguments_that_would_end_or_belie_it(
    binary: LlamaBinary, extra: list[str], code: str, words: str
) -> None:
    with pytest.raises(ServerError) as caught:
        binary.check_extra(extra, llama_cpp._RESERVED)
    assert caught.value.code == code
    assert words in caught.value.message


def test_a_program_is_asked_once_until_it_changes(program: Path, tmp_path: Path) -> None:
    first = describe_binary(program)
    assert first.version == "9999 (abcdef)"
    assert first.key_from_environment
    assert describe_binary(program) is first
    assert (tmp_path / "asked").read_text() == "x"
    program.write_text(program.read_text() + "# another build\n")
    assert describe_binary(program) is not first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#!/bin/sh\necho hello\n", "--help shows no --model and --port; is it a llama-server?"),
        ("#!/bin/sh\necho broken library; exit 127\n", "ends with status 127: broken library"),
        ("\x7fELF nonsense", "can not be run: Exec format error; was it built for this machine?"),
    ],
)
def test_a_program_that_is_no_llama_server(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ServerError) as caught:
        describe_binary(write_program(tmp_path / "x", text))
    assert caught.value.code == "engine_unusable"
    assert words in caught.value.message


def test_where_a_program_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = write_program(tmp_path / "bin" / "llama-server", "#!/bin/sh\n")
    assert find_program("./bin/llama-server", tmp_path, "k") == program
    assert find_program("bin/llama-server", tmp_path, "k") == program
    assert find_program(str(program), None, "k") == program
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_program("~/bin/llama-server", Path("/elsewhere"), "k") == program
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_program("llama-server", Path("/elsewhere"), "k") == program
    with pytest.raises(ServerError) as caught:
        find_program("./llama-server", tmp_path, "the.key")
    assert caught.value.code == "engine_missing"
    assert caught.value.message == (
        f"./llama-server ({tmp_path / 'llama-server'}) does not exist; {program} is on PATH: write the.key: "
        "llama-server, or use backend: embedded, which brings its engine along"
    )


def test_a_program_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerError, match=r"is not on PATH; point the\.key at a llama-server"):
        find_program("llama-server", tmp_path, "the.key")
    path = write_program(tmp_path / "llama-server", "x")
    path.chmod(stat.S_IRUSR)
    if not os.access(path, os.X_OK):
        with pytest.raises(ServerError, match=r"is not executable; chmod \+x it"):
            find_program("./llama-server", tmp_path, "the.key")


# ---------------------------------------------------------------- what both ways to start have in common


@pytest.mark.parametrize(
    ("asked", "blocks", "layers", "noted"),
    [(None, 30, 0, False), (0, 30, 0, False), (31, 30, 31, False), (32, 30, 31, True), (-1, 30, 31, False)],
)
def test_layers_on_the_gpu_are_those_the_model_has(asked: int | None, blocks: int, layers: int, noted: bool) -> None:
    header = GgufHeader(3, {"general.architecture": "llama", "llama.block_count": blocks}, (), 100, 96)
    found, notes = clamp_gpu_layers(asked, header)
    assert found == layers
    assert notes == ((f"gpu_layers: {asked} were asked for, the model has {layers}",) if noted else ())


def test_layers_of_a_model_that_does_not_count_them() -> None:
    assert clamp_gpu_layers(99, GgufHeader(3, {}, (), 100, 96)) == (99, ())


@pytest.mark.parametrize("props", [None, [], {}, {"default_generation_settings": {"n_ctx": "many"}}])
def test_a_server_that_does_not_describe_itself(props: Any) -> None:
    with pytest.raises(ServerError) as caught:
        check_properties(ServerSpec("llama_cpp", "x"), props)
    assert caught.value.code == "server_unhealthy"


# ---------------------------------------------------------------- starts


def test_a_server_is_started_pinned_and_stopped(tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_THREADS", "7")
    server = start(tmp_path, gpu_layers=99, cache_type_k="q8_0", cache_type_v="q8_0", extra_args=("-fa", "on"))
    try:
        pid, key = server.info.pid, server.endpoint.api_key
        assert pid is not None
        assert key is not None
        command = psutil.Process(pid).cmdline()[2:]  # behind the interpreter and the script
        port = server.endpoint.base_url.rpartition(":")[2]
        assert " ".join(command) == (
            f"-m {tmp_path / 'm.gguf'} --alias good_Q4_1 --host 127.0.0.1 -np 1 -fit off --offline --no-webui -t 1 "
            f"-ngl 31 -c 512 -ctk q8_0 -fa on --port {port}"
        )
        assert key not in " ".join(command)
        assert server.notes == (
            "gpu_layers: 99 were asked for, the model has 31",
            "this llama-server (9999 (abcdef)) knows no --cache-ram 0, -ctxcp 0, -ctv q8_0; left out",
            "environment variables are ignored: LLAMA_ARG_THREADS; write them into extra_args",
        )
        assert server.flags == ()
        assert server.info.version == "llama-server 9999 (abcdef)"
        assert server.info.args["gpu_layers"] == 31
        assert server.info.args["extra_args"] == "-fa on"
        assert (server.info.context_size, server.endpoint.protocol) == (512, "llama_cpp")
        assert server.endpoint.capabilities.missing_notes() == ()
        assert server.info.load_seconds is not None
        assert server.identity() == f"{pid}@{psutil.Process(pid).create_time():.2f}"
        assert "NO threads-in-environment" in (tmp_path / "logs" / "x_stderr.log").read_text()
    finally:
        server.stop()
    assert not psutil.pid_exists(pid)
    assert not server.alive
    assert server.death().code == "server_died"


def test_a_server_without_a_gpu_says_so(tmp_path: Path, program: Path) -> None:
    server = start(tmp_path, "nogpu_Q4_1", gpu_layers=5)
    server.stop()
    assert server.flags == ("partial_gpu_offload",)
    assert any("found no GPU it can use" in note for note in server.notes)


def test_without_layers_on_the_gpu_none_is_missed(tmp_path: Path, program: Path) -> None:
    server = start(tmp_path, "nogpu_Q4_1", gpu_layers=0)
    server.stop()
    assert server.flags == ()


def test_a_port_that_was_taken_meanwhile_costs_one_more_try(tmp_path: Path, program: Path) -> None:
    start(tmp_path, "taken_Q4_1").stop()
    assert (tmp_path / "tried").exists()


@pytest.mark.parametrize(
    ("label", "fields", "code", "words"),
    [
        ("dies_Q4_1", {}, "server_start_failed", "exit status 1): error loading model: tensor 'x' not found"),
        ("fragile_Q4_1", {}, "server_died", "ended while it gave its first answer (exit status 3)"),
        ("slots_Q4_1", {}, "server_mismatch", "the server has 2 slots"),
        ("open_Q4_1", {}, "server_mismatch", "answers without our key, so it is not the server we started"),
        ("good_Q4_1", {"quantization": "Q8_0"}, "wrong_quantization", "is listed as Q8_0, but its header says Q4_1"),
        ("good_Q4_1", {"extra_args": ("--nonsense",)}, "unknown_flag", "knows no '--nonsense'"),
        ("good_Q4_1", {"server_path": "./nowhere"}, "engine_missing", "point llama_cpp.server_path at a llama-server"),
    ],
)
def test_a_start_that_fails(
    tmp_path: Path, program: Path, label: str, fields: dict[str, Any], code: str, words: str
) -> None:
    error = refused(tmp_path, label, **fields)
    assert error.code == code
    assert words in error.message


def test_a_port_that_is_always_taken_is_told(tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_GLANCE_SECONDS", 0.2)  # who has the port is silent
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(llama_cpp, "free_port", lambda: taken.getsockname()[1])
        error = refused(tmp_path)
    assert error.code == "server_start_failed"
    assert "Address already in use" in error.message
