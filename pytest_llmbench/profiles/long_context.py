"""Long context: windows of growing size are filled with text, and a question about it is answered.

At each size, prompts that fill at least 95 % of it: how long until the first token, how fast the answer then streams,
whether a fact planted in the text is found, what one more turn of the conversation costs while the server still has
it, and what all this takes of memory. It stops growing where a size fails.

One request does it all. Where the server continues plain text, that is what it gets, without a chat template: the
prompt ends with ``Answer: The code of the … is``, so its answer begins with the code, also that of a model that was
never taught to chat or one that would reason first, and goes on to the length demanded, from which the rate is taken.
A question apart would need the same prompt again, from a cache that not every server has. Where there is only a chat,
the same text is the user's message.
"""

from __future__ import annotations

import math
import time
from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass, field

from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.prompts import count_tokens
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.settings import LongContextSettings
from pytest_llmbench.errors import CellError, LlmbenchError, MeasurementInvalid, RequestError, ServerError
from pytest_llmbench.profiles.base import STOOD_STILL, Measurement, ProfileContext, PromptTokens
from pytest_llmbench.profiles.context_prompts import (
    NEXT_TURN,
    Counter,
    Draft,
    LearnedCounter,
    LongPrompt,
    PromptWriter,
    TokenizerCounter,
)
from pytest_llmbench.profiles.context_results import MemoryUse, SizeResult, summarise
from pytest_llmbench.profiles.sampling import another_model, disturbance_of, why_nothing_counts

LEAST_FILL_PERCENT = 95
WARM_TOKENS = 6
# What one more turn puts before its answer, at most; in a chat, with the template around an answer and a question.
TURN_TOKENS = 12
CHAT_TURN_TOKENS = 32
LEAST_OUTPUT_TOKENS = 6  # a code of five digits and a space, in the tokenizers that take digits one by one
WARMUP_TOKENS = 8
MOST_REPEATS = 2
MOST_CACHED = 0.01  # of a prompt: a chat's template begins with the same tokens each time
NOT_FILLED = "context_not_filled"
# Not of one size: whatever this server would answer next would be worth no more.
_WORTHLESS = {"prompt_truncated", "another_model_answered", "tokens_not_counted"}


