"""``llmbench models``: which model files are here, which are to be downloaded, and whether they are what they were."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_llmbench.commands.setup import Setup, read_setup
from pytest_llmbench.commands.tables import console
from pytest_llmbench.core.config import ModelEntry, Source, Variant
from pytest_llmbench.core.gguf import check_header_quantization, read_model
from pytest_llmbench.core.matrix import backend_kind, kind_named
from pytest_llmbench.core.yaml_source import nearest
from pytest_llmbench.errors import ConfigError, ModelError
from pytest_llmbench.reports.plain import plain
from pytest_llmbench.runtime.bars import Bars
from pytest_llmbench.runtime.modelstore.files import gguf_files
from pytest_llmbench.runtime.modelstore.metadata import Checksums, Metadata
from pytest_llmbench.runtime.modelstore.store import ModelStore, Progress, sha256_of
from pytest_llmbench.runtime.modelstore.transfer import require_disk_space

MODELS_VERSION = 1
State = Literal[
    "present", "to download", "missing", "wrong", "unlisted", "verified", "unproven", "downloaded", "failed"
]
Wanted = tuple[ModelEntry, str]


@dataclass(frozen=True)
class Row:
    """One model at one quantization, or one file that no model names.

    Attributes:
        size_bytes: of all files together; None where it is not known without asking.
        source: where it would be, or was, downloaded from.
        note: what is wrong, and what to do.
    """

    model: str | None
    quantization: str | None
    state: State
    size_bytes: int | None = None
    path: str | None = None
    source: str | None = None
    note: str | None = None


def run(options: argparse.Namespace) -> int:
    """Run the command. Raises ConfigError for a configuration or a selection that can not be used."""
    setup = read_setup(Path.cwd(), options.config, options.models)
    store = ModelStore(setup.model_dir, setup.rootdir, may_download=True)
    wanted = _selected(setup, options.mode or setup.config.test_mode, options.model or (), options.quant or ())
    if options.action == "list":
        rows = [*(_listed(store, *one) for one in wanted), *_unlisted(store, setup)]
    elif options.action == "verify":
        with _progress() as progress:
            rows = [row for one in wanted for row in _verified(store, *one, progress)]
    else:
        rows = _download(store, wanted, quiet=options.json)
    if options.json:
        answer = {
            "schema_version": MODELS_VERSION,
            "model_dir": str(setup.model_dir),
            "models": [dataclasses.asdict(row) for row in rows],
        }
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        _print(rows, options.action)
    negative = {"verify": {"wrong"}, "download": {"failed"}, "list": set()}[options.action]
    return 1 if any(row.state in negative for row in rows) else 0


def _selected(setup: Setup, mode: str, names: Sequence[str], quantizations: Sequence[str]) -> list[Wanted]:
    """What the configured servers would run from a file. Names and quantizations that are given replace the mode's."""
    models = setup.models
    for name in names:
        if name not in {model.name for model in models.models}:
            close = nearest(name, [model.name for model in models.models])
            raise ConfigError(f"--model {name}: {setup.sources[1]} has no such model{close}")
    known = {quantization for model in models.models for quantization in model.files}
    for quantization in quantizations:
        if quantization not in known:
            close = nearest(quantization, known)
            raise ConfigError(f"--quant {quantization}: no model of {setup.sources[1]} has it{close}")
    of_the_mode = models.quick_mode_quants if mode == "quick" else models.full_mode_quants
    allowed = set(quantizations or of_the_mode)
    return [
        (model, quantization)
        for model in models.models
        for quantization in model.files
        if quantization in allowed and (not names or model.name in names) and _needs_file(setup, model, quantization)
    ]


def _needs_file(setup: Setup, model: ModelEntry, quantization: str) -> bool:
    """Whether a configured server runs a file; one that serves the model by name, or brings it, does not."""
    variants: list[Variant | None] = list(setup.config.variants) or [None]
    kinds = [kind_named(backend_kind(setup.config, variant)) for variant in variants]
    return any(kind.from_file and not (kind.by_name and quantization in model.served) for kind in kinds)


def _listed(store: ModelStore, model: ModelEntry, quantization: str) -> Row:
    """The state of a model without any network."""
    origin = store.source_of(model, quantization)
    row = Row(model.name, quantization, "to download", source=origin)
    paths = store.locate(model, quantization)
    if paths is None:
        source = model.source.get(quantization)
        if origin is None:
            note = "add repo or source to the models file, or put the file into model_dir"
            if source is not None and source.path is not None:
                note = f"source.path {source.path} is no file"
            return dataclasses.replace(row, state="missing", note=note)
        return dataclasses.replace(row, size_bytes=source.size_bytes if source is not None else None)
    size_bytes = sum(path.stat().st_size for path in paths)
    row = dataclasses.replace(row, state="present", size_bytes=size_bytes, path=store.shown(paths[0]))
    try:
        check_header_quantization(read_model(paths), quantization, store.shown(paths[0]))
    except ModelError as exc:
        return dataclasses.replace(row, state="wrong", note=exc.message)
    return row


def _unlisted(store: ModelStore, setup: Setup) -> Iterator[Row]:
    """Files below ``model_dir`` that belong to no model of the models file, whatever its quantization."""
    named = {
        path
        for model in setup.models.models
        for quantization in model.files
        for path in store.locate(model, quantization) or []
    }
    for path in gguf_files(store.model_dir):
        if path not in named:
            size_bytes = path.stat().st_size
            note = f"not in {setup.sources[1]}"
            yield Row(None, None, "unlisted", size_bytes=size_bytes, path=store.shown(path), note=note)


