"""Model × quantization × variant: which combinations there are, in which order, and what each needs."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llmbench.core.cell import Cell, ServerSpec, cell_id, parse_model_size, quantization_rank, safe_name
from pytest_llmbench.core.config import Config, LlamaCppConfig, ModelEntry, Models, Variant
from pytest_llmbench.core.validation import Loaded
from pytest_llmbench.core.yaml_source import nearest


@dataclass(frozen=True, slots=True)
class Combination:
    """One row of the matrix, before a profile makes cells of it."""

    id: str
    model: ModelEntry
    quantization: str
    variant: Variant | None
    rank: int


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of server reads of the configuration.

    Attributes:
        from_file: it runs a model's file (``files``).
        by_name: it knows models by a name of its own (``served``). Of both, the name comes first.
        variant_keys: what a variant may tell it.
    """

    from_file: bool
    by_name: bool
    variant_keys: frozenset[str]


_OF_AN_ENGINE = frozenset({"ctx_size", "threads", "gpu_layers", "cache_type_k", "cache_type_v"})
_OF_A_BINARY = _OF_AN_ENGINE | {"server_path", "extra_args"}
_OF_A_SERVICE = frozenset({"ctx_size", "base_url"})
_KINDS = {
    "embedded": Kind(from_file=True, by_name=False, variant_keys=_OF_AN_ENGINE),
    "llama_cpp": Kind(from_file=True, by_name=False, variant_keys=_OF_A_BINARY),
    "ollama": Kind(from_file=True, by_name=True, variant_keys=_OF_AN_ENGINE | {"base_url"}),
    "openai": Kind(from_file=False, by_name=True, variant_keys=_OF_A_SERVICE),
}
# Kinds that users register: those that start a server on a file, and those whose servers bring the model.
_STARTED = Kind(from_file=True, by_name=False, variant_keys=_OF_A_BINARY)
_SERVING = Kind(from_file=False, by_name=True, variant_keys=_OF_A_SERVICE)
SERVING: Collection[str] = frozenset({"openai"})
_SPECIFIC_KEYS = sorted({key for kind in _KINDS.values() for key in kind.variant_keys})
_MAX_OLLAMA_NAME_CHARACTERS = 80


def kind_named(name: str, serving: Collection[str] = SERVING) -> Kind:
    """What a kind of server reads.

    Args:
        serving: registered kinds that bring the model themselves.
    """
    return _KINDS.get(name) or (_SERVING if name in serving else _STARTED)


class Matrix:
    """All combinations of a configuration, ordered: quantization, then model size, then variants as listed."""

    def __init__(self, combinations: Sequence[Combination]) -> None:
        self.combinations = tuple(combinations)
        self._by_key = {
            (c.model.name, c.quantization, c.variant.id if c.variant else None): c for c in self.combinations
        }

    def cells(self, profile: str) -> list[Cell]:
        """One cell per combination, in order."""
        return [
            Cell(c.model.name, c.quantization, profile, c.variant.id if c.variant else None) for c in self.combinations
        ]

    def of(self, cell: Cell) -> Combination:
        """The combination a cell belongs to. Raises KeyError for a cell of another matrix."""
        return self._by_key[cell.model, cell.quantization, cell.variant]


def build_matrix(
    config: Loaded[Config], models: Loaded[Models], mode: str, serving: Collection[str] = SERVING
) -> Matrix:
    """Cross models, the mode's quantizations and variants.

    A server we start needs a model's ``files``; one that brings the model needs the name in ``served``. Ollama takes
    either: what it does not serve yet is imported.

    Args:
        mode: ``quick`` or ``full``.
        serving: backends that bring the model themselves.

    Raises:
        ConfigError: two combinations would share an id, so one of them could never be selected or resumed.
    """
    selected = set(models.value.quick_mode_quants if mode == "quick" else models.value.full_mode_quants)
    variants: Sequence[Variant | None] = config.value.variants or [None]
    _reject_repeated_variants(config)
    rows = [
        (quantization_rank(quantization), parse_model_size(model.size), position, index, model, quantization, variant)
        for position, model in enumerate(models.value.models)
        for quantization in dict.fromkeys([*model.files, *model.served])
        if quantization in selected
        for index, variant in enumerate(variants)
        if _is_provided(model, quantization, kind_named(backend_kind(config.value, variant), serving))
    ]
    rows.sort(key=lambda row: row[:4])
    _reject_files_of_two_models(models)
    combinations: list[Combination] = []
    seen: dict[str, Combination] = {}
    for rank, (*_, position, _index, model, quantization, variant) in enumerate(rows):
        identifier = cell_id(model.name, quantization, variant.id if variant else None)
        combination = Combination(identifier, model, quantization, variant, rank)
        if identifier in seen:
            raise models.document.error(
                ("models", position, "name"),
                f"{model.name!r} {quantization} would have the id {identifier!r}, as {seen[identifier].model.name!r} "
                f"{seen[identifier].quantization} has; rename one",
            )
        seen[identifier] = combination
        combinations.append(combination)
    return Matrix(combinations)


