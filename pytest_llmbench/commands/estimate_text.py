"""What ``llmbench estimate`` prints for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from pytest_llmbench.commands.estimate_answer import Answer
from pytest_llmbench.commands.tables import console
from pytest_llmbench.core.quantities import BOUND_WORDS, PART_WORDS, gigabytes
from pytest_llmbench.reports.plain import plain
from pytest_llmbench.runtime.memory_check import Prediction, tell

if TYPE_CHECKING:
    from rich.table import Table

_BOUNDS = {**BOUND_WORDS, "max_memory_gb": "the limit: --memory, or limits.max_memory_gb"}
_VERDICTS = {"fits": "fits", "does_not_fit": "does not fit", "uncertain": "may fit"}


def print_answer(answer: Answer) -> None:
    """One model: the verdict, the parts, and what else there is to say."""
    prediction = answer.prediction
    if prediction is None:
        return
    out = console()
    for line in (
        f"{_VERDICTS[prediction.verdict]}: {_needs(answer)}",
        _what(answer),
        _settings(prediction, answer.engine),
    ):
        out.print(plain(line), soft_wrap=True)
    out.print()
    out.print(_parts(prediction))
    out.print()
    for line in (*_around(answer, prediction), *_ways(answer), *(f"note: {note}" for note in answer.notes)):
        out.print(plain(line), soft_wrap=True)


def print_answers(answers: Sequence[Answer]) -> None:
    """A model at several quantizations: which of them fit, then one row each."""
    out = console()
    known = [answer for answer in answers if answer.prediction is not None]
    first = known[0].prediction
    if first is None:
        return
    for line in (_best(known, len(answers)), f"{known[0].subject.model}, {_settings(first, known[0].engine)}"):
        out.print(plain(line), soft_wrap=True)
    out.print()
    out.print(_rows(known))
    out.print()
    out.print(_available(first), soft_wrap=True)
    for answer in known:
        for line in _ways(answer, but_for="quantization"):
            out.print(plain(f"{answer.subject.quantization}: {line}"), soft_wrap=True)
    for note in dict.fromkeys(note for answer in known for note in answer.notes):
        having = [str(answer.subject.quantization) for answer in known if note in answer.notes]
        of = f" ({', '.join(having)})" if len(having) < len(known) else ""
        out.print(plain(f"note{of}: {note}"), soft_wrap=True)
    for answer in answers:
        if answer.problem is not None:
            out.print(plain(f"{answer.subject.quantization} is not known: {answer.problem}"), soft_wrap=True)


def _needs(answer: Answer) -> str:
    """What is needed, what there is, and by how much they differ: ``needs 6.3 GB of 14.0 GB, 7.7 GB to spare``."""
    prediction = answer.prediction
    if prediction is None:
        return ""
    (low, high), there = answer.bounds_bytes, prediction.available.bytes
    about = "about " if prediction.header is None else ""
    line = f"needs {about}{_range(low, high)} of {gigabytes(there)}"
    if low > there:
        line += f", {gigabytes(low - there)} too much"
    elif high <= there:
        line += f", {gigabytes(there - high)} to spare"
    free, wanted = prediction.room.device_bytes, prediction.device_bytes
    if free is not None:
        line += f"; on the GPU {gigabytes(wanted)} of {gigabytes(free)}, "
        line += f"{gigabytes(wanted - free)} too much" if wanted > free else f"{gigabytes(free - wanted)} to spare"
    return line


def _best(known: Sequence[Answer], count: int) -> str:
    """The largest quantization that fits, or that none of so many does."""

    def everywhere(answer: Answer) -> int:
        return answer.bounds_bytes[1] + (answer.prediction.device_bytes if answer.prediction is not None else 0)

    by_verdict: dict[str, list[Answer]] = {}
    for answer in known:
        by_verdict.setdefault(answer.prediction.verdict if answer.prediction is not None else "", []).append(answer)
    if fitting := by_verdict.get("fits"):
        best = max(fitting, key=everywhere)
        found = f"{len(fitting)} of {count} quantizations; the largest of them, {best.subject.quantization},"
        return f"fits: {found} {_needs(best)}"
    best = min(by_verdict.get("uncertain", known), key=everywhere)
    found = f"none of {count} quantizations{' surely' if 'uncertain' in by_verdict else ''}"
    verdict = _VERDICTS["uncertain" if "uncertain" in by_verdict else "does_not_fit"]
    return f"{verdict}: {found}; the smallest, {best.subject.quantization}, {_needs(best)}"


def _what(answer: Answer) -> str:
    subject = answer.subject
    architecture = subject.header.architecture if subject.header is not None else None
    names = " ".join(filter(None, (subject.model, subject.quantization)))
    return f"{names}{f' ({architecture})' if architecture else ''}: {subject.origin}"


def _settings(prediction: Prediction, engine: str) -> str:
    settings = prediction.settings
    words = [f"context {settings.context_tokens}"]
    if settings.parallel > 1:
        words.append(
            f"{settings.parallel} slots {'that share it' if settings.unified_kv else 'with a part of it each'}"
        )
    kinds = dict.fromkeys((settings.cache_type_k, settings.cache_type_v))
    words.append(f"KV cache {'/'.join(kinds)}")
    words.append(f"ubatch {settings.ubatch_tokens}")
    words.append(f"flash attention {'on' if settings.flash_attention else 'off'}")
    if settings.device != "cpu":
        count = "all" if settings.gpu_layers < 0 else settings.gpu_layers
        words.append(f"{count} layers on {prediction.device.name if prediction.device else 'the GPU'}")
    return ", ".join([*words, f"for {engine}"])


def _parts(prediction: Prediction) -> Table:
    """Gigabytes by part; with columns for both sides where a part lies on a device."""
    from rich.table import Table

    estimate, correction = prediction.estimate, prediction.correction
    both = estimate.device.total_bytes > 0
    sides = (estimate.host, estimate.device, estimate.parts) if both else (estimate.host,)
    table = Table(box=None, pad_edge=False)
    for title in ("", "memory", "GPU", "both") if both else ("", "memory"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for part in fields(estimate.parts):
        sizes = [getattr(side, part.name) for side in sides]
        if any(sizes):
            table.add_row(PART_WORDS[part.name], *map(_aligned, sizes))
    table.add_row("total", *(_aligned(side.total_bytes) for side in sides))
    if correction is not None:
        corrected = (_aligned(int(side.total_bytes * correction.factor)) for side in sides)
        table.add_row(f"corrected by {(correction.factor - 1) * 100:+.1f} %", *corrected)
    if estimate.reclaimable_bytes:
        table.add_row("without what the kernel can drop", _aligned(prediction.required_bytes))
    return table


def _aligned(size_bytes: int) -> str:
    """A size as a column holds it: all with the same decimals."""
    return "<0.001 GB" if 0 < size_bytes < 1e6 else f"{size_bytes / 1e9:.3f} GB"


def _around(answer: Answer, prediction: Prediction) -> Iterator[str]:
    estimate, correction, largest = prediction.estimate, prediction.correction, answer.largest_context
    if correction is not None:
        runs = "1 earlier run" if correction.samples == 1 else f"{correction.samples} earlier runs"
        yield f"corrected by what {runs} on this machine showed"
    if estimate.reclaimable_bytes:
        yield (
            f"the kernel can drop {gigabytes(estimate.reclaimable_bytes)}: pages of the file whose weights are used "
            "from the repacked copy"
        )
    yield _available(prediction)
    if largest is not None and prediction.header is not None:
        trained = prediction.header.context_length
        most = trained is not None and largest >= trained * prediction.settings.parallel
        yield f"largest context that fits: {largest or 'none'}{', all that it was trained for' if most else ''}"


def _available(prediction: Prediction) -> str:
    return f"available: {gigabytes(prediction.available.bytes)}, {_BOUNDS[prediction.available.bound_by]}"


def _ways(answer: Answer, but_for: str | None = None) -> Iterator[str]:
    """What would make it fit, where it does not."""
    prediction = answer.prediction
    if prediction is None or prediction.verdict == "fits":
        return
    ways = [way for way in answer.ways if but_for is None or not way.change.startswith(but_for)]
    sure = "surely " if prediction.verdict == "uncertain" else ""
    if ways:
        yield f"would {sure}fit with {', or '.join(map(tell, ways))}"
    elif not answer.ways and prediction.header is not None:
        yield f"no context, cache type or quantization known here makes it {sure}fit"


def _rows(known: Sequence[Answer]) -> Table:
    from rich.table import Table

    with_gpu = any(answer.prediction and answer.prediction.room.device_bytes is not None for answer in known)
    table = Table(box=None, pad_edge=False)
    titles = ["quant", "weights", "KV cache", "rest", "needs", "largest context", ""]
    if with_gpu:
        titles.insert(5, "on the GPU")
    for title in titles:
        table.add_column(title, justify="left" if title in {"quant", ""} else "right", no_wrap=True)
    for answer in known:
        prediction = answer.prediction
        if prediction is None:
            continue
        parts = prediction.estimate.parts
        rest = parts.total_bytes - parts.weights_bytes - parts.kv_bytes - prediction.estimate.reclaimable_bytes
        largest = answer.largest_context
        cells = [
            plain(str(answer.subject.quantization)),
            *map(_aligned, (parts.weights_bytes, parts.kv_bytes, rest)),
            _range(*answer.bounds_bytes),
            *([gigabytes(prediction.device_bytes)] if with_gpu else []),
            "?" if largest is None else str(largest or "none"),
            _VERDICTS[prediction.verdict],
        ]
        table.add_row(*cells)
    return table


def _range(low: int, high: int) -> str:
    return gigabytes(low) if low == high else f"{gigabytes(low)} to {gigabytes(high)}"
