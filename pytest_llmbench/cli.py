"""The ``llmbench`` command."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pytest_llmbench import __version__

CONFTEST = '''"""Switches this folder on as a benchmark suite of pytest-llmbench."""

pytest_plugins = ["pytest_llmbench.suite"]
'''
_COPIED = ("suites", "configs", "data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0 for success, 1 for a negative answer; bad usage exits with 2."""
    parser = argparse.ArgumentParser(
        prog="llmbench", description="Benchmarks of locally served language models, run with pytest."
    )
    parser.add_argument("--version", action="version", version=f"llmbench {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, text, example, add_arguments, run in (
        ("init", "make a folder a benchmark suite", "llmbench init my-benchmarks", _init_arguments, _init),
        ("report", "write a run's derived reports again", "llmbench report latest", _report_arguments, _report),
    ):
        command = commands.add_parser(
            name,
            help=text,
            description=text.capitalize() + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_arguments(command)
        command.set_defaults(command=run)  # not `run`: that is an argument of report
    options = parser.parse_args(arguments)
    run_command: Callable[[argparse.Namespace], int] = options.command
    return run_command(options)


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default=".", type=Path, help="the folder (default: this one)")
    parser.add_argument("--force", action="store_true", help="replace files that exist")


def _init(options: argparse.Namespace) -> int:
    from pytest_llmbench.runtime.share import share_dir

    folder: Path = options.folder
    files = {folder / "conftest.py": CONFTEST.encode()}
    for name in _COPIED:
        source = share_dir(name)
        for path in sorted(source.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                files[folder / name / path.relative_to(source)] = path.read_bytes()
    try:
        in_the_way = [path for path, content in files.items() if path.exists() and path.read_bytes() != content]
        if in_the_way and not options.force:
            names = "\n".join(f"  {path}" for path in in_the_way)
            print(
                f"llmbench: these files exist and differ; nothing was written (--force replaces them):\n{names}",
                file=sys.stderr,
            )
            return 1
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as exc:
        print(f"llmbench: {exc.filename} can not be written: {exc.strerror}", file=sys.stderr)
        return 1
    where = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    print(f"wrote {len(files)} files; next: {where}pytest suites/")
    return 0


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run id, latest, or a run's folder")
    parser.add_argument("--output", default="results", type=Path, help="folder of results (default: results)")


def _report(options: argparse.Namespace) -> int:
    from pytest_llmbench.errors import LlmbenchError
    from pytest_llmbench.reports import WRITERS, write_reports
    from pytest_llmbench.runtime.run_folder import find_run, read_cells

    try:
        folder = find_run(options.output, options.run)
        for path in write_reports(folder, list(read_cells(folder)), WRITERS):
            print(path)
    except (LlmbenchError, OSError) as exc:
        print(f"llmbench: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
