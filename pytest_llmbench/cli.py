"""The ``llmbench`` command."""

from __future__ import annotations

import argparse
import io
import math
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
    """Run the command. Returns 0 for success, 1 for a negative answer, 2 or SystemExit(2) for bad usage."""
    from pytest_llmbench.errors import ConfigError, LlmbenchError

    parser = argparse.ArgumentParser(
        prog="llmbench", description="Benchmarks of locally served language models, run with pytest."
    )
    parser.add_argument("--version", action="version", version=f"llmbench {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, text, example, add_arguments, run in _COMMANDS:
        command = commands.add_parser(
            name,
            help=text,
            description=text.capitalize() + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_arguments(command)
        command.set_defaults(command=run)  # not `run`: that is an argument of report
    options = parser.parse_args(_pytest_arguments_apart(sys.argv[1:] if arguments is None else arguments))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no × or ✓ shows a question mark
    run_command: Callable[[argparse.Namespace], int] = options.command
    try:
        return run_command(options)
    except (LlmbenchError, OSError) as exc:
        print(f"llmbench: {exc}", file=sys.stderr)
        return 2 if isinstance(exc, ConfigError) else 1
    except KeyboardInterrupt:
        print("llmbench: stopped", file=sys.stderr)
        return 130


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
    from pytest_llmbench.reports import WRITERS, write_reports
    from pytest_llmbench.runtime.run_folder import find_run

    for path in write_reports(find_run(options.output, options.run), WRITERS):
        print(path)
    return 0


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "old", metavar="A", help="the earlier run: a run id, latest, a run's folder, or a baseline file"
    )
    parser.add_argument("new", metavar="B", help="the later one")
    parser.add_argument("--output", default="results", type=Path, help="folder of results (default: results)")
    parser.add_argument(
        "--max-regression", type=_positive, default=5.0, metavar="PERCENT", help="how much worse counts (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, for a pull request")


def _compare(options: argparse.Namespace) -> int:
    from pytest_llmbench.commands import compare

    return compare.run(options)


def _baseline_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("save",), metavar="save", help="write what a later run is compared with")
    parser.add_argument("run", metavar="RUN", help="a run id, latest, or a run's folder")
    parser.add_argument("file", metavar="FILE", type=Path, help="a small JSON file, to be committed")
    parser.add_argument("--output", default="results", type=Path, help="folder of results (default: results)")


def _baseline(options: argparse.Namespace) -> int:
    from pytest_llmbench.commands import baseline

    return baseline.run(options)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run id, latest, or a run's folder")
    parser.add_argument("file", metavar="FILE", type=Path, help="what to write: JSON as pytest-benchmark saves it")
    parser.add_argument("--output", default="results", type=Path, help="folder of results (default: results)")


def _export(options: argparse.Namespace) -> int:
    from pytest_llmbench.commands import export

    return export.run(options)


def _measure_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="where the server listens, for example http://127.0.0.1:8080")
    parser.add_argument("--streams", type=_whole(1), metavar="N", help="requests under way at a time (default: 1)")
    parser.add_argument("--requests", type=_whole(1), default=20, metavar="N", help="in all (default: 20)")
    parser.add_argument("--tokens", type=_whole(1), default=128, metavar="N", help="per answer (default: 128)")
    parser.add_argument("--prompt-tokens", type=_whole(1), metavar="N", help="per prompt (default: a short one)")
    parser.add_argument("--rate", type=_positive, metavar="R", help="send R requests a second instead, come what may")
    parser.add_argument("--arrivals", choices=("constant", "poisson"), help="how they come (default: constant)")
    parser.add_argument("--seed", type=_whole(0), metavar="N", help="of --arrivals poisson (default: 0)")
    parser.add_argument("--model", metavar="NAME", help="the model to ask for (default: the only one there is)")
    parser.add_argument(
        "--protocol", choices=_PROTOCOLS, metavar="P", help=f"{', '.join(_PROTOCOLS)} (default: found out)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: results/measure-<time>)")
    parser.add_argument("--api-key-env", metavar="VAR", help="environment variable that holds the server's key")
    parser.add_argument(
        "--timeout", type=_positive, metavar="SECONDS", help="for a request (default: 3600, 600 to its first token)"
    )
    parser.add_argument("--json", action="store_true", help="print summary.json instead of a table")


