"""What the commands print for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmbench.commands.summary import SHARES, LoadSummary, Quantile, Spread, values_needed
from pytest_llmbench.core.calibration import Calibration
from pytest_llmbench.core.records import FLAGS
from pytest_llmbench.reports.plain import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDTH_OF_A_FILE = 100
_ROWS = (
    ("ttft_seconds", "time to first token", 1e3, "ms", 1),
    ("ttft_from_schedule_seconds", "… from the scheduled time", 1e3, "ms", 1),
    ("time_to_first_reasoning_seconds", "time to first reasoning", 1e3, "ms", 1),
    ("decode_tokens_per_second", "decode rate", 1, "tokens/s", 1),
    ("time_per_output_token_ms", "time per output token", 1, "ms", 2),
    ("chunk_gap_ms", "gap between chunks", 1, "ms", 2),
)


def console() -> Console:
    """Standard output, for text that is never markup."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False, legacy_windows=False)


def print_summary(summary: LoadSummary, requests: Path) -> None:
    """The table of a load, and what it does not hold."""
    out = console()
    for line in _head(summary):
        out.print(plain(line), soft_wrap=True)
    out.print()
    out.print(_table(summary))
    for line in _after(summary, requests):
        out.print(plain(line), soft_wrap=True)


def _head(summary: LoadSummary) -> Iterator[str]:
    server = summary.server
    yield f"{server['model']} at {server['url']} ({server['kind']}, {server['protocol']})"
    ended = f"{summary.finished} requests, {summary.succeeded} succeeded, {summary.failed} failed"
    yield f"{ended}, in {summary.duration_seconds:.1f} s"
    if summary.interrupted:
        yield f"stopped early: {summary.load['requests']} were asked for; those under way at the end are not counted"
    for code, failure in sorted(summary.failures.items(), key=lambda item: -item[1].count):
        yield f"  {failure.count} × {code}: {failure.first_message}"


def _table(summary: LoadSummary) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for title in ("unit", "n", "median", "95 % interval", "p90", "p95", "p99"):
        table.add_column(title, justify="left" if title == "unit" else "right", no_wrap=True)
    for name, title, factor, unit, decimals in _ROWS:
        spread: Spread | None = getattr(summary, name)
        if spread is None:
            if name in {"ttft_seconds", "decode_tokens_per_second"}:
                table.add_row(title, unit, "0", *["–"] * 5)
            continue
        values = [spread.percentiles.get(share) for share in ("p90", "p95", "p99")]
        shown = [f"{value.value * factor:.{decimals}f}" if value else "–" for value in values]
        middle = f"{spread.median.value * factor:.{decimals}f}"
        table.add_row(title, unit, str(spread.n), middle, _interval(spread.median, factor, decimals), *shown)
    return table


def _interval(value: Quantile, factor: float, decimals: int) -> str:
    if value.ci_low is None or value.ci_high is None:
        return "–"
    return f"{value.ci_low * factor:.{decimals}f}–{value.ci_high * factor:.{decimals}f}"


def _after(summary: LoadSummary, requests: Path) -> Iterator[str]:
    if summary.output_tokens_per_second is not None:
        yield (
            f"output over all: {summary.output_tokens_per_second:.1f} tokens/s "
            f"({summary.output_tokens} tokens in {summary.duration_seconds:.1f} s)"
        )
    if summary.tokens_per_chunk is not None:
        yield f"tokens per chunk: {summary.tokens_per_chunk:.2f}"
    yield f"prompt tokens: {_prompt_lengths(summary)}"
    late = summary.flags.get("client_late", 0)
    p99 = f", p99 {summary.client_lag_p99_ms:.1f} ms" if summary.client_lag_p99_ms is not None else ""
    yield f"client: late by at most {summary.client_lag_max_ms:.1f} ms{p99}; {late} requests flagged for it"
    if summary.retries:
        yield f"retries, because a connection was lost before any answer: {summary.retries}"
    for flag, count in summary.flags.items():
        if flag != "client_late":
            yield f"{count} requests with {flag}: {FLAGS.get(flag, flag)}"
    for doubt in summary.doubts:
        if doubt not in summary.flags or doubt == "client_late":
            yield f"doubt: {FLAGS.get(doubt, doubt)}"
    if missing := _missing_percentiles(summary):
        yield missing
    for note in summary.notes:
        yield f"note: {note}"
    yield f"every request: {requests}"


def _prompt_lengths(summary: LoadSummary) -> str:
    lengths = summary.prompt_tokens
    low, high = lengths.counted_min, lengths.counted_max
    asked = f"{lengths.asked} asked for, " if lengths.asked is not None else ""
    if low is None:
        return f"{asked}the server did not count them"
    return f"{asked}{low if low == high else f'{low}–{high}'} counted by the server"


def _missing_percentiles(summary: LoadSummary) -> str:
    n = summary.ttft_seconds.n if summary.ttft_seconds else 0
    needed = [f"{name} {values_needed(share)}" for name, share in SHARES.items() if n < values_needed(share)]
    needed = [one.replace("p50", "an interval of the median") for one in needed]
    return f"percentiles need more requests: {', '.join(needed)}" if n and needed else ""


def print_calibration(calibration: Calibration) -> None:
    """The table of timing errors, and what they allow to claim."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    titles = (
        *("streams", "answers", "TTFT off\nmean ms", "\np99 ms", "gap off\nmean ms", "\np99 ms"),
        *("client late\np99 ms", "\nmax ms", "CPU\nµs/token"),
    )
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for error in calibration.errors:
        table.add_row(
            str(error.streams),
            str(error.requests),
            f"{error.ttft_error_mean_ms:+.3f}",
            f"{error.ttft_error_p99_ms:.3f}",
            f"{error.gap_error_mean_ms:.3f}",
            f"{error.gap_error_p99_ms:.3f}",
            f"{error.client_lag_p99_ms:.2f}",
            f"{error.client_lag_max_ms:.2f}",
            f"{error.cpu_us_per_token:.1f}",
        )
    out = console()
    out.print(table)
    out.print(f"clock: steps of {calibration.clock_resolution_ns} ns ({calibration.clock})", soft_wrap=True)
    out.print(calibration.claim, soft_wrap=True)
