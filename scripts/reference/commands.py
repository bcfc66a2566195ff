"""``command-line.md``: the commands and options as the parsers have them, the same on every release of Python."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from pytest_llmbench import cli
from pytest_llmbench.adapters.options import add_options
from scripts.reference.text import as_markdown, page, table

if TYPE_CHECKING:
    import pytest

INTRODUCTION = """pytest's own options all hold; these are ours. What an exit status means for a job is told in
[continuous integration](../ci.md)."""

# What a run reads of its environment, beside what the libraries under it read.
ENVIRONMENT = (
    ("LLMBENCH_RUNTIME_DIR", "folder of the locks by which runs share devices (default: `/tmp/pytest-llmbench-<uid>`)"),
    ("LLMBENCH_HOST_LABEL", "a name for this host in records, where several have the same hardware"),
    ("CUDA_VISIBLE_DEVICES", "which GPUs may be used and are watched"),
    ("HF_TOKEN", "of Hugging Face, for gated models"),
    ("HF_HUB_OFFLINE", "`1`: nothing is fetched from Hugging Face"),
    ("HF_ENDPOINT", "another hub that speaks Hugging Face's API"),
    ("GITHUB_STEP_SUMMARY", "the file to which a run's `summary.md` is appended; GitHub Actions sets it"),
    ("NO_COLOR", "if set, output has no colours"),
)


@dataclass
class _PytestOptions:
    """Takes options as pytest's parser does, to be told of them."""

    options: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    ini: set[str] = field(default_factory=set)

    def getgroup(self, _name: str, _description: str) -> _PytestOptions:
        return self

    def addoption(self, name: str, **attributes: Any) -> None:
        self.options.append((name, attributes))

    def addini(self, name: str, *_: Any, **__: Any) -> None:
        self.ini.add(name)


def command_line_page() -> str:
    """The page of commands and options."""
    sections = [["## pytest", "", "An option holds against the ini key of the same meaning.", "", *_of_pytest()]]
    sections += [_of_command(*command[:4]) for command in cli._COMMANDS]
    environment = table(("variable", "meaning"), ((f"`{name}`", text) for name, text in ENVIRONMENT))
    return page("Command line", INTRODUCTION, *sections, ["## Environment", "", *environment])


def _of_pytest() -> list[str]:
    parser = _PytestOptions()
    add_options(cast("pytest.Parser", parser))
    rows = []
    for name, attributes in parser.options:
        if attributes["help"] == argparse.SUPPRESS:
            continue
        ini = name.removeprefix("--").replace("-", "_")
        value = attributes.get("metavar") or "|".join(attributes.get("choices", ()))
        rows.append((_code(f"{name} {value}"), _code(ini) if ini in parser.ini else "–", _words(attributes["help"])))
    return table(("option", "ini key", "meaning"), rows)


def _of_command(name: str, text: str, example: str, add_arguments: Any) -> list[str]:
    parser = argparse.ArgumentParser(prog=f"llmbench {name}", add_help=False)
    add_arguments(parser)
    positional = [action for action in parser._actions if not action.option_strings]
    options = [action for action in parser._actions if action.option_strings]
    usage = [f"llmbench {name}", *(_place(action) for action in positional), *(["[OPTIONS]"] if options else [])]
    lines = [
        f"## llmbench {name}",
        "",
        f"{text.capitalize()}.",
        "",
        "```sh",
        f"{example}",
        "```",
        "",
        f"`{' '.join(usage)}`",
        "",
    ]
    return lines + table(("argument", "meaning"), (*map(_argument, positional), *map(_argument, options)))


def _place(action: argparse.Action) -> str:
    place = str(action.metavar or action.dest)
    return {"?": f"[{place}]", "*": f"[{place} …]"}.get(str(action.nargs), place)


def _argument(action: argparse.Action) -> tuple[str, str]:
    if not action.option_strings:
        return _code(_place(action)), _words(action.help or "")
    value = (
        "" if action.nargs == 0 else str(action.metavar or "|".join(map(str, action.choices or (action.dest.upper(),))))
    )
    return _code(f"{', '.join(action.option_strings)} {value}"), _words(action.help or "")


def _code(text: str) -> str:
    return f"`{text.strip()}`"


def _words(text: str) -> str:
    """Help text, with names of options as code."""
    return as_markdown(re.sub(r"(?<![\w`])(--[a-z][\w-]*)", r"`\1`", text.replace("%%", "%")))
