"""Batch: documents are summarised one after the other, in a fixed order, every summary of the same length.

How long a document takes, how evenly, and what becomes of that with time: whether the server slows down, whether its
memory grows. A document that fails is counted and the batch goes on, as one would have it overnight; what lies far off
is asked again at the end. Documents differ in length on purpose, so where times are compared with each other, what
length explains is taken out first (``batch_trends.without_work``).
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmbench.client.generation import Generation
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.settings import BatchSettings
from pytest_llmbench.core.statistics import median
from pytest_llmbench.errors import MeasurementInvalid, RequestError
from pytest_llmbench.profiles.base import STOOD_STILL, Measurement, ProfileContext, nonce
from pytest_llmbench.profiles.batch_results import Batch, Done, add_memory, summarise
from pytest_llmbench.profiles.batch_trends import without_work
from pytest_llmbench.profiles.documents import Document, read_documents
from pytest_llmbench.profiles.sampling import MOST_AGAIN, another_model, far_off, why_not_a_sample, why_nothing_counts
from pytest_llmbench.telemetry.base import Telemetry

# The longest shipped document has some 370 tokens, with its task some 400; other tokenizers make more of it.
PROMPT_TOKENS_AT_MOST = 768
FAILURES_IN_A_ROW = 3
FEWEST_TOKENS = 8  # of an answer that ends by itself: a rate over fewer tells little
_MB = 1e6


class BatchProfile:
    """See the module's docstring."""

    name = "batch"
    emits: tuple[str, ...] = (
        "document_seconds",
        "document_sd_seconds",
        "variance_percent",
        "documents_per_hour",
        "degradation_percent",
        "memory_slope_mb_per_document",
        "failed_documents_percent",
    )
    settings_model = BatchSettings

    def needed_context(self, settings: BatchSettings) -> int:
        """Room for a document with its task in whatever template, and its summary."""
        return PROMPT_TOKENS_AT_MOST + settings.output_tokens

    def run(self, context: ProfileContext) -> Measurement:
        """See :class:`~pytest_llmbench.profiles.base.Profile`."""
        settings: BatchSettings = context.settings
        shipped = read_documents(context)
        documents = [shipped[number % len(shipped)] for number in range(settings.num_documents)]
        # The longest one first touches what memory the others will use, which would look like a leak otherwise.
        longest = max(documents, key=lambda document: len(document.text))
        warmup = context.request(_generation(longest, settings.output_tokens), "warmup")
        refusal = another_model(warmup, context.endpoint.signed)
        context.file(warmup, usable=refusal is None)
        if refusal is not None:
            raise refusal
        asking = _Asking(context, warmup, settings.output_tokens)
        batch = asking.all_of(documents)
        measurement = summarise(batch, settings.output_tokens, context.rule)
        add_memory(measurement, batch, context.telemetry)
        if len(documents) > len(shipped):
            measurement.notes.append(
                f"there are {len(shipped)} documents; they come again in the same order, each with a fresh beginning"
            )
        return measurement


