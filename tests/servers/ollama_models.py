"""What the Ollama-speaking test server has installed: models, their headers, uploads and pulls.

Part of :mod:`tests.servers.ollama_server`, which is a test server and not Ollama.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, BinaryIO

from tests.servers.ollama_engine import OllamaError

Json = dict[str, Any]
_FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"}
_FILE_TYPES |= {12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K"}


@dataclass(frozen=True)
class OllamaModel:
    """A model of the test server.

    Attributes:
        path: the GGUF file; None for the word engine, which needs none.
        thinking_pieces: how many first pieces of an answer are thinking; 0: the model can not think.
        trained_context: overrides what the file's header says.
        rendered_chat: Ollama renders the chat itself, as it does for models of its library: then overlong chats are
            cut and repetition ends a chat, too. Otherwise the engine does, as for an imported GGUF.
        parameters: default options, as a Modelfile's PARAMETER lines.
        system: the default system message.
    """

    path: Path | None = None
    thinking_pieces: int = 0
    trained_context: int | None = None
    rendered_chat: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""

    @property
    def header(self) -> dict[str, Any]:
        """What ``/api/show`` calls ``model_info``."""
        if self.path is not None:
            return read_header(self.path)
        info = {"general.architecture": "words", "general.file_type": 1, "general.parameter_count": 1_000_000}
        return info if self.trained_context is None else {**info, "words.context_length": self.trained_context}

    @property
    def largest_context(self) -> int | None:
        """The context it was trained for."""
        if self.trained_context is not None:
            return self.trained_context
        try:
            header = self.header
        except (OSError, ValueError, struct.error):  # the load will fail, and say why
            return None
        found = header.get(f"{header.get('general.architecture')}.context_length")
        return None if found is None else int(found)

    @property
    def file_bytes(self) -> int:
        return 1_000_000 if self.path is None else self.path.stat().st_size

    def details(self) -> dict[str, Any]:
        """What lists and ``/api/show`` call ``details``."""
        header = self.header
        family = str(header.get("general.architecture", ""))
        return {
            "parent_model": "",
            "format": "gguf",
            "family": family,
            "families": [family],
            "parameter_size": _human_number(int(header.get("general.parameter_count", 0))),
            "quantization_level": _FILE_TYPES.get(int(header.get("general.file_type", -1)), "unknown"),
        }


def _human_number(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return str(number)


def full_name(name: str) -> str:
    """The key of a model: Ollama adds the tag ``latest`` and takes no notice of case."""
    short = name.strip().casefold().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return short if ":" in short.rpartition("/")[2] else f"{short}:latest"


class Library:
    """What is installed, and what can be: lists, uploads, pulls. Uploads are gone when it is closed."""

    def __init__(
        self, models: dict[str, OllamaModel], available: dict[str, OllamaModel], pull_step_seconds: float
    ) -> None:
        self.models = {full_name(name): model for name, model in models.items()}
        self.available = {full_name(name): model for name, model in available.items()}
        self._pull_step_seconds = pull_step_seconds
        self._since = time.time()
        self._folder = tempfile.TemporaryDirectory(prefix="ollama-test-server-blobs-")

    def close(self) -> None:
        """Remove the uploads."""
        self._folder.cleanup()

    def tags(self, _: Json) -> Json:
        return {"models": [self._listed(name, model) for name, model in self.models.items()]}

    def openai_models(self, _: Json) -> Json:
        listed = [
            {"id": name, "object": "model", "created": int(self._since), "owned_by": "library"} for name in self.models
        ]
        return {"object": "list", "data": listed}

    def show(self, body: Json) -> Json:
        name = str(body.get("model") or body.get("name") or "")
        if not name:
            raise OllamaError(400, "model is required")
        model = self.existing(name, full_name(name))
        parameters = "\n".join(f"{key:<30} {value}" for key, value in model.parameters.items())
        shown = {
            "modelfile": f"# Made by a test server\nFROM {model.path or name}\n",
            "parameters": parameters,
            "template": "{{ .Prompt }}",
            "system": model.system,
            "details": model.details(),
            "model_info": model.header,
            "capabilities": ["completion", *(["thinking"] if model.thinking_pieces else [])],
            "modified_at": utc(self._since),
        }
        return without_zeros(shown, "parameters", "system")

    def delete(self, body: Json) -> None:
        """Forget a model; whether it is loaded is not for us to know."""
        name = str(body.get("model") or body.get("name") or "")
        self.existing(name)
        del self.models[full_name(name)]

    def existing(self, name: str, shown_as: str | None = None) -> OllamaModel:
        model = self.models.get(full_name(name)) if name else None
        if model is None:
            raise OllamaError(404, f"model '{shown_as or name}' not found")
        return model

    def _listed(self, name: str, model: OllamaModel) -> Json:
        return {
            "name": name,
            "model": name,
            "modified_at": utc(self._since),
            "size": model.file_bytes,
            "digest": manifest_digest(name, model),
            "details": model.details(),
        }

    def has_blob(self, digest: str) -> bool:
        return self._blob(digest).is_file()

    def receive_blob(self, digest: str, content: Iterator[bytes]) -> None:
        """Keep an uploaded file, if it is what its name says."""
        found = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=self._folder.name, delete=False) as file:
            for piece in content:
                found.update(piece)
                file.write(piece)
        if f"sha256:{found.hexdigest()}" != digest:
            Path(file.name).unlink()
            raise OllamaError(400, f'digest mismatch, expected "{digest}", got "sha256:{found.hexdigest()}"')
        Path(file.name).rename(self._blob(digest))

    def pull(self, body: Json) -> Iterator[Json]:
        """Progress as of a download in two layers; each has a digest, and a count that is left out while it is 0."""
        name = full_name(str(body.get("model") or body.get("name") or ""))
        yield {"status": "pulling manifest"}
        model = self.models.get(name) or self.available.get(name)
        if model is None:
            raise OllamaError(500, "pull model manifest: file does not exist")
        for layer, total in (("model", model.file_bytes), ("config", 487)):
            digest = hashlib.sha256(f"{name} {layer}".encode()).hexdigest()
            progress = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": total}
            for step in [4] if name in self.models else range(5):
                time.sleep(self._pull_step_seconds)
                yield without_zeros({**progress, "completed": total * step // 4}, "completed")
        for status in ("verifying sha256 digest", "writing manifest"):
            yield {"status": status}
        self.models[name] = model
        yield {"status": "success"}

    def create(self, body: Json) -> Iterator[Json]:
        """Import an uploaded GGUF file, or give a model another name and other defaults."""
        name, files = full_name(str(body.get("model") or body.get("name") or "")), body.get("files")
        if name.startswith(":"):
            raise OllamaError(400, "invalid model name")
        if body.get("quantize"):
            raise OllamaError(501, "this test server does not quantize")
        if body.get("from"):
            model = self.existing(str(body["from"]))
        elif files:
            yield {"status": "parsing GGUF"}
            digest = str(next(iter(files.values())))
            path = self._blob(digest)
            if not path.is_file():
                raise OllamaError(500, f"open {path}: no such file or directory")
            try:
                read_header(path)
            except ValueError as exc:
                raise OllamaError(400, str(exc)) from exc
            model = OllamaModel(path)
            yield {"status": f"using existing layer {digest}"}
        else:
            raise OllamaError(400, "neither 'from' or 'files' was specified")
        parameters = {**model.parameters, **(body.get("parameters") or {})}
        model = replace(model, parameters=parameters, system=body.get("system") or model.system)
        yield {"status": "writing manifest"}
        self.models[name] = model
        yield {"status": "success"}

    def _blob(self, digest: str) -> Path:
        kind, _, value = digest.partition(":")
        if kind != "sha256" or len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise OllamaError(400, "invalid digest format")
        return Path(self._folder.name) / f"sha256-{value}"


def without_zeros(value: Json, *names: str) -> Json:
    """As Go's ``omitempty`` does for these fields: nothing, zero and empty are left out."""
    return {key: item for key, item in value.items() if item or key not in names}


