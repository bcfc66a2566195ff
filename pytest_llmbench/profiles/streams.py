"""What one answer's stream tells: how even it is, when its first sentence stands there, how long it reasons."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

from pytest_llmbench.client.timings import ServerTimes
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.statistics import median, window_rates
from pytest_llmbench.profiles.sentences import first_sentence_end

# Pieces of text per window, 19 windows in a 500-token answer: long enough to average a scheduler's hiccups, short
# enough to see stalls.
WINDOW_PIECES = 25
TIMING_TOLERANCE = 0.05
HANDOVER_SECONDS = 0.02  # reading the request, tokenising, sampling and sending the first token: 1.5 ms where measured


def windows(record: RequestRecord) -> list[float]:
    """Token rates over the windows of a stream, in tokens per second; none where tokens were not counted."""
    per_piece = tokens_per_piece(record)
    if per_piece is None:
        return []
    return window_rates([offset / 1e6 for offset in record.token_offsets_us], per_piece, WINDOW_PIECES)


def tokens_per_piece(record: RequestRecord) -> float | None:
    """Tokens that a piece of text carries on average; None where the server did not count them."""
    return record.output_tokens / record.chunks if record.output_tokens is not None and record.chunks else None


def steady_rate(record: RequestRecord) -> float | None:
    """Tokens after the first window by the time they took, in tokens per second.

    None where tokens were not counted, or where less than a whole window is left.
    """
    per_piece, offsets = tokens_per_piece(record), record.token_offsets_us
    pieces = len(offsets) - 1 - WINDOW_PIECES
    if per_piece is None or pieces < WINDOW_PIECES or offsets[-1] == offsets[WINDOW_PIECES]:
        return None
    return per_piece * pieces / ((offsets[-1] - offsets[WINDOW_PIECES]) / 1e6)


def first_sentence_seconds(record: RequestRecord) -> float | None:
    """From sending until the last character of the answer's first sentence has come.

    None where no sentence ends in the answer, or where it is not known which piece brought what.
    """
    end = first_sentence_end(record.output)
    if end is None or len(record.piece_characters) != len(record.token_offsets_us):
        return None
    piece = bisect_left(list(accumulate(record.piece_characters)), end)
    return record.token_offsets_us[piece] / 1e6 if piece < len(record.token_offsets_us) else None


def reasoning_seconds(record: RequestRecord) -> float | None:
    """From the first piece of reasoning to the first of the answer; None where nothing was reasoned aloud before it."""
    return _seconds_between(record.t_first_reasoning_ns, record.t_first_token_ns)


def answering_seconds(record: RequestRecord) -> float | None:
    """From the first to the last piece of the answer; what is reasoned before it does not count."""
    return _seconds_between(record.t_first_token_ns, record.t_last_token_ns)


def gaps_ms(records: Sequence[RequestRecord]) -> list[float]:
    """Milliseconds between consecutive pieces, of all these streams."""
    return [(after - before) / 1e3 for record in records for before, after in pairwise(record.token_offsets_us)]


def prefill_rates(records: Sequence[RequestRecord]) -> list[float]:
    """Prompt tokens over the server's prompt time, only where it says that none came from its cache (P01, P02)."""
    rates = (ServerTimes.of(record.server_timings).prefill_tokens_per_second for record in records)
    return [rate for rate in rates if rate is not None]


def server_disagrees(records: Sequence[RequestRecord]) -> bool:
    """Whether the server's own times are off ours by more than the tolerance, in the median."""
    rates, waits = [], []
    for record in records:
        times = ServerTimes.of(record.server_timings)
        if times.decode_tokens_per_second is not None and record.decode_tokens_per_second is not None:
            rates.append(record.decode_tokens_per_second / times.decode_tokens_per_second)
        if times.prompt_seconds is not None and record.ttft_seconds and not record.reasoning:
            unexplained = record.ttft_seconds - times.prompt_seconds - (times.load_seconds or 0.0)
            waits.append(max(0.0, unexplained - HANDOVER_SECONDS) / record.ttft_seconds)
    off = [abs(median(values) - aim) for values, aim in ((rates, 1), (waits, 0)) if values]
    return any(difference > TIMING_TOLERANCE for difference in off)


def _seconds_between(start_ns: int | None, end_ns: int | None) -> float | None:
    return None if start_ns is None or end_ns is None or end_ns < start_ns else (end_ns - start_ns) / 1e9
