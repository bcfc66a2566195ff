"""Short questions through the chat template, answered as long as the model likes: a line, a paragraph."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_llmbench.client.generation import Generation
from pytest_llmbench.core.means import log_mean_interval
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.errors import RequestError
from pytest_llmbench.profiles.base import STOOD_STILL, Measurement, ProfileContext, nonce
from pytest_llmbench.profiles.sampling import another_model, disturbance_of

MEDIAN_FROM = 6  # the least number of samples whose range is a 95 % interval for the median


@dataclass(frozen=True, slots=True)
class ShortForm:
    """A question that asks for an answer of a certain length.

    Attributes:
        what: its answers, as notes call them.
        most_tokens: where an answer is cut that does not end by itself.
    """

    metric: str
    what: str
    prompt_file: str
    most_tokens: int


SHORT_FORMS = (
    ShortForm("one_line_answer_seconds", "one-line answers", "prompts/one_line.txt", 64),
    ShortForm("paragraph_answer_seconds", "answers in a paragraph", "prompts/paragraph.txt", 256),
)
LONGEST_ANSWER = max(form.most_tokens for form in SHORT_FORMS)


@dataclass
class _Asked:
    """Seconds of the answers so far, how many of them were cut, what was no sample, and why no more were asked for."""

    seconds: list[float] = field(default_factory=list)
    cut: int = 0
    doubts: list[str] = field(default_factory=list)
    failure: str | None = None


def ask_short_forms(context: ProfileContext, measurement: Measurement, warmup: RequestRecord, count: int) -> None:
    """Ask each form so many times, one after the other, and add what it took to the measurement.

    A form ends with its first request that fails: the prompts differ in nothing but their beginning, so the others
    would, too, perhaps each after minutes. That is a note; what was measured before still holds. An answer may share
    the beginning of the chat template with what a server's cache has, as it does in use; the question it can not.

    Args:
        warmup: the cell's first request: which model answered, how long finding it loaded takes.

    Raises:
        LlmbenchError: the server died, or another model answered.
    """
    if not count:
        return
    for form in SHORT_FORMS:
        _add(measurement, form, _ask(context, form, warmup, count), count)


def _ask(context: ProfileContext, form: ShortForm, warmup: RequestRecord, count: int) -> _Asked:
    question, asked = context.read_data(form.prompt_file), _Asked()
    for _ in range(count):
        messages = ({"role": "user", "content": nonce() + question},)
        try:
            record = context.request(Generation(form.most_tokens, messages=messages), "sample", may_stand_still=True)
        except RequestError as exc:
            asked.failure = exc.message
            return asked
        # Routes sign answers each in its own way, so only answers of the same one can be compared.
        signed = warmup.response_model if record.protocol == warmup.protocol else None
        refusal = None if STOOD_STILL in record.flags else another_model(record, signed)
        doubt = disturbance_of(record, warmup) if refusal is None else refusal.code
        context.file(record, usable=doubt is None)
        if refusal is not None:
            raise refusal
        if doubt is not None:
            asked.doubts.append(doubt)
        elif record.t_last_token_ns is not None:
            asked.seconds.append((record.t_last_token_ns - record.t_send_ns) / 1e9)
            asked.cut += record.finish_reason == "length"
    return asked


def _add(measurement: Measurement, form: ShortForm, asked: _Asked, count: int) -> None:
    seconds, notes = asked.seconds, measurement.notes
    if len(seconds) >= MEDIAN_FROM:
        measurement.add_median(form.metric, seconds)
    elif seconds:
        measurement.add(form.metric, *log_mean_interval(seconds), len(seconds))
    if asked.cut:
        notes.append(f"{asked.cut} of {len(seconds)} {form.what} did not end within {form.most_tokens} tokens")
    for doubt in dict.fromkeys(asked.doubts):
        measurement.flag(doubt)
    if asked.failure is not None:
        notes.append(f"only {len(seconds)} of {count} {form.what} were measured, then one failed: {asked.failure}")
    elif asked.doubts:
        reasons = ", ".join(f"{asked.doubts.count(doubt)} {doubt}" for doubt in dict.fromkeys(asked.doubts))
        notes.append(f"{len(asked.doubts)} of {count} {form.what} are no samples: {reasons}")
