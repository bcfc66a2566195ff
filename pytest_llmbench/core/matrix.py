"""Model × quantization × variant: which combinations there are, in which order, and what each needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llmbench.core.cell import Cell, ServerSpec, cell_id, parse_model_size, quantization_rank, safe_name
from pytest_llmbench.core.config import Config, ModelEntry, Models, Variant
from pytest_llmbench.core.validation import Loaded
from pytest_llmbench.core.yaml_source import nearest
from pytest_llmbench.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Combination:
    """One row of the matrix, before a profile makes cells of it."""

    id: str
    model: ModelEntry
    quantization: str
    variant: Variant | None
    rank: int


# Backends of ours that bring the model themselves; the caller knows of registered ones.
SERVING: Collection[str] = frozenset({"openai"})
_OF_A_STARTED_SERVER = ("threads", "gpu_layers", "cache_type_k", "cache_type_v")
_OF_A_RUNNING_SERVER = ("base_url",)


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

    A server we start needs a model's ``files``; one that brings the model needs the name in ``served``.

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
        if quantization in (model.served if backend_kind(config.value, variant) in serving else model.files)
    ]
    rows.sort(key=lambda row: row[:4])
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


def backend_kind(config: Config, variant: Variant | None) -> str:
    """The kind of server a variant runs on."""
    return variant.backend if variant and variant.backend else config.backend


def _reject_repeated_variants(config: Loaded[Config]) -> None:
    seen: set[str] = set()
    for index, variant in enumerate(config.value.variants):
        if variant.id in seen:
            raise config.document.error(("variants", index, "id"), f"{variant.id!r} is used twice; ids must differ")
        seen.add(variant.id)


def check_backends(config: Loaded[Config], registered: Sequence[str], planned: Sequence[str]) -> None:
    """Refuse a backend that nobody registered.

    Args:
        planned: kinds the finished product will have; named, they are told apart from a misspelling.

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
        if kind in registered:
            continue
        allowed = ", ".join(sorted(registered))
        if kind in planned:
            raise config.document.error(location, f"{kind!r} can not be run by this version yet; available: {allowed}")
        raise config.document.error(location, f"{kind!r} is no backend{nearest(kind, registered)}; allowed: {allowed}")


def check_variants(config: Loaded[Config], serving: Collection[str] = SERVING) -> None:
    """Refuse a variant's key that its backend does not read: two variants would differ in name only.

    Raises:
        ConfigError: pointing at the key.
    """
    for index, variant in enumerate(config.value.variants):
        kind = backend_kind(config.value, variant)
        unread = _OF_A_STARTED_SERVER if kind in serving else _OF_A_RUNNING_SERVER
        for name in unread:
            if getattr(variant, name) is not None:
                why = "it does not start its server" if kind in serving else "it starts its own server"
                raise config.document.error(
                    ("variants", index, name), f"backend {kind!r} can not be told this: {why}; leave it out"
                )


def server_spec(config: Config, combination: Combination, serving: Collection[str] = SERVING) -> ServerSpec:
    """The server a combination needs; equal specs share one server.

    A backend that starts its server and has no section of its own takes the defaults of ``embedded``.
    """
    model, variant = combination.model, combination.variant
    kind = backend_kind(config, variant)
    label = safe_name("_".join(filter(None, (model.name, combination.quantization, variant.id if variant else None))))

    def choose(name: str, default: Any) -> Any:
        chosen = getattr(variant, name) if variant is not None else None
        return default if chosen is None else chosen

    max_load_seconds = config.limits.max_load_time
    if kind not in serving:
        section = config.embedded
        files = model.files[combination.quantization]
        return ServerSpec(
            kind=kind,
            label=label,
            model_file=f"{model.size}/{files if isinstance(files, str) else files[0]}",
            context_size=choose("ctx_size", section.default_ctx_size),
            threads=choose("threads", section.default_threads),
            gpu_layers=choose("gpu_layers", section.gpu_layers),
            cache_type_k=choose("cache_type_k", None),
            cache_type_v=choose("cache_type_v", None),
            max_load_seconds=max_load_seconds,
        )
    return ServerSpec(
        kind=kind,
        label=label,
        model_name=model.served[combination.quantization],
        context_size=choose("ctx_size", config.openai.default_ctx_size),
        base_url=choose("base_url", config.openai.base_url),
        api_key_env=config.openai.api_key_env,
        max_load_seconds=max_load_seconds,
    )


def require_base_urls(config: Loaded[Config], matrix: Matrix) -> None:
    """Refuse an ``openai`` combination that no address was given for.

    Raises:
        ConfigError: pointing at ``openai.base_url``.
    """
    for combination in matrix.combinations:
        if (
            backend_kind(config.value, combination.variant) == "openai"
            and not server_spec(config.value, combination).base_url
        ):
            raise ConfigError(
                config.document.complaint(
                    ("openai", "base_url"),
                    "backend 'openai' needs the address of a running server; write for example http://127.0.0.1:8080",
                )
            )
