"""The examples of the how-to pages run as they stand there."""

from __future__ import annotations

import pytest
import yaml

from tests.documents import ROOT, blocks_of
from tests.plugin.bench import Bench


def examples(page: str) -> list[str]:
    """The Python blocks of a page that are marked as examples."""
    return [block.text for block in blocks_of(ROOT / "docs" / page) if block.words == ("example",)]


def test_a_profile(bench: Bench) -> None:
    conftest, suite, own_test = examples("howto-profile.md")
    (written,) = (block.text for block in blocks_of(ROOT / "docs" / "howto-profile.md") if block.language == "yaml")
    bench.fake.answer = "Paris."
    bench.write("conftest.py", conftest)
    bench.write("suites/test_translation.py", suite)
    bench.write("suites/test_interactive.py", own_test)
    bench.config |= yaml.safe_load(written)
    assert bench.run("suites/").ret == pytest.ExitCode.OK
    cells = {cell["profile"]: cell for cell in bench.cells()}
    assert cells["interactive"]["status"] == "passed"
    assert {"ttft_seconds", "answer_seconds"} <= set(cells["translation"]["metrics"])
    assert [limit["key"] for limit in cells["translation"]["thresholds"]] == ["max_answer_seconds"]
    asked = [request for request in bench.requests() if "test_translation" in request["cell"]]
    assert [request["phase"] for request in asked] == ["warmup", *["sample"] * 6]
    assert all("Translate into German" in request["params"]["messages"][0]["content"] for request in asked)


def test_a_backend(bench: Bench) -> None:
    (conftest,) = examples("howto-backend.md")
    bench.write("conftest.py", conftest)
    bench.config |= {"backend": "from_file", "openai": {}}
    bench.run("suites/")
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]["code"]) == ("error", "unreachable")
    assert "server.url can not be read" in cell["reason"]["message"]
    bench.write("server.url", bench.fake.url + "\n")
    assert bench.run("suites/").ret == pytest.ExitCode.OK
    assert bench.cells()[0]["backend"] == "from_file"
