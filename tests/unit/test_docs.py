"""The documentation leads nowhere wrong: links, code, configuration and command lines are what they say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.config import get_config
from _pytest.config.argparsing import Parser

from pytest_llmbench import cli
from pytest_llmbench.adapters.registry import ProfileRegistry
from pytest_llmbench.core.config import Config, Models
from pytest_llmbench.core.matrix import build_matrix
from pytest_llmbench.core.settings import FOUNDING_SETTINGS
from pytest_llmbench.core.thresholds import limits_in_force
from pytest_llmbench.core.validation import Loaded, split_settings, validate
from pytest_llmbench.core.yaml_source import YamlDocument, parse_yaml
from scripts.reference import FOLDER, pages
from scripts.reference.commands import ENVIRONMENT
from tests.documents import PAGES, ROOT, Block, anchors_of, blocks_of, command_lines, inline_code, links_of

SOURCES = sorted((ROOT / "pytest_llmbench").rglob("*.py"))
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = {"sh", "console"}


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_in(*languages: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language in languages]


def test_the_reference_is_what_the_code_says() -> None:
    written = {path.name: path.read_text("utf-8") for path in (ROOT / FOLDER).glob("*.md")}
    differ = sorted(name for name in {**written, **pages()} if written.get(name) != pages().get(name))
    assert not differ, f"{FOLDER} is not up to date ({', '.join(differ)}); run: python -m scripts.reference"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links_of(page):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.is_relative_to(ROOT) or not path.exists() or (anchor and anchor not in anchors_of(path)):
            broken.append(link)
    assert not broken


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links_of(index)}
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - linked == {index}


@pytest.mark.parametrize("block", blocks_in("python"))
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.place, "exec", dont_inherit=True)


@pytest.mark.parametrize("block", blocks_in("yaml"))
def test_yaml_is_what_the_models_allow(block: Block) -> None:
    document = parse_yaml(block.text, block.place)
    if isinstance(document.data, dict) and "models" in document.data:
        models = Loaded(validate(Models, document), document)
        assert all(model.files or model.served for model in models.value.models)
        for mode in ("quick", "full"):
            build_matrix(Loaded(Config(backend="ollama"), document), models, mode)
    elif isinstance(document.data, dict) and set(document.data) & set(Config.model_fields):
        check_configuration(document)


def check_configuration(document: YamlDocument) -> None:
    """As at start: keys, and the limits and settings of the profiles that exist without a user's help."""
    config = validate(Config, document)
    profiles = ProfileRegistry()
    for profile in set(config.thresholds) & set(profiles):
        limits_in_force(profile, profiles.emitted(profile), [config.thresholds])
    for profile, written in split_settings(Loaded(config, document)).items():
        if profile in FOUNDING_SETTINGS:
            validate(FOUNDING_SETTINGS[profile], document, ("settings", profile), written)


@pytest.fixture(scope="module")
def pytest_parser() -> Iterator[Parser]:
    """The parser of a pytest with all plugins of this environment, whatever this run was told to leave out."""
    config = get_config()
    config.pluginmanager.load_setuptools_entrypoints("pytest11")
    yield config._parser
    config._ensure_unconfigure()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of ``llmbench`` are understood, and not carried out."""
    stubs = tuple((*command[:4], lambda _options: 0) for command in cli._COMMANDS)
    monkeypatch.setattr(cli, "_COMMANDS", stubs)


def check_command(words: list[str], pytest_parser: Parser) -> None:
    """Parse a command line of pytest or of ours with the parser that would."""
    program, *arguments = words
    if program == "llmbench":
        assert cli.main(arguments) == 0
        if arguments[:1] != ["plan"]:
            return
        arguments = [argument for argument in arguments[1:] if argument != "--json"]
    _, unknown = pytest_parser.parse_known_and_unknown_args(arguments)
    assert unknown == []


@pytest.mark.parametrize("block", blocks_in(*SHELL))
@pytest.mark.usefixtures("parsed")
def test_command_lines_are_understood(block: Block, pytest_parser: Parser) -> None:
    for line in command_lines(block):
        words = shlex.split(line)
        if words[0] in {"pytest", "llmbench"}:
            check_command(words, pytest_parser)


@pytest.mark.parametrize("page", PAGES, ids=named)
@pytest.mark.usefixtures("parsed")
def test_commands_in_sentences_are_understood(page: Path, pytest_parser: Parser) -> None:
    commands = {command[0] for command in cli._COMMANDS}
    for code in inline_code(page):
        words = code.split() if "…" in code or "'" in code or "[" in code else shlex.split(code)
        if not words or words[0] not in {"pytest", "llmbench"} or len(words) == 1 or "…" in code or "[" in code:
            continue
        if words[0] == "llmbench" and len(words) == 2:
            assert words[1] in {*commands, "--version"}, code
        else:
            check_command(words, pytest_parser)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_options_that_are_named_exist(page: Path) -> None:
    text = (ROOT / FOLDER / "command-line.md").read_text("utf-8")
    known = set(re.findall(r"--llmbench-[a-z-]+", text))
    assert set(re.findall(r"--llmbench-[a-z]+(?:-[a-z]+)*", page.read_text("utf-8"))) <= known


def test_codes_of_errors_exist() -> None:
    """Tables of errors, whose first column is called ``code``."""
    source = "\n".join(path.read_text("utf-8") for path in SOURCES)
    tables = re.findall(r"^\| code \|.*\n((?:\|.*\n)+)", "\n".join(p.read_text("utf-8") for p in PAGES), re.MULTILINE)
    codes = {code for table in tables for code in re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)}
    assert len(codes) >= 8
    assert sorted(code for code in codes if f'"{code}"' not in source) == []


def test_the_environment_is_told_whole() -> None:
    read = {name for path in SOURCES for name in re.findall(r'"(LLMBENCH_[A-Z_]+)"', path.read_text("utf-8"))}
    internal = {"LLMBENCH_SERVER"}  # the mark by which servers that were left behind are known
    assert read - internal == {name for name, _ in ENVIRONMENT if name.startswith("LLMBENCH_")}
