"""What reading a GGUF header costs, beside the ``gguf`` package's reader, and how much of a remote file it takes.

Writes header-only files with large vocabularies, and reads each in a process of its own with our reader and with
``gguf.GGUFReader``, which takes turns; what is compared is the median of the ratios within a round, and the memory that
reading added to the process's peak. The same files are then read from a local web server by range requests.

Bounds: at most 50 ms and 30 MB for 250,000 tokens and as many merges; at most 2 requests. Exit status: 0 inside the
bounds, 1 outside.

    python benchmarks/gguf_header.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from pytest_llmbench.runtime.modelstore.remote_header import read_remote_header  # noqa: E402
from tests.ggufs.shapes import SHAPES, write_shape  # noqa: E402
from tests.ggufs.writer import Value, vocabulary, write_gguf  # noqa: E402
from tests.servers.range_server import RangeServer, ranged  # noqa: E402

MAX_MILLISECONDS, MAX_MEGABYTES, MAX_REQUESTS = 50.0, 30.0, 2
RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
READ = """
import json, resource, sys, time
from pathlib import Path
if sys.argv[1] == "ours":
    from pytest_llmbench.core.gguf import read_header as read
else:
    from gguf import GGUFReader as read
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
read(Path(sys.argv[2]))
seconds = time.perf_counter() - began
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    inside = True
    print(f"{'file':32}{'header MB':>10}{'ours ms':>9}{'+MB':>7}{'gguf ms':>10}{'+MB':>7}{'ratio':>8}{'requests':>9}")
    with TemporaryDirectory(prefix="llmbench-header-") as folder:
        for name, path, is_judged in _files(Path(folder)):
            pairs = [(_read("ours", path), _read("theirs", path)) for _ in range(rounds)]
            ours = [median(values) for values in zip(*(pair[0] for pair in pairs), strict=True)]
            theirs = [median(values) for values in zip(*(pair[1] for pair in pairs), strict=True)]
            ratio = median(one[0] / other[0] for one, other in pairs)
            size_mb, requests = _remotely(path)
            print(
                f"{name:32}{size_mb:10.1f}{ours[0] * 1e3:9.1f}{ours[1]:7.1f}{theirs[0] * 1e3:10.0f}{theirs[1]:7.0f}"
                f"{ratio:8.4f}{requests:9}"
            )
            if is_judged:
                inside &= ours[0] * 1e3 <= MAX_MILLISECONDS and ours[1] <= MAX_MEGABYTES
            inside &= requests <= MAX_REQUESTS
    return 0 if inside else 1


def _files(folder: Path) -> list[tuple[str, Path, bool]]:
    general: dict[str, Value] = {"general.architecture": "llama", "llama.block_count": 1}
    byte_pairs = {**general, **vocabulary("gpt2", 250_000, 250_000)}
    scores = {**general, **vocabulary("llama", 250_000, 0)}
    return [
        ("250k tokens, 250k merges", write_gguf(folder / "pairs.gguf", byte_pairs, []), True),
        ("250k tokens with scores", write_gguf(folder / "scores.gguf", scores, []), True),
        ("the shape of Llama 3.1 8B", write_shape(folder / "llama.gguf", SHAPES["llama-3.1-8b"]), False),
        ("the shape of Gemma 3 12B", write_shape(folder / "gemma.gguf", SHAPES["gemma-3-12b"]), False),
    ]


def _read(reader: str, path: Path) -> tuple[float, float]:
    """Seconds, and megabytes that reading added to the peak of a fresh process."""
    command = [sys.executable, "-c", READ, reader, str(path)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    seconds, added = json.loads(result.stdout)
    return seconds, added * RSS_UNIT_BYTES / 1e6


def _remotely(path: Path) -> tuple[float, int]:
    """Megabytes of the header, and requests it took to read it from a server."""
    with path.open("rb") as file:
        data = file.read(64 * 1024 * 1024)
    with RangeServer({"/model.gguf": ranged(data, path.stat().st_size)}) as server:
        remote = read_remote_header(f"{server.url}/model.gguf")
    return remote.header.header_bytes / 1e6, remote.requests


if __name__ == "__main__":
    sys.exit(main())
