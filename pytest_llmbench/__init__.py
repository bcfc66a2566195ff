"""pytest-llmbench: benchmarks of locally served language models as a pytest suite.

Importing this package imports nothing else; ``pytest_llmbench.LLM``, for annotations in suites, and
``pytest_llmbench.load_run``, which reads a finished run, are loaded on demand.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_llmbench.adapters.llm import LLM
    from pytest_llmbench.run import Run, load_run

__version__ = "0.1.0"
__all__ = ["LLM", "Run", "__version__", "load_run"]

_MODULES = {
    "LLM": "pytest_llmbench.adapters.llm",
    "Run": "pytest_llmbench.run",
    "load_run": "pytest_llmbench.run",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
