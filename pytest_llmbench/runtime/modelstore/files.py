"""Which files a model has at a quantization, and where on this machine they may lie."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from pytest_llmbench.core.config import ModelEntry
from pytest_llmbench.core.gguf import check_header_quantization, read_model, shard_names
from pytest_llmbench.errors import ModelError

logger = logging.getLogger(__name__)


def file_names(model: ModelEntry, quantization: str) -> list[str]:
    """The paths below ``model_dir/<size>`` of all files: those listed, or all shards of a first one."""
    files = model.files[quantization]
    names = [files] if isinstance(files, str) else files
    return shard_names(names[0]) if len(names) == 1 else names


def is_file(path: Path) -> bool:
    """Whether there is a file that can be seen; ``Path.is_file`` raises where a name is too long or a folder closed."""
    return os.path.isfile(path)  # noqa: PTH113


def gguf_files(model_dir: Path) -> Iterator[Path]:
    """Every GGUF file below ``model_dir``, in order; nothing in hidden folders, where unfinished downloads lie."""
    for folder, folders, files in os.walk(model_dir):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(".gguf") and not name.startswith("."):
                yield Path(folder) / name


def discover(model_dir: Path, model: ModelEntry, quantization: str) -> list[Path] | None:
    """Files anywhere below ``model_dir`` that are this model at this quantization, all shards of them.

    They bear the wanted names, or ``<base_filename><-._><quantization>.gguf`` in any case; and the header must name
    the right quantization.
    """
    names = [PurePosixPath(name).name for name in file_names(model, quantization)]
    for paths in _candidates(model_dir, names, _pattern(model, quantization)):
        try:
            check_header_quantization(read_model(paths), quantization, str(paths[0]))
        except ModelError as exc:
            _warn_once(f"{paths[0]} is not used for {model.name} {quantization}: {exc.message}")
        else:
            return paths
    return None


@lru_cache(maxsize=256)
def _warn_once(text: str) -> None:
    """A model is looked for many times in a run."""
    logger.warning("%s", text)


def _pattern(model: ModelEntry, quantization: str) -> re.Pattern[str] | None:
    if model.base_filename is None:
        return None
    stem = rf"{re.escape(model.base_filename)}[-._]{re.escape(quantization)}"
    return re.compile(rf"{stem}(-00001-of-\d{{5}})?\.gguf", re.IGNORECASE)


def _candidates(model_dir: Path, names: list[str], pattern: re.Pattern[str] | None) -> Iterator[list[Path]]:
    """Complete sets of files, those with the wanted names first."""
    found = list(gguf_files(model_dir))
    for path in found:
        if path.name == names[0]:
            yield from _complete(path.parent, names)
    for path in found:
        if path.name != names[0] and pattern is not None and pattern.fullmatch(path.name):
            yield from _complete(path.parent, shard_names(path.name))


def _complete(folder: Path, names: list[str]) -> Iterator[list[Path]]:
    paths = [folder / name for name in names]
    if all(map(is_file, paths)):
        yield paths
