"""Our rates beside those of ``llama-bench``: the same file, the same build, the same threads, the same depth.

Both use one build of llama.cpp: ``llama-bench``, and the ``llama-server`` that lies beside it, started by our
``llama_cpp`` backend. For each depth they take turns, each time with the model loaded anew, and who is first changes
from round to round. A rate of a round is the median of its repetitions, and what is judged is the median over rounds of
the ratios ours / theirs. Bound: within 3 % of 1, for both rates and at each depth. Nobody else should use the machine.

What is made equal: threads, batch 2048 and micro-batch 512, flash attention ``auto``, KV cache in F16, no layer on a
GPU; both are told so. One sequence, and the other settings (loading, repacking, polling) are the build's own for both.

decode (``llama-bench -n G -d D``): a KV cache of D tokens, and G steps that each evaluate one more. Ours: D tokens are
    read once; then the same prompt again, from the cache but for its last token, with an answer of G + 1 tokens; its
    first token comes from reading the prompt, and the G gaps after it are those G steps. The rate is the client's own.
    At depth 0 the prompt has one token, so the steps are one token deeper. What a server does for each token and
    llama-bench does not (choosing it, turning it into text, sending it) is in our rate, as users feel it; the server's
    own rate is shown beside it, which tells the sending apart.
prefill (``llama-bench -p P -d D``): P tokens evaluated behind D in the KV cache. Ours: a prompt of the D tokens, which
    the server has, and of P others that never follow one another twice; the server must say that it took exactly D from
    its cache and read exactly P, and the rate is P by its own prompt time.

llama-bench takes token ids at random, we take those of common words: for a dense model that is the same work.

Depths that leave no room within what the model was trained for are lowered, which is said. At 8k tokens, reading them
takes most of the time: three times a round, some minutes on a small machine.

    python benchmarks/against_llama_bench.py [--depths 0 2048 8192] [--rounds 5] [--repetitions 2] [--threads N]
                                             [--prompt 512] [--generate 64] [--model FILE] [--llama-bench PATH]

``llama-bench`` is looked for beside ``$LLAMA_SERVER``, where ``scripts/build-llama-server`` puts it, and on PATH. Exit
status: 0 within the bound, 1 beyond, 2 where there is no ``llama-bench`` or something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from pytest_llmbench.backends.base import StartRequest  # noqa: E402
from pytest_llmbench.backends.llama_cpp import LlamaCppBackend  # noqa: E402
from pytest_llmbench.client.endpoint import Endpoint  # noqa: E402
from pytest_llmbench.client.generation import Generation  # noqa: E402
from pytest_llmbench.client.load import send  # noqa: E402
from pytest_llmbench.client.prompts import prompts_of  # noqa: E402
from pytest_llmbench.client.timings import ServerTimes  # noqa: E402
from pytest_llmbench.core.cell import ServerSpec  # noqa: E402
from pytest_llmbench.core.gguf import read_header  # noqa: E402
from pytest_llmbench.core.records import RequestRecord  # noqa: E402
from pytest_llmbench.errors import LlmbenchError  # noqa: E402
from pytest_llmbench.runtime.host import usable_cores  # noqa: E402

MODEL = REPOSITORY / "models" / "135M" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_DIFFERENCE_PERCENT = 3.0
BATCH, MICRO_BATCH, FLASH_ATTENTION, CACHE_TYPE = "2048", "512", "auto", "f16"
# What is spelled the same for both programs and that our backend does not pass by itself.
SHARED = ("-b", BATCH, "-ub", MICRO_BATCH, "-fa", FLASH_ATTENTION)
CONTEXT_STEP_TOKENS = 256  # llama.cpp rounds a context up to a multiple of it
BENCH_SECONDS = 3600.0  # for one run of llama-bench: no machine is that slow
VERSION_SECONDS = 30.0


class CanNotCompare(Exception):
    """Something did not do what is to be compared; says what."""


@dataclass(frozen=True)
class Programs:
    """Both programs of one build, and what it says of itself."""

    bench: Path
    server: Path
    version: str


@dataclass(frozen=True)
class Task:
    """What both are to do; lengths in tokens."""

    model: Path
    threads: int
    prompt: int
    generate: int
    repetitions: int


@dataclass(frozen=True)
class Rates:
    """Of one side in one round, in tokens/s: medians of the repetitions.

    ``told``: the decode rate as the server itself tells it; None for llama-bench.
    """

    prefill: float
    decode: float
    told: float | None = None


def main() -> int:
    options = _options()
    if not options.model.exists():
        print(f"there is no {options.model}: name one with --model, or run pytest suites/ once", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else llama-bench would go on without us
    task = Task(options.model, options.threads, options.prompt, options.generate, options.repetitions)
    try:
        programs = _programs(options.llama_bench)
        print(f"llama-bench and llama-server {programs.version}; {task.model.name}, {task.threads} threads")
        depths = _depths(task, options.depths)
        rounds = _compare(programs, task, depths, options.rounds)
    except (CanNotCompare, LlmbenchError) as exc:
        print(f"could not be compared: {exc}", file=sys.stderr)
        return 2
    problems = [problem for depth in depths for problem in _sum_up(depth, rounds[depth])]
    for problem in problems:
        print(f"beyond the bound: {problem}")
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 2048, 8192], help="tokens in the KV cache before")
    parser.add_argument("--rounds", type=int, default=5, help="of both, in turn")
    parser.add_argument("--repetitions", type=int, default=2, help="of each rate within a round")
    parser.add_argument("--prompt", type=int, default=512, help="tokens that are read")
    parser.add_argument("--generate", type=int, default=64, help="tokens that are generated")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of both")
    parser.add_argument("--model", type=Path, default=MODEL, help="the GGUF file")
    parser.add_argument("--llama-bench", type=Path, help="the program, with llama-server beside it")
    options = parser.parse_args()
    least = {"rounds": 1, "repetitions": 1, "prompt": 2, "generate": 2, "threads": 1}
    for name, number in least.items():
        if getattr(options, name) < number:
            parser.error(f"--{name} must be {number} or more")
    if min(options.depths) < 0:
        parser.error("--depths must be 0 or more")
    return options


def _programs(asked: Path | None) -> Programs:
    """Find both programs. Raises CanNotCompare."""
    bench = asked or _find_bench()
    if bench is None or not bench.is_file():
        where = f"at {asked}" if asked else "here"
        raise CanNotCompare(f"there is no llama-bench {where}: run scripts/build-llama-server, or use --llama-bench")
    bench = bench.resolve()
    server = bench.with_name("llama-server")
    if not server.is_file():
        raise CanNotCompare(f"there is no llama-server beside {bench}: both must be of one build")
    versions = [_version(program) for program in (bench, server)]
    if versions[0] != versions[1]:
        raise CanNotCompare(f"llama-bench is {versions[0]}, the llama-server beside it {versions[1]}: not one build")
    return Programs(bench, server, versions[0])


def _find_bench() -> Path | None:
    configured = os.environ.get("LLAMA_SERVER")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = sorted(cache.glob("pytest-llmbench/llama.cpp-*/bin/llama-bench"))
    on_path = shutil.which("llama-bench")
    candidates = [Path(configured).with_name("llama-bench")] if configured else []
    candidates += [*reversed(built), *([Path(on_path)] if on_path else [])]
    return next((path for path in candidates if path.is_file()), None)


def _version(program: Path) -> str:
    try:
        ended = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise CanNotCompare(f"{program} --version: {exc}") from exc
    lines = [line for line in (ended.stdout + ended.stderr).splitlines() if line.startswith("version: ")]
    if not lines:
        raise CanNotCompare(f"{program} --version names no version")
    return lines[0].removeprefix("version: ")


def _depths(task: Task, asked: list[int]) -> list[int]:
    """The depths, lowered to where everything fits into what the model was trained for. Raises CanNotCompare."""
    trained = read_header(task.model).context_length
    if trained is None:
        return asked
    room = trained - _needed_tokens(task, 0)
    if room < 0:
        raise CanNotCompare(f"{task.model.name} was trained for {trained} tokens, --prompt or --generate is too long")
    deepest = room // CONTEXT_STEP_TOKENS * CONTEXT_STEP_TOKENS
    fitting = []
    for depth in asked:
        if depth > room:
            print(f"depth {depth} is lowered to {deepest}: the model was trained for {trained} tokens in all")
        fitting.append(depth if depth <= room else deepest)
    return list(dict.fromkeys(fitting))


def _needed_tokens(task: Task, depth: int) -> int:
    """Of our server's context: it refuses prompts that leave no room for an answer."""
    return depth + max(task.prompt, task.generate) + 2