def _verified(store: ModelStore, model: ModelEntry, quantization: str, progress: Progress) -> Iterator[Row]:
    """Each file of a model that is here: read whole, and compared with what is known of it."""
    paths = store.locate(model, quantization) or []
    for path in paths:
        size_bytes = path.stat().st_size
        row = Row(
            model.name, quantization, "verified", size_bytes, store.shown(path), store.source_of(model, quantization)
        )
        try:
            check_header_quantization(read_model(paths), quantization, store.shown(path))
            note = _compared(store, path, model.source.get(quantization), progress)
        except ModelError as exc:
            yield dataclasses.replace(row, state="wrong", note=exc.message)
        else:
            yield dataclasses.replace(row, state="unproven", note=note) if note else row


def _compared(store: ModelStore, path: Path, source: Source | None, progress: Progress) -> str | None:
    """Read a file whole, and compare it with what the models file says of it, else with what was downloaded.

    Returns:
        A remark where there is no checksum to compare with.

    Raises:
        ModelError: it is another file.
    """
    noted = Metadata(store.model_dir).entry(path)
    size_bytes, promised_bytes = path.stat().st_size, noted.get("size_bytes")
    promised = noted.get("sha256")
    if source is not None:
        promised, promised_bytes = source.sha256 or promised, source.size_bytes or promised_bytes
    remedy = "delete the file to fetch it again"
    if promised_bytes is not None and size_bytes != promised_bytes:
        raise ModelError("wrong_size", f"it has {size_bytes} bytes, it should have {promised_bytes}; {remedy}")
    sha256 = sha256_of(path, progress)
    if promised is None:
        return f"its header is sound, but there is no checksum to compare with; it is {sha256}"
    if promised != sha256:
        raise ModelError("checksum_mismatch", f"its SHA-256 is {sha256}, it should be {promised}; {remedy}")
    Checksums(store.model_dir).remember(path, sha256)
    return None


def _download(store: ModelStore, wanted: Sequence[Wanted], *, quiet: bool) -> list[Row]:
    """Fetch what is missing: first everything is asked for its size, then told, then fetched."""
    rows: list[Row] = []
    to_fetch: list[Wanted] = []
    needed_bytes, unknown = 0, 0
    for model, quantization in wanted:
        row = Row(model.name, quantization, "failed", source=store.source_of(model, quantization))
        try:
            if store.locate(model, quantization) is not None:
                rows.append(_listed(store, model, quantization))
                continue
            remote = store.remote(model, quantization)
        except ModelError as exc:
            rows.append(dataclasses.replace(row, note=exc.message))
            continue
        to_fetch.append((model, quantization))
        needed_bytes += store.missing_bytes(model, quantization) or 0
        unknown += remote.size_bytes is None
    if to_fetch:
        _announce(store, len(to_fetch), needed_bytes, unknown, quiet=quiet)
        with _progress() as progress:
            rows += [_fetched(store, *one, progress) for one in to_fetch]
    return rows


def _announce(store: ModelStore, count: int, needed_bytes: int, unknown: int, *, quiet: bool) -> None:
    """Say what is coming, and whether it fits. Raises ModelError ``disk_full``."""
    folder = next(folder for folder in (store.model_dir, *store.model_dir.parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    more = f", and {unknown} of unknown size" if unknown else ""
    models = "1 model" if count == 1 else f"{count} models"
    if not quiet:
        text = (
            f"{models} to download: {_size(needed_bytes)}{more}; {_size(free)} free for {store.shown(store.model_dir)}"
        )
        console().print(plain(text), soft_wrap=True)
    require_disk_space(folder, needed_bytes)


def _fetched(store: ModelStore, model: ModelEntry, quantization: str, progress: Progress) -> Row:
    row = Row(model.name, quantization, "downloaded", source=store.source_of(model, quantization))
    try:
        _, described = store.fetch(model, quantization, progress)
    except ModelError as exc:
        return dataclasses.replace(row, state="failed", note=exc.message)
    return dataclasses.replace(row, size_bytes=described.size_bytes, path=described.path)


class _Lines:
    """Not a terminal: one line when something begins."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def step(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        if what not in self._said:
            self._said.add(what)
            size = f" ({_size(total_bytes)})" if total_bytes else ""
            print(plain(f"{what}{size} …"), file=sys.stderr)  # noqa: T201 -- a command


@contextmanager
def _progress() -> Iterator[Progress]:
    """On standard error, so that ``--json`` stays readable."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console

    bars = Bars(Console(stderr=True))
    try:
        yield bars
    finally:
        bars.close()


def _print(rows: Sequence[Row], action: str) -> None:
    from rich.table import Table

    out = console()
    if not rows:
        text = "nothing is here to verify" if action == "verify" else "the configured servers need no model file"
        out.print(text, soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("model", "quant", "state", "size", "file or source"):
        right = title == "size"
        table.add_column(title, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        where = row.path or row.source or "–"
        size = _size(row.size_bytes) if row.size_bytes is not None else "?"
        table.add_row(*(plain(text) for text in (row.model or "–", row.quantization or "–", row.state, size, where)))
    out.print(table)
    for row in rows:
        if row.note and row.state != "unlisted":
            out.print(plain(f"{row.state}: {row.model} {row.quantization}: {row.note}"), soft_wrap=True)
    if any(row.state == "unlisted" for row in rows):
        out.print("unlisted: not in the models file", soft_wrap=True)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