def utc(timestamp: float) -> str:
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=timestamp)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def manifest_digest(name: str, model: OllamaModel) -> str:
    return hashlib.sha256(f"{name} {model.path} {model.file_bytes}".encode()).hexdigest()


_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_header(path: Path) -> dict[str, Any]:
    """Scalars of a GGUF file's header, and the count of its parameters. Arrays (the vocabulary) are passed over.

    Raises:
        ValueError: it is no GGUF file.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("supplied file was not in GGUF format")
        _, tensors, entries = struct.unpack("<IQQ", file.read(20))
        header: dict[str, Any] = {}
        for _ in range(entries):
            name = _string(file)
            value = _value(file, _number(file, "I"))
            if value is not None and name not in {"general.name", "tokenizer.chat_template"}:
                header[name] = value
        parameters = 0
        for _ in range(tensors):
            _string(file)
            parameters += math.prod(_number(file, "Q") for _ in range(_number(file, "I")))
            file.seek(12, os.SEEK_CUR)  # its type and offset
        return {**header, "general.parameter_count": parameters}


def _number(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "Q")).decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _number(file, _SCALARS[kind])
    inner, count = _number(file, "I"), _number(file, "Q")
    if inner in _SCALARS:
        file.seek(count * struct.calcsize(f"<{_SCALARS[inner]}"), os.SEEK_CUR)
        return None
    for _ in range(count):
        if inner == _STRING:
            file.seek(_number(file, "Q"), os.SEEK_CUR)
        else:
            _value(file, inner)
    return None
