"""The configuration, read as a run reads it, but without pytest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmbench.adapters.registry import BackendRegistry
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.config import Config, Models
from pytest_llmbench.core.matrix import (
    Matrix,
    build_matrix,
    check_backends,
    check_variants,
    require_base_urls,
    server_spec,
)
from pytest_llmbench.core.validation import Loaded, resolve_path, validate
from pytest_llmbench.core.yaml_source import YamlDocument, load_yaml
from pytest_llmbench.runtime.share import share_dir


@dataclass(frozen=True)
class Setup:
    """What is configured.

    Attributes:
        specs: the servers that are needed, each once, in order.
    """

    config: Config
    models: Models
    matrix: Matrix
    specs: tuple[ServerSpec, ...]
    model_dir: Path
    rootdir: Path
    sources: tuple[str, str]


def read_setup(rootdir: Path, config_path: Path | None, models_path: Path | None) -> Setup:
    """Read and check both files.

    Args:
        config_path: None: ``configs/config.yaml`` below ``rootdir``, or the defaults where there is none.

    Raises:
        ConfigError: what the user wrote can not be used.
    """
    config = _load(Config, config_path or _default(rootdir, "config.yaml"), rootdir)
    shipped = share_dir("configs") / "models.yaml"
    models = _load(Models, models_path or _default(rootdir, "models.yaml") or shipped, rootdir)
    backends = BackendRegistry()
    check_backends(config, list(backends))
    check_variants(config, backends.serving)
    matrix = build_matrix(config, models, config.value.test_mode, backends.serving)
    require_base_urls(config, matrix)
    specs = dict.fromkeys(server_spec(config.value, row, backends.serving) for row in matrix.combinations)
    return Setup(
        config=config.value,
        models=models.value,
        matrix=matrix,
        specs=tuple(specs),
        model_dir=resolve_path(config.value.model_dir, rootdir, config.document, ("model_dir",)),
        rootdir=rootdir,
        sources=(config.document.name, models.document.name),
    )


def _default(rootdir: Path, name: str) -> Path | None:
    path = rootdir / "configs" / name
    return path if os.path.lexists(path) else None


def _load(model: type[Any], path: Path | None, rootdir: Path) -> Loaded[Any]:
    if path is None:
        return Loaded(model(), YamlDocument("(built-in defaults)", None))
    name = os.path.relpath(path, rootdir) if path.is_relative_to(rootdir) else str(path)
    document = load_yaml(path, name)
    return Loaded(validate(model, document), document)