def _compare(programs: Programs, task: Task, depths: list[int], count: int) -> dict[int, list[tuple[Rates, Rates]]]:
    """Ours and theirs of each round, by depth. Raises CanNotCompare, LlmbenchError."""
    rounds: dict[int, list[tuple[Rates, Rates]]] = defaultdict(list)
    print("rates in tokens/s; told: as the server itself says")
    print(f"{'':18}{'prefill':>9}{'':>9}{'':>8}{'decode':>12}{'':>9}{'':>9}{'':>8}")
    columns = f"{'ours':>9}{'theirs':>9}{'ratio':>8}{'ours':>12}{'told':>9}{'theirs':>9}{'ratio':>8}"
    print(f"{'depth':>8}{'round':>7}   {columns}")
    for number in range(count):
        for depth in depths:
            if number % 2 == 0:
                ours = _ours(programs, task, depth)
                theirs = _theirs(programs, task, depth)
            else:
                theirs = _theirs(programs, task, depth)
                ours = _ours(programs, task, depth)
            rounds[depth].append((ours, theirs))
            prefill = f"{ours.prefill:9.2f}{theirs.prefill:9.2f}{ours.prefill / theirs.prefill:8.3f}"
            decode = f"{ours.decode:12.2f}{ours.told or 0:9.2f}{theirs.decode:9.2f}{ours.decode / theirs.decode:8.3f}"
            print(f"{depth:>8}{number + 1:>7}   {prefill}{decode}", flush=True)
    return rounds


