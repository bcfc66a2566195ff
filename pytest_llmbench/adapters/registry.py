"""Kinds of servers and profiles by name: ours, and those users register through hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pytest_llmbench.backends.base import Backend
from pytest_llmbench.backends.embedded import EmbeddedBackend
from pytest_llmbench.backends.llama_cpp import LlamaCppBackend
from pytest_llmbench.backends.ollama import OllamaBackend
from pytest_llmbench.backends.openai import OpenAIBackend
from pytest_llmbench.core.metrics import COMMON_METRICS, METRICS
from pytest_llmbench.core.scores import EFFICIENCY, EFFICIENCY_NEEDS
from pytest_llmbench.core.yaml_source import nearest
from pytest_llmbench.errors import ConfigError
from pytest_llmbench.profiles.base import Profile
from pytest_llmbench.profiles.batch import BatchProfile
from pytest_llmbench.profiles.interactive import InteractiveProfile
from pytest_llmbench.profiles.long_context import LongContextProfile
from pytest_llmbench.profiles.quality import QualityProfile
from pytest_llmbench.profiles.stress import StressProfile


class BackendRegistry(Mapping[str, Backend]):
    """Backends by kind."""

    def __init__(self) -> None:
        self._backends: dict[str, Backend] = {
            "embedded": EmbeddedBackend(),
            "llama_cpp": LlamaCppBackend(),
            "ollama": OllamaBackend(),
            "openai": OpenAIBackend(),
        }

    def add(self, kind: str, backend: Backend) -> None:
        """Register a kind of server. Raises ConfigError for a name that is taken."""
        if kind in self._backends:
            raise ConfigError(f"a backend named {kind!r} exists already; register yours under another name")
        self._backends[kind] = backend

    @property
    def serving(self) -> frozenset[str]:
        """The kinds whose servers bring the model themselves."""
        return frozenset(kind for kind, backend in self._backends.items() if backend.brings_model)

    def __getitem__(self, kind: str) -> Backend:
        return self._backends[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._backends)

    def __len__(self) -> int:
        return len(self._backends)


class ProfileRegistry(Mapping[str, Profile]):
    """Profiles by name."""

    def __init__(self) -> None:
        self._profiles: dict[str, Profile] = {}
        for profile in (InteractiveProfile, LongContextProfile, BatchProfile, QualityProfile, StressProfile):
            self.add(profile())

    def add(self, profile: Profile) -> None:
        """Register a profile. Raises ConfigError for a taken name, or a metric that is not in the registry."""
        if profile.name in self._profiles:
            raise ConfigError(f"a profile named {profile.name!r} exists already; register yours under another name")
        for metric in profile.emits:
            if metric not in METRICS:
                raise ConfigError(
                    f"profile {profile.name!r} emits {metric!r}, which is no metric{nearest(metric, METRICS)}; "
                    f"allowed: {', '.join(sorted(METRICS))}"
                )
        self._profiles[profile.name] = profile

    def emitted(self, name: str) -> tuple[str, ...]:
        """What cells of a profile may yield: its own metrics, what follows from them, and those of every cell."""
        own = self._profiles[name].emits
        derived = (EFFICIENCY,) if EFFICIENCY_NEEDS in own else ()
        return tuple(dict.fromkeys((*own, *derived, *COMMON_METRICS)))

    def __getitem__(self, name: str) -> Profile:
        return self._profiles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._profiles)

    def __len__(self) -> int:
        return len(self._profiles)