def _reject_files_of_two_models(models: Loaded[Models]) -> None:
    """Refuse two models that keep different files in one place: one would be measured under the name of both."""
    seen: dict[str, tuple[ModelEntry, object]] = {}
    for position, model in enumerate(models.value.models):
        for quantization, names in model.files.items():
            source = model.source.get(quantization) or (model.repo, model.revision)
            for name in [names] if isinstance(names, str) else names:
                place = f"{model.size}/{name}"
                other, its_source = seen.setdefault(place, (model, source))
                if its_source != source:
                    raise models.document.error(
                        ("models", position, "files", quantization),
                        f"{model.name!r} would keep its file in {place}, as {other.name!r} does, whose file comes from "
                        "elsewhere; give one of them another file name, or a folder: <folder>/<file name>",
                    )


def _is_provided(model: ModelEntry, quantization: str, kind: Kind) -> bool:
    return (kind.by_name and quantization in model.served) or (kind.from_file and quantization in model.files)


def backend_kind(config: Config, variant: Variant | None) -> str:
    """The kind of server a variant runs on."""
    return variant.backend if variant and variant.backend else config.backend


def _reject_repeated_variants(config: Loaded[Config]) -> None:
    seen: set[str] = set()
    for index, variant in enumerate(config.value.variants):
        if variant.id in seen:
            raise config.document.error(("variants", index, "id"), f"{variant.id!r} is used twice; ids must differ")
        seen.add(variant.id)


def check_backends(config: Loaded[Config], registered: Sequence[str]) -> None:
    """Refuse a backend that nobody registered.

    Raises:
        ConfigError: with the nearest registered name.
    """
    written: list[tuple[tuple[str | int, ...], str]] = [(("backend",), config.value.backend)]
    written += [
        (("variants", index, "backend"), variant.backend)
        for index, variant in enumerate(config.value.variants)
        if variant.backend
    ]
    for location, kind in written:
        if kind not in registered:
            allowed = ", ".join(sorted(registered))
            raise config.document.error(
                location, f"{kind!r} is no backend{nearest(kind, registered)}; allowed: {allowed}"
            )


def check_variants(config: Loaded[Config], serving: Collection[str] = SERVING) -> None:
    """Refuse a variant's key that its backend does not read: two variants would differ in name only.

    Raises:
        ConfigError: pointing at the key.
    """
    for index, variant in enumerate(config.value.variants):
        name = backend_kind(config.value, variant)
        read = kind_named(name, serving).variant_keys
        for key in _SPECIFIC_KEYS:
            if getattr(variant, key) is not None and key not in read:
                raise config.document.error(
                    ("variants", index, key),
                    f"backend {name!r} can not be told this, it reads {', '.join(sorted(read))}; leave it out",
                )


