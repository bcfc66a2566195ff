"""Headers of models that are not here: a few megabytes of a file of many gigabytes, and those only once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_llmbench.core.gguf import GgufHeader, dump_header, load_header
from pytest_llmbench.errors import ModelError
from pytest_llmbench.runtime.modelstore.remote_header import read_remote_header
from pytest_llmbench.runtime.modelstore.transfer import Refused, RemoteFile


@dataclass(frozen=True)
class ModelHeader:
    """What a model says of itself, whether or not it is here.

    Attributes:
        header: of all shards together.
        local: read from files that are here.
        download_bytes: what is still to be downloaded; 0 where it is here, None where nobody tells.
    """

    header: GgufHeader
    local: bool
    download_bytes: int | None


def remote_header(file: RemoteFile, cache: Path, headers: Mapping[str, str], refused: Refused) -> GgufHeader:
    """The header of a remote file, from ``cache`` where its version has been read before.

    Raises:
        ModelError: what :func:`~pytest_llmbench.runtime.modelstore.remote_header.read_remote_header` raises, with
            ``refused`` telling what an HTTP status means.
    """
    note = cache / f"{hashlib.sha256(f'{file.url} {file.version}'.encode()).hexdigest()[:24]}.json"
    if file.version is not None:
        with suppress(OSError, ValueError, ModelError):
            return load_header(json.loads(note.read_text(encoding="utf-8")))
    url = str(file.url)
    try:
        # Who writes http:// means it; what begins encrypted must stay so.
        header = read_remote_header(url, headers=headers, allow_insecure=url.startswith("http:")).header
    except ModelError as exc:
        status = exc.evidence.get("http_status")
        if isinstance(status, int) and 400 <= status < 500:
            raise refused(status, None, file.name) from exc
        raise
    if file.version is not None:
        with suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(dump_header(header)), encoding="utf-8")
    return header


def merged(headers: Sequence[GgufHeader]) -> GgufHeader:
    """One header of all shards: the first one's metadata, everybody's tensors and bytes."""
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    return replace(headers[0], tensors=tensors, size_bytes=sum(header.size_bytes for header in headers))
