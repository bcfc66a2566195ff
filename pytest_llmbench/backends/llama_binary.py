"""What a llama-server binary is and which arguments it takes. Options come and go; an unknown one ends it at once."""

from __future__ import annotations

import difflib
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llmbench.errors import ServerError

_ASK_SECONDS = 30.0
_FLAGS_OF_A_LINE = re.compile(r"--?[A-Za-z][\w.-]*(?:,\s+--?[A-Za-z][\w.-]*)*")
_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")
_TWO_VALUES = re.compile(r"[A-Z]+ [A-Z]+")
_REMOVED = "the argument has been removed."


@dataclass(frozen=True)
class Option:
    """One option of the binary: its flags, how many values follow, and, if it was removed, what to use instead."""

    flags: tuple[str, ...]
    values: int
    removed: str | None = None


@dataclass(frozen=True)
class LlamaBinary:
    """A binary as it describes itself.

    Attributes:
        version: as ``--version`` says it.
        options: by flag.
        key_from_environment: it takes the API key from ``LLAMA_API_KEY``.
    """

    path: Path
    version: str
    options: dict[str, Option]
    key_from_environment: bool

    def option(self, flag: str) -> Option | None:
        """The option of a flag that works; underscores count as hyphens, as the binary itself has it."""
        found = self.options.get("--" + flag[2:].replace("_", "-") if flag.startswith("--") else flag)
        return found if found is not None and found.removed is None else None

    def keep_known(self, wanted: Sequence[Sequence[str]]) -> tuple[list[str], tuple[str, ...]]:
        """Arguments with the flags this binary knows, and a note on those it does not.

        Args:
            wanted: a flag, or several of which any will do, separated by ``|``; then its values.
        """
        arguments: list[str] = []
        dropped = []
        for names, *values in wanted:
            flags = names.split("|")
            known = next((flag for flag in flags if self.option(flag) is not None), None)
            if known is None:
                dropped.append(" ".join([flags[0], *values]))
            else:
                arguments += [known, *values]
        notes = (f"this llama-server ({self.version}) knows no {', '.join(dropped)}; left out",) if dropped else ()
        return arguments, notes

    def check_extra(self, extra: Sequence[str], reserved: dict[str, str]) -> None:
        """Refuse arguments the binary would end at, or that would undo what is recorded.

        Args:
            reserved: flags that are not for users, each with what to do instead.

        Raises:
            ServerError: ``unknown_flag`` or ``reserved_flag``.
        """
        position = 0
        while position < len(extra):
            flag = extra[position]
            option = self.option(flag)
            if option is None:
                raise self._unknown(flag)
            for known in option.flags:
                if known in reserved:
                    raise ServerError(
                        "reserved_flag", f"extra_args may not hold {flag}: {reserved[known]}", {"flag": flag}
                    )
            if len(extra) - position - 1 < option.values:
                raise ServerError("unknown_flag", f"extra_args: {flag} needs a value behind it", {"flag": flag})
            position += 1 + option.values

    def _unknown(self, flag: str) -> ServerError:
        removed = self.options.get(flag)
        if removed is not None and removed.removed is not None:
            hint = f"it was removed: {removed.removed}"
        else:
            near = difflib.get_close_matches(flag, self.options, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"see {self.path.name} --help"
        return ServerError(
            "unknown_flag", f"extra_args: {self.path} ({self.version}) knows no {flag!r}; {hint}", {"flag": flag}
        )


def find_program(configured: str, rootdir: Path | None, key: str) -> Path:
    """The program a configuration names: a bare name on PATH, a path relative to ``rootdir``, or an absolute path.

    Raises:
        ServerError: ``engine_missing``.
    """
    path = Path(configured).expanduser()
    if path.name == configured:
        found = shutil.which(configured)
        if found is not None:
            return Path(found)
        where = "is not on PATH"
    else:
        path = (rootdir or Path()).absolute() / path
        if path.is_file() and os.access(path, os.X_OK):
            return path
        where = "is not executable; chmod +x it" if path.is_file() else "does not exist"
    elsewhere = None if path.is_file() else shutil.which(path.name)
    hint = f"{elsewhere} is on PATH: write {key}: {path.name}" if elsewhere else f"point {key} at a llama-server"
    raise ServerError(
        "engine_missing",
        f"{configured} ({path}) {where}; {hint}, or use backend: embedded, which brings its engine along",
        {"path": str(path)},
    )


def describe_binary(path: Path) -> LlamaBinary:
    """Ask a binary for its version and its options, once for as long as the file does not change.

    Raises:
        ServerError: ``engine_unusable``: it does not run, or is no llama-server.
    """
    status = path.stat()
    return _describe(path, (status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=16)
def _describe(path: Path, _as_of: tuple[int, int]) -> LlamaBinary:
    text = _output(path, "--help")
    options = parse_help(text)
    if "--model" not in options or "--port" not in options:
        raise ServerError("engine_unusable", f"{path} --help shows no --model and --port; is it a llama-server?")
    lines = [line.strip() for line in _output(path, "--version").splitlines() if line.startswith("version:")]
    version = lines[0].removeprefix("version:").strip() if lines else "unknown version"
    return LlamaBinary(path, version, options, "LLAMA_API_KEY" in text)


def parse_help(text: str) -> dict[str, Option]:
    """The options in the output of ``llama-server --help``, by flag."""
    options: dict[str, Option] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        found = _FLAGS_OF_A_LINE.match(line)
        if found is None:
            continue
        flags = tuple(_FLAG.findall(found[0]))
        # `-t,    --threads N      number of …`: what stands before two spaces is the value's name.
        value, _, about = line[found.end() :].lstrip(" ").partition("  ")
        if line[found.end() : found.end() + 2] == "  ":  # no value, only a description
            value, about = "", line[found.end() :]
        value, removed = value.strip(), None
        if _REMOVED in about:
            rest = [about, *_continuation(lines, number + 1)]
            removed = " ".join(" ".join(rest).split()).partition(_REMOVED)[2].strip()
        option = Option(flags, 0 if not value else 2 if _TWO_VALUES.fullmatch(value) else 1, removed)
        options.update(dict.fromkeys(flags, option))
    return options


def _continuation(lines: Sequence[str], begin: int) -> list[str]:
    """The indented lines of a description, without the environment variable at its end."""
    found = []
    for line in lines[begin:]:
        if not line.startswith(" ") or line.strip().startswith("(env:"):
            break
        found.append(line)
    return found


def _output(path: Path, argument: str) -> str:
    """What the binary prints, to whichever stream."""
    try:
        result = subprocess.run(
            [path, argument],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_ASK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise ServerError("engine_unusable", f"{path} {argument} does not end; is it a llama-server?") from exc
    except OSError as exc:
        raise ServerError(
            "engine_unusable", f"{path} can not be run: {exc.strerror}; was it built for this machine?"
        ) from exc
    text = result.stdout.decode("utf-8", "replace")
    if result.returncode != 0:
        last = text.strip().splitlines()[-1:] or ["without a word"]
        raise ServerError("engine_unusable", f"{path} {argument} ends with status {result.returncode}: {last[0][:300]}")
    return text
