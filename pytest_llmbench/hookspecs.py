"""What users may extend, each with an example that the tests run as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_llmbench.adapters.registry import BackendRegistry, ProfileRegistry


@pytest.hookspec
def pytest_llmbench_register_profiles(registry: ProfileRegistry) -> None:
    """Add a profile: a procedure of your own over the client, with metrics from the registry.

    In ``conftest.py``, with ``shout`` then listed under ``profiles:`` in the configuration::

        import pydantic
        from pytest_llmbench.client.generation import Generation
        from pytest_llmbench.profiles.base import Measurement, nonce


        class Shout:
            name = "shout"
            emits = ("ttft_seconds",)

            class settings_model(pydantic.BaseModel):
                words: int = 8

            def run(self, context):
                measurement, times = Measurement(), []
                for _ in range(context.rule.min_samples):
                    generation = Generation(max_tokens=context.settings.words, prompt=nonce() + "HELLO")
                    record = context.request(generation, "sample")
                    context.file(record)
                    times.append(record.ttft_seconds)
                measurement.add_median("ttft_seconds", times)
                return measurement


        def pytest_llmbench_register_profiles(registry):
            registry.add(Shout())
    """


@pytest.hookspec
def pytest_llmbench_register_backends(registry: BackendRegistry) -> None:
    """Add a kind of server, which ``backend:`` in the configuration then may name.

    In ``conftest.py``, here a kind that finds its running server through a file::

        from dataclasses import replace
        from pathlib import Path
        from pytest_llmbench.backends.openai import OpenAIBackend


        class FromFile(OpenAIBackend):
            def start(self, request):
                url = Path("server.url").read_text().strip()
                return super().start(replace(request, spec=replace(request.spec, base_url=url)))


        def pytest_llmbench_register_backends(registry):
            registry.add("from_file", FromFile())
    """