@dataclass(frozen=True, slots=True)
class Room:
    """How a context is divided.

    Attributes:
        prompt_tokens: to aim at.
        least_prompt_tokens: 95 % of it.
        output_tokens: of the answer.
        has_turn: whether one more turn fits behind the answer.
    """

    context_tokens: int
    prompt_tokens: int
    least_prompt_tokens: int
    output_tokens: int
    has_turn: bool

    @classmethod
    def of(cls, context_tokens: int, output_tokens: int, turn_tokens: int, slack: float) -> Room:
        """Divide a context: the prompt has 95 % at least, the rest is for the answer and then for one more turn.

        Args:
            output_tokens: wanted; fewer where they do not fit.
            turn_tokens: of one more turn with its answer.
            slack: by how large a part of the context a prompt may miss its length.

        Raises:
            RequestError: ``prompt_too_short``: the rest is no answer.
        """
        least = -(-LEAST_FILL_PERCENT * context_tokens // 100)
        free = context_tokens - least - math.ceil(slack * context_tokens)
        has_turn = free - turn_tokens >= min(LEAST_OUTPUT_TOKENS, output_tokens)
        output = min(output_tokens, free - turn_tokens if has_turn else free)
        if output < 2:
            raise RequestError(
                "prompt_too_short",
                f"5 % of a context of {context_tokens} tokens are no room for an answer; ask for larger ones "
                "(settings.long_context.test_sizes)",
                {"context_tokens": context_tokens},
            )
        most = context_tokens - output - (turn_tokens if has_turn else 0)
        return cls(context_tokens, (least + most) // 2 if slack else most, least, output, has_turn)

    def holds(self, record: RequestRecord) -> bool:
        """Whether a request filled it, and no more than that."""
        read = record.prompt_tokens or 0
        return read >= self.least_prompt_tokens and read + self.output_tokens <= self.context_tokens


class LongContextProfile:
    """See the module's docstring."""

    name = "long_context"
    emits: tuple[str, ...] = (
        "context_load_seconds",
        "largest_usable_context_tokens",
        "depth_tokens_per_second",
        "prefill_tokens_per_second",
        "slowdown_percent_per_1k_tokens",
        "warm_continuation_seconds",
        "recall_percent",
    )
    settings_model = LongContextSettings

    def context_sizes(self, settings: LongContextSettings) -> Sequence[int]:
        """Those to be filled, ascending."""
        return sorted(settings.test_sizes)

    def run(self, context: ProfileContext) -> Measurement:
        """See :class:`~pytest_llmbench.profiles.base.Profile`."""
        refused = _refused(context, self.context_sizes(context.settings))
        sizes = [size for size in self.context_sizes(context.settings) if size not in refused]
        if not sizes:
            reasons = "; ".join(f"{size}: {why}" for size, why in refused.items())
            raise ServerError(
                "context_mismatch",
                f"none of the contexts asked for can be had ({reasons}); ask for smaller ones "
                "(settings.long_context.test_sizes)",
            )
        limit = min(context.rule.limits.get("context_load_seconds", ()), default=None)
        filling = _Filling(context, limit, *_prepare(context, sizes[0]))
        results, stopped = [SizeResult(size, failure=why) for size, why in refused.items()], None
        for size in sizes:
            if stopped is None:
                results.append(filling.fill(size))
                stopped = _why_stop(results[-1], limit)
            else:
                results.append(SizeResult(size, failure=f"not tried: {stopped}"))
        results.sort(key=lambda result: result.context_tokens)
        measurement = summarise(results, limit, context.rule.target_half_width_percent)
        measurement.notes += filling.notes
        measurement.notes += [f"{size} tokens: {why}" for size, why in refused.items()]
        if stopped is not None:
            measurement.notes.append(f"no larger context was tried: {stopped}")
        for flag in filling.rejected:
            if flag != NOT_FILLED:  # our guess was wrong, nothing that was measured
                measurement.flag(flag)
        if filling.server_died:
            measurement.flag("aborted")
        measurement.sampling = {
            "samples": sum(len(result.cold) for result in results),
            "rejected": filling.rejected.total(),
            "stop_reason": "all_sizes" if stopped is None else stopped,
            "output_tokens": context.settings.output_tokens,
        }
        return measurement


def _refused(context: ProfileContext, sizes: Sequence[int]) -> dict[int, str]:
    """The sizes that this server can not have: tokens → why."""
    refused = dict(context.refused_sizes)
    for size in sizes:
        if context.context_size is not None and size > context.context_size:
            refused.setdefault(size, f"the server's context holds {context.context_size} tokens")
    return refused


def _why_stop(result: SizeResult, limit_seconds: float | None) -> str | None:
    """Why larger contexts are not worth trying, None where they are."""
    if result.failure is None and not result.is_too_slow(limit_seconds) and not result.memory.swap_growth_bytes:
        return None
    return f"{result.context_tokens} tokens: {result.why_unusable(limit_seconds)}"


def _is_chat(context: ProfileContext) -> bool:
    return context.endpoint.protocol in {"openai_chat", "ollama_chat"}


def _prepare(context: ProfileContext, smallest: int) -> tuple[Counter, RequestRecord]:
    """Warm the server up, and find out how its tokens are counted; both with short prompts.

    Raises:
        LlmbenchError: a request failed, or the server does not say how many tokens it has read.
    """
    endpoint, draft = context.endpoint, Draft("warm-up")
    # Some 150 tokens; and a fifth of the smallest context, where tokens per word have to be learned.
    texts = [draft.text(2), draft.text(max(6, smallest // 100))]

    def counted(text: str) -> int:
        tokens = count_tokens(endpoint, text)
        if tokens is None:
            raise context.on_failure(
                RequestError("no_tokenizer", f"{endpoint.base_url}: /tokenize does not answer any more; see its log")
            )
        return tokens

    counter: Counter = LearnedCounter()
    if endpoint.capabilities.tokenizer and count_tokens(endpoint, texts[0]) is not None:
        counter, texts = TokenizerCounter(counted, exact=endpoint.protocol == "llama_cpp"), texts[:1]
    warmups = [_warm_up(context, counter, text) for text in texts]
    if (warmups[0].prompt_tokens or 0) >= (warmups[-1].prompt_tokens or 0) and len(warmups) > 1:
        raise MeasurementInvalid(
            "prompt_truncated",
            f"the server read {warmups[0].prompt_tokens} tokens of one prompt and {warmups[-1].prompt_tokens} of a "
            "longer one: it cuts prompts; give it a larger context",
        )
    return counter, warmups[-1]


def _warm_up(context: ProfileContext, counter: Counter, text: str) -> RequestRecord:
    length = context.prompt_tokens(text)
    record = context.request(Generation(max_tokens=WARMUP_TOKENS, prompt=text), "warmup")
    refusal = _not_counted(record) or why_nothing_counts(record, length, record, None)
    refusal = refusal or another_model(record, context.endpoint.signed)
    context.file(record, usable=refusal is None)
    if refusal is not None:
        raise refusal
    counter.learn(text, record.prompt_tokens or 0)
    return record


def _not_counted(record: RequestRecord) -> MeasurementInvalid | None:
    if record.prompt_tokens is not None:
        return None
    return MeasurementInvalid(
        "tokens_not_counted",
        "the server does not say how many tokens it has read, so nobody knows whether a context was filled; measure "
        "long context on a server that does",
    )


@dataclass
class _Filling:
    """Fills contexts, one after the other.

    Attributes:
        warmup: which model answered, how long it takes to find it loaded.
        rejected: requests that were no samples, by flag.
        measured: whether a smaller size was measured.
        server_died: at a larger one: what was measured before stands.
    """

    context: ProfileContext
    limit_seconds: float | None
    counter: Counter
    warmup: RequestRecord
    notes: list[str] = field(default_factory=list)
    rejected: Tally[str] = field(default_factory=Tally)
    measured: bool = False
    server_died: bool = False

    def __post_init__(self) -> None:
        self._writer = PromptWriter(self.counter)
        self._is_chat = _is_chat(self.context)
        if isinstance(self.counter, LearnedCounter):
            self._note("the server has no tokenizer to ask; prompts were fitted by what it counted in earlier ones")

    def fill(self, size: int) -> SizeResult:
        """Measure one size. What fails at a size after the first is kept in its result.

        Raises:
            LlmbenchError: the first size failed, or whatever this server answers is worth nothing.
        """
        result, telemetry = SizeResult(size), self.context.telemetry
        before, begin_ns = telemetry.now(), time.perf_counter_ns()
        try:
            room = self._divide(size)
            for number in range(self.context.settings.samples):
                self._sample(result, room, f"{size}/{number}")
                if result.is_too_slow(self.limit_seconds):
                    break
        except CellError as exc:
            if not self.measured or exc.code in _WORTHLESS:
                raise
            result.failure = exc.message
            self.server_died = isinstance(exc, ServerError)
        end_ns, after = time.perf_counter_ns(), telemetry.now()
        result.memory = MemoryUse.of([before, *telemetry.between(begin_ns, end_ns), after])
        self.measured = True
        return result

    def _divide(self, size: int) -> Room:
        wanted = self.context.settings.output_tokens
        turn = (CHAT_TURN_TOKENS if self._is_chat else TURN_TOKENS) + WARM_TOKENS
        room = Room.of(size, wanted, turn, self.counter.slack)
        if room.output_tokens < wanted:
            self._note(f"{size} tokens: answers have {room.output_tokens}, so that the prompt can fill 95 %")
        if not room.has_turn:
            self._note(f"{size} tokens: no room for one more turn, so no warm continuation")
        return room

    def _sample(self, result: SizeResult, room: Room, seed: str) -> None:
        """One cold load, and the conversation's next turn."""
        for _ in range(MOST_REPEATS + 1):  # of the same text, whose length is known better then; the nonce is another
            prompt, record, doubt = self._load(room, seed)
            if doubt is None:
                break
        if doubt is not None:
            raise _invalid(doubt, room)
        result.cold.append(record)
        if record.output_tokens == room.output_tokens:
            result.full.append(record)
        result.add_fact(prompt, record.output)
        if room.has_turn:
            self._continue(result, room, prompt, record)

    def _load(self, room: Room, seed: str) -> tuple[LongPrompt, RequestRecord, str | None]:
        prompt = self._writer.write(room.prompt_tokens, seed)
        generation = Generation(max_tokens=room.output_tokens, prompt=prompt.text, demand_length=True)
        record = self.context.request(generation, "sample", may_stand_still=True)
        return prompt, record, self._judge(record, prompt, room)

    def _judge(self, record: RequestRecord, prompt: LongPrompt, room: Room) -> str | None:
        """File a cold request; why it is no sample, None for one that is."""
        doubt, refusal = disturbance_of(record, self.warmup), None
        if doubt is None:
            refusal = _not_counted(record) or why_nothing_counts(record, prompt.length, self.warmup, None)
        if doubt is None and refusal is None:
            self.counter.learn(prompt.text, record.prompt_tokens or 0)
            if self._is_cache_hit(record):
                doubt = "prompt_cache_hit"
            elif not room.holds(record):
                doubt = NOT_FILLED
        self.context.file(record, usable=doubt is None and refusal is None)
        if refusal is not None:
            raise refusal
        if doubt is not None:
            self.rejected[doubt] += 1
        return doubt

    def _is_cache_hit(self, record: RequestRecord) -> bool:
        """Whether a cache spared the server a part of the load that matters; where it obeys, any part does."""
        cached = record.cached_tokens or 0
        if self.context.endpoint.capabilities.controls_cache or cached > MOST_CACHED * (record.prompt_tokens or 0):
            return cached > 0
        if cached:
            self._note("what every prompt of this server begins with came from a cache: less than 1 % of each")
        return False

    def _continue(self, result: SizeResult, room: Room, prompt: LongPrompt, cold: RequestRecord) -> None:
        """Ask for one more turn while the server has the conversation; not again when disturbed: it is cached then."""
        asked = self._next_turn(room, prompt, cold.output)
        if asked is None:
            return
        generation, length = asked
        try:
            record = self.context.request(generation, "sample", may_stand_still=True)
        except CellError as exc:
            if exc.code != "empty_answer":
                raise
            self._note(f"{room.context_tokens} tokens: one more turn was answered with nothing")
            return
        doubt = disturbance_of(record, self.warmup)
        refusal = None if doubt else why_nothing_counts(record, length, self.warmup, None)
        self.context.file(record, usable=doubt is None and refusal is None)
        if refusal is not None:
            raise refusal
        if doubt is not None:
            self.rejected[doubt] += 1
            return
        result.warm.append(record)
        if record.cached_tokens == 0:
            self._note("no cache: one more turn of a conversation pays for its whole prompt again")
        elif record.cached_tokens is None:
            self._note("the server does not tell whether it still had the conversation when one more turn came")

    def _next_turn(self, room: Room, prompt: LongPrompt, answer: str) -> tuple[Generation, PromptTokens] | None:
        """The conversation with one more turn, None where it has become too long for that."""
        if self._is_chat:
            turns = (("user", prompt.text), ("assistant", answer), ("user", NEXT_TURN))
            messages = tuple({"role": role, "content": content} for role, content in turns)
            length = PromptTokens(prompt.length.expected, exact=False)
            return Generation(WARM_TOKENS, messages=messages, demand_length=True, reuse_cache=True), length
        text = prompt.continued(answer)
        tokens = self.counter.count(text)
        if tokens + WARM_TOKENS > room.context_tokens:
            self._note(f"{room.context_tokens} tokens: an answer left no room for one more turn")
            return None
        return Generation(WARM_TOKENS, prompt=text, demand_length=True, reuse_cache=True), self.counter.length(tokens)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _invalid(doubt: str, room: Room) -> LlmbenchError:
    advice = {
        "prompt_cache_hit": "the server answers prompts from a cache we can not switch off; switch it off there",
        STOOD_STILL: "the machine, the server or this client was stopped again and again; see the log",
        "model_reloaded": "the server loads the model again and again; does it have the memory to keep it, and is "
        "nobody else using it with other options?",
        NOT_FILLED: "the server counts no two prompts alike, so its context can not be filled to 95 %",
    }[doubt]
    return MeasurementInvalid(
        doubt,
        f"at {room.context_tokens} tokens, {MOST_REPEATS + 1} requests in a row were no samples: {advice}",
        {"context_tokens": room.context_tokens, "rejected": MOST_REPEATS + 1},
    )
