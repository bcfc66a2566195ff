"""What ``llmbench estimate`` is asked about: a file, a file on the hub, or a model of the models file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_llmbench.commands.setup import Setup
from pytest_llmbench.core.config import ModelEntry
from pytest_llmbench.core.gguf import GgufHeader, check_header_quantization, read_model, shard_names
from pytest_llmbench.core.yaml_source import nearest
from pytest_llmbench.errors import ConfigError, ModelError
from pytest_llmbench.runtime.modelstore.headers import merged, remote_header
from pytest_llmbench.runtime.modelstore.hub import HubRepository
from pytest_llmbench.runtime.modelstore.store import ModelStore

_ON_THE_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(?P<file>.+\.gguf)", re.ASCII)


@dataclass(frozen=True)
class Subject:
    """A model's file, all shards of it.

    Attributes:
        model, quantization: names under which earlier runs are looked up; quantization None where nobody tells.
        origin: where the file is, for people.
        header: None where there is none to be had without a download.
        size_bytes: of the file, for when there is no header.
        entry: of the models file, None for a file that is named itself.
        problem: why nothing can be said of it, None where something can.
    """

    model: str
    quantization: str | None
    origin: str
    header: GgufHeader | None = None
    size_bytes: int | None = None
    entry: ModelEntry | None = None
    problem: str | None = None


class Finder:
    """Finds what a name means. Headers are fetched where a file is not here; files never are.

    Args:
        revision: of a repository on the hub; None: the head of its main branch.
    """

    def __init__(self, setup: Setup, revision: str | None) -> None:
        self._setup = setup
        self._revision = revision
        self._store = ModelStore(setup.model_dir, setup.rootdir, may_download=True)

    def find(self, what: str) -> list[Subject]:
        """One subject, or for a model's name alone one for each of its quantizations.

        A file that exists comes first, then a model of the models file, then the hub.

        Raises:
            ConfigError: there is no such thing.
            ModelError: there is, but the file, or its source, is not what was expected.
        """
        path = Path(what)
        if _exists(path):
            self._reject_revision(what, "a file here")
            return [_local(path)]
        if path.is_symlink():
            raise ConfigError(f"{what} is a link to {path.readlink()}, which is not there; restore it or name the file")
        entry, quantization = self._listed(what)
        if entry is not None:
            self._reject_revision(what, f"in {self._setup.sources[1]}, where a model has its own")
            if quantization is not None:
                return [self._of_entry(entry, quantization)]
            return [self._of_entry_if_any(entry, one) for one in entry.files]
        match = _ON_THE_HUB.fullmatch(what)
        if match is None or path.parent.is_dir():
            raise ConfigError(self._nothing(what))
        return [self._on_the_hub(match["repo"], match["file"])]

    def others(self, subject: Subject) -> list[Subject]:
        """The same model at its other quantizations, as far as something can be said of them."""
        if subject.entry is None:
            return []
        names = [one for one in subject.entry.files if one != subject.quantization]
        return [other for other in (self._of_entry_if_any(subject.entry, one) for one in names) if not other.problem]

    def _listed(self, what: str) -> tuple[ModelEntry | None, str | None]:
        """The model and quantization of ``NAME`` or ``NAME:QUANT``; a name may hold a colon itself."""
        by_name = {model.name: model for model in self._setup.models.models}
        name, _, quantization = what.rpartition(":")
        entry = by_name.get(what) or by_name.get(name)
        if entry is None:
            return None, None
        if not entry.files:
            raise ConfigError(f"{entry.name} has no file, only a name on a server that brings it; name its GGUF file")
        if what in by_name:
            return entry, None
        found = next((one for one in entry.files if one.lower() == quantization.lower()), None)
        if found is None:
            known = ", ".join(entry.files)
            close = nearest(quantization.upper(), entry.files)
            raise ConfigError(f"{entry.name} has no quantization {quantization!r}{close}; it has {known}")
        return entry, found

    def _of_entry(self, entry: ModelEntry, quantization: str) -> Subject:
        """Raises ModelError as :meth:`ModelStore.header` does."""
        found = self._store.header(entry, quantization)
        paths = self._store.locate(entry, quantization)
        origin = self._store.shown(paths[0]) if paths else self._store.source_of(entry, quantization)
        if found is not None:
            check_header_quantization(found.header, quantization, f"{entry.name} at {origin}")
        source = entry.source.get(quantization)
        return Subject(
            entry.name,
            quantization,
            origin or "nowhere",
            header=found.header if found is not None else None,
            size_bytes=source.size_bytes if source is not None else None,
            entry=entry,
        )

    def _of_entry_if_any(self, entry: ModelEntry, quantization: str) -> Subject:
        try:
            return self._of_entry(entry, quantization)
        except ModelError as exc:
            origin = self._store.source_of(entry, quantization) or "nowhere"
            return Subject(entry.name, quantization, origin, entry=entry, problem=exc.message)

    def _on_the_hub(self, repo: str, file: str) -> Subject:
        """Raises ConfigError for what is not there; ModelError."""
        repository, names = HubRepository(repo, self._revision), shard_names(file)
        try:
            listing = repository.listing()
        except ModelError as exc:
            if exc.code != "model_not_found":
                raise
            revision = f" with a revision {self._revision!r}" if self._revision else ""
            raise ConfigError(
                f"no file {f'{repo}/{file}'!r} is here, and the hub has no repository {repo!r}{revision} that you may "
                "read; correct the name, or set HF_TOKEN if it is private"
            ) from exc
        missing = next((name for name in names if name not in listing.files), None)
        if missing is not None:
            present = [name for name in listing.files if name.endswith(".gguf")]
            raise ConfigError(f"{repository.origin} holds no file {missing!r}{nearest(missing, present)}; correct it")
        remote = repository.describe(listing, names)
        cache, asking = self._store.model_dir / ".headers", repository.headers()
        header = merged([remote_header(one, cache, asking, repository.refused) for one in remote.files])
        return Subject(header.name or Path(file).stem, header.file_type, f"{file} of {repository.origin}", header)

    def _reject_revision(self, what: str, place: str) -> None:
        if self._revision is not None:
            raise ConfigError(f"--revision is for a file on the hub, and {what!r} is {place}; leave it out")

    def _nothing(self, what: str) -> str:
        """That there is no such thing, with the nearest name that there is."""
        models, path = self._setup.models.models, Path(what)
        if what and path.is_dir():  # nothing is the path of this folder
            return f"{what!r} is a folder{nearest(what, _files_in(path))}; name one GGUF file"
        names = [model.name for model in models]
        names += [f"{model.name}:{quantization}" for model in models for quantization in model.files]
        close = nearest(what, [*names, *_files_in(path.parent)])
        return (
            f"there is neither a file {what!r} nor a model of that name in {self._setup.sources[1]}{close}; name a "
            "GGUF file, owner/name/file.gguf on the hub, or NAME or NAME:QUANT of the models file"
        )


def _exists(path: Path) -> bool:
    """Whether there is something that is no folder. Raises ConfigError where nobody can tell."""
    try:
        return path.exists() and not path.is_dir()
    except OSError as exc:  # a name too long, a folder that may not be entered
        raise ConfigError(f"{str(path)!r} can not be looked at: {exc.strerror}; correct the name") from exc


def _local(path: Path) -> Subject:
    """A file and, of a shard, all others. Raises ConfigError where one is missing; ModelError."""
    paths = [path.with_name(name) for name in shard_names(path.name)]
    missing = next((one for one in paths if not _exists(one)), None)
    if missing is not None:
        raise ConfigError(
            f"{str(path)!r} is one of {len(paths)} shards, but {missing.name!r} is not beside it; put all of them into "
            "one folder"
        )
    header = read_model(paths)
    return Subject(header.name or paths[0].stem, header.file_type, str(path), header)


def _files_in(folder: Path) -> Iterator[str]:
    with suppress(OSError):
        yield from (str(path) for path in sorted(folder.iterdir()) if path.suffix.lower() == ".gguf")
