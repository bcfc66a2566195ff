"""Models on Hugging Face, or on a hub of the same kind (``HF_ENDPOINT``).

``huggingface_hub`` says what a repository holds, where its files are and which token to send. The bytes are fetched by
:mod:`~pytest_llmbench.runtime.modelstore.transfer`: the library's own download begins a file anew after an interruption
(each try writes to a temporary file of its own), and keeps notes and locks beside what it fetches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from pytest_llmbench.core.yaml_source import nearest
from pytest_llmbench.errors import ModelError
from pytest_llmbench.runtime.modelstore.transfer import RemoteFile, RemoteModel, Transient, persistently

_LIBRARY = "pytest-llmbench"
_DEFAULT_REVISION = "main"
_LISTING_SECONDS = 30.0
_YES = {"1", "ON", "YES", "TRUE"}  # what huggingface_hub takes for it


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit.

    Attributes:
        files: path → size in bytes and SHA-256, each None where the hub does not tell.
    """

    commit: str
    files: dict[str, tuple[int | None, str | None]]


@dataclass(frozen=True)
class HubRepository:
    """A repository at a revision; None: the head of its main branch."""

    repo: str
    revision: str | None = None

    @property
    def origin(self) -> str:
        return f"{self.repo} on Hugging Face"

    def listing(self) -> Listing:
        """Resolve the revision to a commit, and list what that one holds: one request.

        Raises:
            ModelError: ``hub_offline``, ``model_not_found``, ``model_access_denied`` or ``download_failed``.
        """
        if any(os.environ.get(name, "").upper() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
            raise ModelError(
                "hub_offline",
                f"{self.origin} was not asked, because HF_HUB_OFFLINE is set; unset it, or put the file into model_dir",
            )
        info = persistently(lambda: self._ask(self._model_info), self.origin)
        if not info.sha:
            raise ModelError("download_failed", f"{_endpoint()} names no commit of {self.repo}; is HF_ENDPOINT a hub?")
        files = {
            one.rfilename: (one.lfs.size, one.lfs.sha256) if one.lfs is not None else (one.size, None)
            for one in info.siblings or []
        }
        return Listing(info.sha, files)

    def describe(self, listing: Listing, names: Sequence[str]) -> RemoteModel:
        """Files of the repository, at the commit of its listing.

        Raises:
            ModelError: ``model_not_found``: one is not there; the nearest name that is stands in the message.
        """
        from huggingface_hub import hf_hub_url

        files = []
        for name in names:
            if name not in listing.files:
                at = f"revision {self.revision}, " if self.revision else ""
                raise ModelError(
                    "model_not_found",
                    f"{self.origin} holds no file {name!r}{nearest(name, listing.files)} ({at}commit "
                    f"{listing.commit[:12]}); correct `files` in the models file",
                )
            url = hf_hub_url(self.repo, name, revision=listing.commit, endpoint=_endpoint())
            size_bytes, sha256 = listing.files[name]
            files.append(RemoteFile(name, url, size_bytes, sha256, version=listing.commit))
        return RemoteModel(self.origin, tuple(files), listing.commit)

    def headers(self) -> dict[str, str]:
        """What the hub wants to know of us: the token among it, so nothing for a log or a message."""
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported lazily

        version = metadata.version(_LIBRARY)
        headers: dict[str, str] = build_hf_headers(library_name=_LIBRARY, library_version=version)
        return headers

    def refused(self, status: int, error_code: str | None, name: str) -> ModelError:
        """What an HTTP status of the hub means; see https://huggingface.co/docs/hub/models-gated for the gate."""
        evidence = {"http_status": status}
        page = f"{_endpoint()}/{self.repo}"
        if error_code == "GatedRepo" or (status in {401, 403} and error_code != "RepoNotFound"):
            known = "the token in use has no access" if self._has_token() else "no token is set"
            return ModelError(
                "model_access_denied",
                f"{self.origin} lets nobody read {name} without permission, and {known}: accept its licence at {page}, "
                "and set HF_TOKEN to a token of that account",
                evidence,
            )
        if error_code == "RevisionNotFound":
            return ModelError(
                "model_not_found",
                f"{self.origin} has no revision {self.revision or _DEFAULT_REVISION!r}; correct `revision` in the "
                "models file",
                evidence,
            )
        if error_code == "EntryNotFound" or (status == 404 and error_code is None and name != self.repo):
            return ModelError(
                "model_not_found",
                f"{self.origin} lists {name} but does not hold it; correct `files` in the models file, or try later",
                evidence,
            )
        if status == 404 or error_code == "RepoNotFound":
            return ModelError(
                "model_not_found",
                f"there is no repository {self.repo!r} at {_endpoint()} that you may read; correct `repo` in the "
                "models file, or, if it is private, set HF_TOKEN",
                evidence,
            )
        return ModelError("download_failed", f"{self.origin} answered HTTP {status} for {name}; try later", evidence)

    def _has_token(self) -> bool:
        return "authorization" in {name.lower() for name in self.headers()}

    def _model_info(self) -> Any:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=_endpoint(), library_name=_LIBRARY)
        return api.model_info(self.repo, revision=self.revision, files_metadata=True, timeout=_LISTING_SECONDS)

    def _ask(self, question: Callable[[], Any]) -> Any:
        """Put a question to the hub. Raises ModelError or Transient, never with words of the library: they quote."""
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
        from huggingface_hub.errors import RevisionNotFoundError as NoRevision

        try:
            return question()
        except HFValidationError as exc:
            message = f"{self.repo!r} is no name of a repository; write owner/name as `repo` in the models file"
            raise ModelError("model_not_found", message) from exc
        except HfHubHTTPError as exc:
            status = exc.response.status_code
            if status in {408, 429} or status >= 500:
                raise Transient(f"HTTP {status}") from None
            code = exc.response.headers.get("X-Error-Code")
            if isinstance(exc, GatedRepoError):
                code = "GatedRepo"
            elif isinstance(exc, NoRevision):
                code = "RevisionNotFound"
            elif isinstance(exc, RepositoryNotFoundError):
                code = "RepoNotFound"
            raise self.refused(status, code, self.repo) from None
        except Exception as exc:  # noqa: BLE001 -- its HTTP client, whose errors these are, differs between versions
            raise Transient(f"{_endpoint()} could not be asked ({type(exc).__name__})") from None


def _endpoint() -> str:
    """Where the hub is; read now, while the library does so once."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(constants.ENDPOINT)
