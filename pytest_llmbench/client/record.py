"""From a finished exchange to the record that is kept of it."""

from __future__ import annotations

from typing import Literal

from pytest_llmbench.client.answers import Answer
from pytest_llmbench.client.exchange import Exchange
from pytest_llmbench.core.records import RequestRecord

MAX_CHUNKING_BIAS = 0.02
LAG_TOLERANCE = 0.05
LEAST_TOLERATED_LAG_NS = 2_000_000


def record_of(exchange: Exchange, *, cell: str | None, index: int, phase: Literal["warmup", "sample"]) -> RequestRecord:
    """The record of an exchange."""
    answer, times, error = exchange.answer, exchange.answer.piece_times_ns, exchange.error
    return RequestRecord(
        cell=cell,
        index=index,
        phase=phase,
        ok=error is None,
        error=error.code if error else None,
        error_message=error.message if error else None,
        protocol=exchange.protocol,
        retries=exchange.retries,
        connection_reused=exchange.connection_reused,
        t_scheduled_ns=exchange.t_scheduled_ns,
        t_send_ns=exchange.t_send_ns,
        t_first_byte_ns=exchange.t_first_byte_ns,
        t_first_event_ns=answer.t_first_event_ns,
        t_first_reasoning_ns=answer.t_first_reasoning_ns,
        t_first_token_ns=answer.t_first_token_ns,
        t_last_token_ns=times[-1] if times else None,
        t_end_ns=exchange.t_end_ns,
        connect_seconds=exchange.connect_seconds,
        ttft_seconds=_seconds_since(exchange.t_send_ns, answer.t_first_token_ns),
        time_to_first_reasoning_seconds=_seconds_since(exchange.t_send_ns, answer.t_first_reasoning_ns),
        decode_tokens_per_second=_decode_rate(answer),
        client_lag_ms=exchange.lag_ns / 1e6,
        flags=["client_late"] if _is_late(exchange) else [],
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        output_tokens=answer.output_tokens,
        output_tokens_source=answer.output_tokens_source,
        chunks=len(times),
        token_offsets_us=[(t - exchange.t_send_ns) // 1000 for t in times],
        piece_characters=_piece_characters(answer),
        finish_reason=answer.finish_reason,
        prompt_truncated=answer.truncated_prompt,
        response_id=answer.response_id or exchange.response.headers.get("x-request-id"),
        response_model=answer.response_model,
        server_timings=answer.server_timings,
        params={key: value for key, value in exchange.params.items() if key != "stream"},
        output="".join(answer.text),
        reasoning="".join(answer.reasoning),
        tool_calls=[answer.tool_calls[index] for index in sorted(answer.tool_calls)],
    )


def _is_late(exchange: Exchange) -> bool:
    """Whether the client's own lateness could have moved a number by more than the tolerance.

    A late read shifts the first or the last token by at most the lag. So much may it be of the time to first token, and
    of the span that the decode rate is measured over.
    """
    times = exchange.answer.piece_times_ns
    if not times:
        return False
    waits = ((times[0] - exchange.t_send_ns, exchange.first_token_lag_ns), (times[-1] - times[0], exchange.lag_ns))
    return any(span and lag > max(LEAST_TOLERATED_LAG_NS, LAG_TOLERANCE * span) for span, lag in waits)


def _piece_characters(answer: Answer) -> list[int]:
    """How many characters of the text each piece brought; empty unless all reasoning came first, and no tool call."""
    thoughts, times = len(answer.reasoning), answer.piece_times_ns
    if len(times) != thoughts + len(answer.text) or (answer.text and times[thoughts] != answer.t_first_token_ns):
        return []
    return [0] * thoughts + [len(text) for text in answer.text]


def _seconds_since(start_ns: int, end_ns: int | None) -> float | None:
    return None if end_ns is None else (end_ns - start_ns) / 1e9


def _decode_rate(answer: Answer) -> float | None:
    """``(output_tokens − 1) / (last − first piece of text)``; None where that would not be the rate.

    Reasoning counts, because the server counts it. Without the server's count there is no rate. With k tokens a piece,
    the first piece brings k tokens for whose generation no time is seen: the rate is too high by about
    (k − 1) / (output_tokens − 1), and absent where that exceeds 2 %.
    """
    times, tokens = answer.piece_times_ns, answer.output_tokens
    if tokens is None or tokens < 2 or len(times) < 2 or times[-1] == times[0]:
        return None
    if (tokens / len(times) - 1) / (tokens - 1) > MAX_CHUNKING_BIAS:
        return None
    return (tokens - 1) / ((times[-1] - times[0]) / 1e9)
