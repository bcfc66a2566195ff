"""Switches this folder on as a benchmark suite of pytest-llmbench."""

pytest_plugins = ["pytest_llmbench.suite"]