def server_spec(
    config: Config,
    combination: Combination,
    serving: Collection[str] = SERVING,
    needed_context: int | None = None,
) -> ServerSpec:
    """The server a combination needs; equal specs share one server. It has a ``model_file`` where a file is needed.

    A registered backend has no section of its own: one that starts its server takes the defaults of ``embedded``, one
    that does not those of ``openai``.

    Args:
        serving: registered kinds that bring the model themselves.
        needed_context: tokens of context the profile needs; the server gets that, or what is configured if it is more.
    """
    variant = combination.variant
    name = backend_kind(config, variant)

    def choose(key: str, default: Any) -> Any:
        chosen = getattr(variant, key) if variant is not None else None
        return default if chosen is None else chosen

    def context_size(default: int | None) -> int | None:
        sizes = [size for size in (choose("ctx_size", default), needed_context) if size is not None]
        return max(sizes, default=None)

    parts = (combination.model.name, combination.quantization, variant.id if variant else None)
    common: dict[str, Any] = {
        "kind": name,
        "label": safe_name("_".join(filter(None, parts))),
        "max_load_seconds": config.limits.max_load_time,
    }
    if name == "ollama":
        ollama = config.ollama
        model_name, model_file = _ollama_model(combination)
        return ServerSpec(
            **common,
            model_file=model_file,
            model_name=model_name,
            context_size=context_size(ollama.default_ctx_size),
            threads=choose("threads", None),
            gpu_layers=choose("gpu_layers", None),
            cache_type_k=choose("cache_type_k", None),
            cache_type_v=choose("cache_type_v", None),
            base_url=choose("base_url", ollama.base_url),
            start_server=ollama.start,
            chat_mode=ollama.chat_mode,
        )
    if not kind_named(name, serving).from_file:
        openai = config.openai
        return ServerSpec(
            **common,
            model_name=combination.model.served[combination.quantization],
            context_size=context_size(openai.default_ctx_size),
            base_url=choose("base_url", openai.base_url),
            api_key_env=openai.api_key_env,
            command=_words(openai.command) if name == "openai" else None,
        )
    section = config.llama_cpp if name == "llama_cpp" else config.embedded
    server_path, extra_args = None, []
    if isinstance(section, LlamaCppConfig):
        server_path, extra_args = section.server_path, section.extra_args
    return ServerSpec(
        **common,
        model_file=_model_file(combination),
        context_size=context_size(section.default_ctx_size),
        threads=choose("threads", section.default_threads),
        gpu_layers=choose("gpu_layers", section.gpu_layers),
        cache_type_k=choose("cache_type_k", None),
        cache_type_v=choose("cache_type_v", None),
        server_path=choose("server_path", server_path),
        extra_args=tuple(choose("extra_args", extra_args)),
    )


def _model_file(combination: Combination) -> str:
    """The first file of a combination, below ``model_dir``."""
    files = combination.model.files[combination.quantization]
    return f"{combination.model.size}/{files if isinstance(files, str) else files[0]}"


def _ollama_model(combination: Combination) -> tuple[str, str | None]:
    """The name an Ollama server knows a model by, and the file to import where it does not serve it by itself.

    An imported model bears the same name in every variant, so that it is imported once. Ollama takes no ``+`` in a name
    and no more than 80 characters.
    """
    served = combination.model.served.get(combination.quantization)
    if served is not None:
        return served, None
    full = f"{combination.model.name}_{combination.quantization}"
    name = "llmbench-" + safe_name(full).replace("+", "_").lower()
    if len(name) > _MAX_OLLAMA_NAME_CHARACTERS:
        digest = hashlib.sha256(full.encode()).hexdigest()[:8]
        name = f"{name[: _MAX_OLLAMA_NAME_CHARACTERS - 9]}-{digest}"
    return name, _model_file(combination)


def _words(command: str | list[str] | None) -> tuple[str, ...] | None:
    if command is None:
        return None
    return tuple(shlex.split(command) if isinstance(command, str) else command)


def require_base_urls(config: Loaded[Config], matrix: Matrix) -> None:
    """Refuse an ``openai`` combination without an address or a command, and a command that can not be told its port.

    Raises:
        ConfigError: pointing at ``openai.base_url`` or ``openai.command``.
    """
    for combination in matrix.combinations:
        if backend_kind(config.value, combination.variant) != "openai":
            continue
        spec = server_spec(config.value, combination)
        if spec.base_url:
            continue
        if not spec.command:
            raise config.document.error(
                ("openai", "base_url"),
                "backend 'openai' needs the address of a running server, for example http://127.0.0.1:8080, or the "
                "command that starts one (openai.command)",
            )
        if not any("{port}" in word for word in spec.command):
            raise config.document.error(
                ("openai", "command"),
                "the command must take the port that is chosen for it: write {port} where it belongs, or set base_url",
            )