def _measure(options: argparse.Namespace) -> int:
    from pytest_llmbench.commands import measure

    return measure.run(options)


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="PATH", help="default: configs/config.yaml, if there is one")
    parser.add_argument(
        "--models", type=Path, metavar="PATH", help="default: configs/models.yaml, else the shipped one"
    )
    parser.add_argument("--no-calibration", action="store_true", help="leave out how precise timing is (15 seconds)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _doctor(options: argparse.Namespace) -> int:
    from pytest_llmbench.commands import doctor

    return doctor.run(options)


def _models_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("list", "download", "verify"),
        metavar="list|download|verify",
        help="what is here and what is not; fetch what is missing; read again what is here, and compare",
    )
    parser.add_argument("--config", type=Path, metavar="PATH", help="default: configs/config.yaml, if there is one")
    parser.add_argument(
        "--models", type=Path, metavar="PATH", help="default: configs/models.yaml, else the shipped one"
    )
    parser.add_argument("--mode", choices=("quick", "full"), help="whose quantizations (default: test_mode)")
    parser.add_argument("--model", action="append", metavar="NAME", help="only this model; may be repeated")
    parser.add_argument(
        "--quant", action="append", metavar="Q", help="this quantization instead of the mode's; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _models(options: argparse.Namespace) -> int:
    from pytest_llmbench.commands import models

    return models.run(options)


def _estimate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="WHAT",
        help="a GGUF file (of several shards, one); owner/name/file.gguf on Hugging Face, of which only the header is "
        "fetched; or NAME or NAME:QUANT of the models file",
    )
    parser.add_argument("--ctx", type=_whole(16), metavar="N", help="tokens, of all slots (default: as configured)")
    parser.add_argument("--parallel", type=_whole(1), metavar="N", help="slots (default: 1)")
    parser.add_argument("--unified-kv", action="store_true", help="slots share one cache, instead of a part each")
    for side in ("k", "v"):
        parser.add_argument(
            f"--cache-type-{side}", choices=_CACHE_TYPES, metavar="T", help=f"{', '.join(_CACHE_TYPES)} (default: f16)"
        )
    parser.add_argument("--ubatch", type=_whole(1), metavar="N", help="tokens of a prompt at a time (default: 512)")
    parser.add_argument("--gpu-layers", type=_whole(-1), metavar="N", help="-1: all (default: as configured)")
    parser.add_argument("--flash-attention", choices=("on", "off"), metavar="on|off", help="default: on")
    parser.add_argument("--engine", choices=("embedded", "llama_cpp"), metavar="E", help="embedded or llama_cpp")
    parser.add_argument("--memory", type=_positive, metavar="GB", help="in place of limits.max_memory_gb")
    parser.add_argument("--revision", metavar="R", help="of a file on Hugging Face: branch, tag or commit")
    parser.add_argument("--config", type=Path, metavar="PATH", help="default: configs/config.yaml, if there is one")
    parser.add_argument(
        "--models", type=Path, metavar="PATH", help="default: configs/models.yaml, else the shipped one"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _estimate(options: argparse.Namespace) -> int:
    from pytest_llmbench.commands import estimate

    return estimate.run(options)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "llmbench plan [-h] [--json] [PYTEST ARGUMENT ...]"
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "pytest_arguments", nargs="*", metavar="PYTEST ARGUMENT", help="passed on to pytest (tests by default: suites/)"
    )


def _pytest_arguments_apart(arguments: Sequence[str]) -> list[str]:
    """Put what ``plan`` passes on behind ``--``, where argparse leaves even options alone, and in their order."""
    if list(arguments[:1]) != ["plan"]:
        return list(arguments)
    own = [argument for argument in arguments[1:] if argument in _OWN_OPTIONS_OF_PLAN]
    return ["plan", *own, "--", *(argument for argument in arguments[1:] if argument not in _OWN_OPTIONS_OF_PLAN)]


def _plan(options: argparse.Namespace) -> int:
    from pytest_llmbench.commands import plan

    return plan.run(options)


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; write a whole number from {least} up")
        return number

    return parse


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; write a number above 0")
    return number


_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_OWN_OPTIONS_OF_PLAN = {"--json", "-h", "--help"}
_PROTOCOLS = ("llama_cpp", "openai_chat", "openai_completions", "ollama_generate", "ollama_chat")
_COMMANDS: tuple[
    tuple[str, str, str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]], ...
] = (
    ("init", "make a folder a benchmark suite", "llmbench init my-benchmarks", _init_arguments, _init),
    (
        "plan",
        "say what a run would do: order, memory, downloads, skips",
        "llmbench plan suites/ -k Q4_K_M",
        _plan_arguments,
        _plan,
    ),
    (
        "measure",
        "load a running server and time every answer",
        "llmbench measure http://127.0.0.1:8080 --streams 4 --requests 100 --tokens 128",
        _measure_arguments,
        _measure,
    ),
    (
        "doctor",
        "check what a run needs, and how precise timing is here",
        "llmbench doctor --config configs/config.yaml",
        _doctor_arguments,
        _doctor,
    ),
    (
        "models",
        "list, download and verify model files",
        "llmbench models download --mode quick --model Qwen2.5-7B-Instruct",
        _models_arguments,
        _models,
    ),
    (
        "estimate",
        "tell how much memory a model needs, and whether that fits",
        "llmbench estimate models/7B/qwen2.5-7b-instruct-q4_k_m.gguf --ctx 32768 --parallel 4 --memory 16",
        _estimate_arguments,
        _estimate,
    ),
    ("report", "write a run's derived reports again", "llmbench report latest", _report_arguments, _report),
    (
        "compare",
        "tell what became worse from one run to another",
        "llmbench compare baseline.json latest --max-regression 3",
        _compare_arguments,
        _compare,
    ),
    (
        "baseline",
        "keep of a run what later ones are compared with",
        "llmbench baseline save latest baseline.json",
        _baseline_arguments,
        _baseline,
    ),
    (
        "export",
        "write a run as pytest-benchmark would have saved it",
        "llmbench export latest 0001_nightly.json",
        _export_arguments,
        _export,
    ),
)

if __name__ == "__main__":
    sys.exit(main())
