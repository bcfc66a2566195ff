"""What we ship is valid, and what the README promises is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_llmbench.core.config import Config, Models
from pytest_llmbench.core.matrix import build_matrix
from pytest_llmbench.core.validation import Loaded, keys_not_used_yet, validate
from pytest_llmbench.core.yaml_source import load_yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["models.yaml", "catalogue.yaml"])
def test_models_files_are_valid(name: str) -> None:
    document = load_yaml(ROOT / "configs" / name, name)
    models = validate(Models, document)
    matrix = build_matrix(Loaded(Config(), document), Loaded(models, document), "full")
    assert len(matrix.combinations) == {"models.yaml": 1, "catalogue.yaml": 10}[name]


def test_shipped_configuration_uses_nothing_that_has_no_effect() -> None:
    config = validate(Config, load_yaml(ROOT / "configs" / "config.yaml", "config.yaml"))
    assert list(keys_not_used_yet(config)) == []


def test_shipped_configuration_states_the_defaults() -> None:
    shipped = validate(Config, load_yaml(ROOT / "configs" / "config.yaml", "config.yaml"))
    differs = {name for name in Config.model_fields if getattr(shipped, name) != getattr(Config(), name)}
    # They repeat what the profiles default to.
    assert differs == {"thresholds"}


@pytest.mark.parametrize("heading", ["Quick start", "Tests"])
def test_readme_has_one_command_under(heading: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    block = re.search(r"```\w*\n(.*?)```", section[1], re.DOTALL)
    assert block is not None
    assert len(block[1].strip().splitlines()) == 1
