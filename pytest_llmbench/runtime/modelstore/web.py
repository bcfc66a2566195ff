"""Models behind an address: an ordinary web server, asked for size and version before anything is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pytest_llmbench.core.config import Source
from pytest_llmbench.errors import ModelError
from pytest_llmbench.runtime.modelstore.transfer import (
    RemoteFile,
    RemoteModel,
    Transient,
    body_of,
    persistently,
    raise_for_status,
    reason_of,
)

_TIMEOUT_SECONDS = (10.0, 30.0)


@dataclass(frozen=True)
class WebAddress:
    """A model's ``source.url``."""

    source: Source

    @property
    def origin(self) -> str:
        """The address without its query, which may hold a key."""
        parts = urlsplit(str(self.source.url))
        return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))

    def describe(self, names: Sequence[str]) -> RemoteModel:
        """Ask for the size and version of each file: one request each, and no body.

        Args:
            names: where there are several, the address is that of the first, and the others lie beside it.

        Raises:
            ModelError: ``model_not_found``, ``model_access_denied``, ``wrong_size`` or ``download_failed``.
        """
        return RemoteModel(self.origin, tuple(self._describe(name, self._url(name, names)) for name in names))

    def headers(self) -> dict[str, str]:
        """Nothing of ours; a password may stand in the user's ``.netrc``."""
        return {}

    def refused(self, status: int, error_code: str | None, name: str) -> ModelError:
        """What an HTTP status means."""
        evidence = {"http_status": status}
        if status in {401, 403, 407}:
            return ModelError(
                "model_access_denied",
                f"{self.origin} refuses {name} (HTTP {status}); is the address complete? a name and password belong "
                "into ~/.netrc",
                evidence,
            )
        if status in {404, 410}:
            return ModelError(
                "model_not_found",
                f"{self.origin}: nothing is there for {name} (HTTP {status}); correct source.url in the models file",
                evidence,
            )
        return ModelError("download_failed", f"{self.origin} answered HTTP {status} for {name}; try later", evidence)

    def _url(self, name: str, names: Sequence[str]) -> str:
        if len(names) == 1:
            return str(self.source.url)
        parts = urlsplit(str(self.source.url))
        folder, _, first = parts.path.rpartition("/")
        if unquote(first) != PurePosixPath(names[0]).name:
            raise ModelError(
                "model_not_found",
                f"source.url ends in {unquote(first)!r}, but the first of the model's {len(names)} files is "
                f"{names[0]!r}: the others can not be found; let it name the first",
            )
        path = f"{folder}/{quote(PurePosixPath(name).name)}"
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    def _describe(self, name: str, url: str) -> RemoteFile:
        import requests

        def ask() -> RemoteFile:
            headers = {"Accept-Encoding": "identity", "Range": "bytes=0-0"}  # HEAD is not allowed everywhere
            try:
                with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
                    if response.status_code not in {200, 206}:
                        raise_for_status(response, name, self.refused)
                    size_bytes = body_of(response)[1]
                    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
            except requests.RequestException as exc:
                raise Transient(reason_of(exc)) from exc
            return RemoteFile(name, url, size_bytes, self.source.sha256, version)

        found = persistently(ask, self.origin)
        promised = self.source.size_bytes
        if promised is not None and found.size_bytes is not None and found.size_bytes != promised:
            raise ModelError(
                "wrong_size",
                f"{self.origin} has {found.size_bytes} bytes, source.size_bytes promises {promised}; correct it in the "
                "models file, or find out why the file was replaced",
                {"size_bytes": found.size_bytes, "expected_size_bytes": promised},
            )
        return RemoteFile(name, url, found.size_bytes or promised, found.sha256, found.version)