class _Asking:
    """Sends one document after the other."""

    def __init__(self, context: ProfileContext, warmup: RequestRecord, tokens: int) -> None:
        self._context = context
        self._warmup = warmup
        self._tokens = tokens

    def all_of(self, documents: Sequence[Document]) -> Batch:
        """The whole batch, and at most three again whose times lie far off.

        Raises:
            LlmbenchError: the server died, three documents in a row failed, the server answers another prompt or with
                another model, or hardly any time can be used.
        """
        batch = Batch()
        for document in documents:
            batch.done.append(self._ask(document))
            self._refuse_what_leads_nowhere(batch)
        if not batch.samples:
            raise _nothing_measured(batch, self._tokens)
        adjusted, _ = without_work(batch.seconds, [one.work for one in batch.samples])
        middle = median(adjusted)
        strays = sorted(far_off(adjusted, self._context.rule), key=lambda index: -abs(adjusted[index] - middle))
        for index in strays[:MOST_AGAIN]:
            first = batch.samples[index]
            batch.again.append((first, self._ask(first.document, again=True)))
        return batch

    def _ask(self, document: Document, *, again: bool = False) -> Done:
        context, generation = self._context, _generation(document, self._tokens)
        length = context.prompt_tokens(str(generation.prompt))
        record = context.ask(generation)
        is_answer = record.ok and STOOD_STILL not in record.flags
        refusal = why_nothing_counts(record, length, self._warmup, context.context_size) if is_answer else None
        doubt = self._doubt(record) if refusal is None else refusal.code
        context.file(record, usable=record.ok and doubt is None)
        if refusal is not None:
            raise refusal
        return Done(
            document,
            record,
            seconds=_seconds(record) if record.ok else None,
            comparable_seconds=self._comparable_seconds(record) if record.ok and doubt is None else None,
            memory_mb=_memory_mb(context.telemetry),
            doubt=doubt,
            again=again,
        )

    def _doubt(self, record: RequestRecord) -> str | None:
        """Why the time of a document is no sample; None, too, for one that failed."""
        if STOOD_STILL in record.flags:
            return STOOD_STILL
        doubt = why_not_a_sample(record, self._tokens, self._warmup) if record.ok else None
        may_be_short = not self._context.endpoint.capabilities.ignores_end_of_sequence
        return None if doubt == "short_answer" and may_be_short and _has_a_rate(record) else doubt

    def _comparable_seconds(self, record: RequestRecord) -> float:
        """With as many tokens more or fewer as the answer differs from the length asked for, at its own rate."""
        missing = 0 if record.output_tokens is None else self._tokens - record.output_tokens
        rate = record.decode_tokens_per_second
        return _seconds(record) + (missing / rate if missing and rate else 0.0)

    def _refuse_what_leads_nowhere(self, batch: Batch) -> None:
        last = batch.done[-FAILURES_IN_A_ROW:]
        if len(last) == FAILURES_IN_A_ROW and all(one.failed for one in last):
            record = last[-1].record
            raise RequestError(
                record.error or "failed",
                f"{FAILURES_IN_A_ROW} documents in a row got no summary, after {len(batch.samples)} that did; "
                f"the last: {record.error_message}",
                {"documents": len(batch.done), "failed": len(batch.failures)},
            )
        rejected = batch.doubts.total()
        if rejected >= self._context.rule.min_samples and rejected >= len(batch.samples):
            raise _nothing_measured(batch, self._tokens)


def _generation(document: Document, tokens: int) -> Generation:
    return Generation(max_tokens=tokens, prompt=document.prompt(nonce()), demand_length=True)


def _seconds(record: RequestRecord) -> float:
    return ((record.t_last_token_ns or record.t_end_ns) - record.t_send_ns) / 1e9


def _has_a_rate(record: RequestRecord) -> bool:
    return (record.output_tokens or 0) >= FEWEST_TOKENS and record.decode_tokens_per_second is not None


def _memory_mb(telemetry: Telemetry) -> float | None:
    values = telemetry.now().values
    found = values.get("server_rss_bytes", values.get("server_pss_bytes"))
    return None if found is None else found / _MB


def _nothing_measured(batch: Batch, tokens: int) -> MeasurementInvalid | RequestError:
    """Why there are no times, or too few: what most documents have in common."""
    if not batch.doubts:
        record = batch.done[-1].record
        return RequestError(record.error or "failed", f"no document got a summary; the last: {record.error_message}")
    code, count = batch.doubts.most_common(1)[0]
    advice = {
        "short_answer": f"the answers ended before {tokens} tokens; ask for fewer (settings.batch.output_tokens)",
        "prompt_cache_hit": "the server answers prompts from a cache we can not switch off; switch it off there",
        STOOD_STILL: "the machine, the server or this client was stopped again and again; see the log",
        "model_reloaded": "the server loads the model again and again; does it have the memory to keep it, and is "
        "nobody else using it with other options?",
    }[code]
    return MeasurementInvalid(
        code,
        f"the times of {count} of {len(batch.done)} documents are no samples: {advice}",
        {"rejected": count, "usable": len(batch.samples)},
    )
