"""pytest-llmbench: benchmarks of locally served language models as a pytest suite.

Importing this package imports nothing else; ``pytest_llmbench.LLM``, for annotations in suites, is loaded on demand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_llmbench.adapters.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from pytest_llmbench.adapters.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