def _theirs(programs: Programs, task: Task, depth: int) -> Rates:
    """Run llama-bench once, which loads the model, warms up, and does both tests. Raises CanNotCompare."""
    command = [str(programs.bench), "-m", str(task.model), "-t", str(task.threads), *SHARED, "-ngl", "0"]
    command += ["-ctk", CACHE_TYPE, "-ctv", CACHE_TYPE, "-p", str(task.prompt), "-n", str(task.generate)]
    command += ["-d", str(depth), "-r", str(task.repetitions), "-o", "json"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=BENCH_SECONDS, check=True)
        tests = {(test["n_prompt"], test["n_gen"]): median(test["samples_ts"]) for test in json.loads(ended.stdout)}
        return Rates(tests[task.prompt, 0], tests[0, task.generate])
    except subprocess.CalledProcessError as exc:
        raise CanNotCompare(f"llama-bench ended with {exc.returncode}: {exc.stderr.strip()[-500:]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise CanNotCompare(f"llama-bench was not done after {BENCH_SECONDS:.0f} s") from exc
    except (OSError, ValueError, KeyError) as exc:
        raise CanNotCompare(f"llama-bench did not say what it measured: {exc!r}") from exc


def _ours(programs: Programs, task: Task, depth: int) -> Rates:
    """Start a server, and measure both rates on it. Raises CanNotCompare, LlmbenchError."""
    with _server(programs, task, depth) as endpoint:
        behind, words = _token_ids(endpoint, depth), _token_ids(endpoint, task.prompt)
        # Fills the cache; at depth 0 it only warms up, as llama-bench does.
        _ask(endpoint, Generation(1, behind or words, demand_length=True))
        prefills = [
            _prefill_rate(endpoint, behind, _starting_anew(words, number)) for number in range(task.repetitions)
        ]
        decodes = [_decode(endpoint, behind or words[:1], task.generate) for _ in range(task.repetitions)]
    own, told = zip(*decodes, strict=True)
    return Rates(median(prefills), median(own), median(told))


@contextmanager
def _server(programs: Programs, task: Task, depth: int) -> Iterator[Endpoint]:
    steps = -(-_needed_tokens(task, depth) // CONTEXT_STEP_TOKENS)
    spec = ServerSpec(
        "llama_cpp",
        "compared",
        context_size=steps * CONTEXT_STEP_TOKENS,
        threads=task.threads,
        gpu_layers=0,
        cache_type_k=CACHE_TYPE,
        cache_type_v=CACHE_TYPE,
        server_path=str(programs.server),
        extra_args=SHARED,
    )
    with TemporaryDirectory(prefix="llmbench-against-") as folder:
        server = LlamaCppBackend().start(StartRequest(spec, task.model, Path(folder) / "server"))
        try:
            yield server.endpoint
        finally:
            server.stop()


def _token_ids(endpoint: Endpoint, count: int) -> tuple[int, ...]:
    """So many tokens of common words. Raises CanNotCompare."""
    if count == 0:
        return ()
    ids = next(iter(prompts_of(endpoint, count, lambda generation: _ask(endpoint, generation))))
    if not isinstance(ids, tuple):
        raise CanNotCompare("this llama-server tells no token ids; it is too old")
    return ids


def _starting_anew(words: tuple[int, ...], number: int) -> tuple[int, ...]:
    """The same tokens, but for the first, which is another for each number: nothing after it is in the cache."""
    known = sorted(set(words))
    return (known[number % len(known)], *words[1:])


def _prefill_rate(endpoint: Endpoint, behind: tuple[int, ...], words: tuple[int, ...]) -> float:
    """Tokens/s by the server's own prompt time. Raises CanNotCompare."""
    record = _ask(endpoint, Generation(1, behind + words, demand_length=True, reuse_cache=bool(behind)))
    _check_read(record, len(behind), len(words))
    seconds = ServerTimes.of(record.server_timings).prompt_seconds
    if not seconds:
        raise CanNotCompare("the server does not tell how long it read the prompt")
    return len(words) / seconds


def _decode(endpoint: Endpoint, behind: tuple[int, ...], tokens: int) -> tuple[float, float]:
    """Tokens/s by the client's clock, and as the server tells it. Raises CanNotCompare."""
    generation = Generation(tokens + 1, behind, demand_length=True, reuse_cache=len(behind) > 1)
    record = _ask(endpoint, generation)
    _check_read(record, len(behind) - 1, 1)
    told = ServerTimes.of(record.server_timings).decode_tokens_per_second
    if record.output_tokens != tokens + 1 or record.decode_tokens_per_second is None or told is None:
        raise CanNotCompare(
            f"of {tokens + 1} tokens, {record.output_tokens} came in {record.chunks} pieces: no rate can be told"
        )
    return record.decode_tokens_per_second, told


def _check_read(record: RequestRecord, cached: int, read: int) -> None:
    times = ServerTimes.of(record.server_timings)
    if times.cached_tokens != cached or times.prompt_tokens != cached + read:
        raise CanNotCompare(
            f"the server should take {cached} tokens from its cache and read {read}; of {times.prompt_tokens} in all "
            f"it took {times.cached_tokens} from there"
        )


def _ask(endpoint: Endpoint, generation: Generation) -> RequestRecord:
    record = send(endpoint, generation)
    if not record.ok:
        raise CanNotCompare(f"our server did not answer: {record.error_message}")
    return record


def _sum_up(depth: int, rounds: list[tuple[Rates, Rates]]) -> Iterator[str]:
    ratios = {
        "prefill": [ours.prefill / theirs.prefill for ours, theirs in rounds],
        "decode": [ours.decode / theirs.decode for ours, theirs in rounds],
    }
    sent = [ours.decode / ours.told for ours, _ in rounds if ours.told is not None]
    for name, found in ratios.items():
        print(f"depth {depth}, {name}: ours / theirs {_spanned(found)}")
        if abs(median(found) - 1) > MAX_DIFFERENCE_PERCENT / 100:
            yield f"depth {depth}, {name}: the median of the ratios is {median(found):.3f}"
    print(f"depth {depth}, decode: by our client / as the server tells {_spanned(sent)}")


def _spanned(ratios: list[float]) -> str:
    return f"{median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}"


if __name__ == "__main__":
    sys.exit(main())
