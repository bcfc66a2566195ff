"""Which models the Ollama-speaking test server holds in memory, with which options, and for how long.

Part of :mod:`tests.servers.ollama_server`, which is a test server and not Ollama.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tests.servers.ollama_engine import Engine, OllamaError, Runner, RunnerOptions
from tests.servers.ollama_models import OllamaModel

BUSY = "server busy, please try again.  maximum pending requests exceeded"
_WHOLE = {"num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_ctx", "num_batch", "num_gpu", "main_gpu"}
_WHOLE |= {"num_thread", "draft_num_predict"}
_REAL = {"top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"}
_GO_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_GO_UNIT = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_keep_alive(value: object) -> float | None:
    """Seconds to stay loaded: a number or a Go duration; below zero means for ever.

    Raises:
        OllamaError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return math.inf if value < 0 else float(value)
    if not isinstance(value, str):
        raise OllamaError(400, f"Unsupported type: '{type(value).__name__}'")
    sign, digits = ("-", value[1:]) if value.startswith("-") else ("", value.removeprefix("+"))
    if digits == "0":
        return 0.0
    parts = _GO_DURATION.findall(digits)
    if not parts or "".join(number + unit for number, unit in parts) != digits:
        raise OllamaError(400, f'time: invalid duration "{value}"')
    return math.inf if sign else sum(float(number) * _GO_UNIT[unit] for number, unit in parts)


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of known names with values of the right type; unknown names are dropped without a word.

    Raises:
        OllamaError: a value is of the wrong type, which Ollama calls its own failure (500).
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in _WHOLE:
            right, kind = number, "integer"
            checked[name] = int(value) if number else None
        elif name in _REAL:
            right, kind = number, "float32"
            checked[name] = value
        elif name == "use_mmap":
            right, kind = isinstance(value, bool), "boolean"
            checked[name] = value
        elif name == "stop":
            right, kind = isinstance(value, list), "array"
            checked[name] = value
        else:
            continue
        if not right:
            raise OllamaError(500, f'option "{name}" must be of type {kind}')
    return checked


def runner_options(options: Mapping[str, Any], default_context: int, trained: int | None, shift: bool) -> RunnerOptions:
    """The options that a loaded model is tied to."""
    names = {f.name for f in fields(RunnerOptions)} - {"shift"}
    given = {"num_ctx": default_context, **{name: value for name, value in options.items() if name in names}}
    given["num_ctx"] = max(4, given["num_ctx"])
    if trained is not None:
        given["num_ctx"] = min(given["num_ctx"], trained)
    return RunnerOptions(**given, shift=shift)


def needs_reload(
    old: RunnerOptions, new: RunnerOptions, old_given: Mapping[str, Any], new_given: Mapping[str, Any]
) -> bool:
    """Whether a loaded model can not serve a request: any difference counts, but none between two defaults."""
    for name in ("num_ctx", "num_batch"):
        if name not in old_given and name not in new_given:
            new = replace(new, **{name: getattr(old, name)})
    if "use_mmap" not in old_given and new.use_mmap is None:
        new = replace(new, use_mmap=old.use_mmap)
    if new.num_gpu < 0:
        new = replace(new, num_gpu=old.num_gpu)
    return old != new


@dataclass(eq=False)
class Loaded:
    """A loaded model. ``turn`` is held while it answers: one at a time, as with OLLAMA_NUM_PARALLEL=1."""

    name: str
    model: OllamaModel
    runner: Runner
    options: RunnerOptions
    given: Mapping[str, Any]
    session_seconds: float
    users: int = 0
    expires: float = math.inf
    closing: bool = False
    turn: threading.Lock = field(default_factory=threading.Lock)

    def rest(self) -> None:
        """Count its remaining time from now."""
        self.expires = time.monotonic() + self.session_seconds


class Scheduler:
    """Decides which models are loaded. Loads come one after the other; a request may wait for one to become idle."""

    def __init__(
        self, engine: Engine, *, keep_alive_seconds: float, unload_seconds: float, max_loaded: int, max_queue: int
    ) -> None:
        self.loads = 0
        self._engine = engine
        self._keep_alive_seconds = keep_alive_seconds
        self._unload_seconds = unload_seconds
        self._max_loaded = max_loaded
        self._max_queue = max_queue
        self._runners: dict[str, Loaded] = {}
        self._changed = threading.Condition()
        self._load_turn = threading.Lock()
        self._waiting = 0
        self._closed = threading.Event()
        self._reaper = threading.Thread(target=self._reap, name="ollama test server: unloads")
        self._reaper.start()

    @contextmanager
    def use(
        self, name: str, model: OllamaModel, options: RunnerOptions, given: Mapping[str, Any], keep: float | None
    ) -> Iterator[Loaded]:
        """A loaded model for the time of a request."""
        loaded = self._acquire(name, model, options, given)
        if keep is not None:
            loaded.session_seconds = keep
        try:
            yield loaded
        finally:
            with self._changed:
                loaded.users -= 1
                loaded.rest()
                self._changed.notify_all()

    def expire(self, name: str) -> None:
        """Let a model go as soon as nobody uses it; returns at once."""
        with self._changed:
            if loaded := self._runners.get(name):
                loaded.session_seconds = 0.0
                loaded.rest()
                self._changed.notify_all()

    def loaded(self) -> list[Loaded]:
        """Those in memory, also while they go; the one that stays longest first."""
        with self._changed:
            return sorted(self._runners.values(), key=lambda loaded: -loaded.expires)

    def close(self) -> None:
        """End every engine."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        self._reaper.join()
        with self._load_turn:
            for loaded in list(self._runners.values()):
                loaded.runner.close()
            self._runners.clear()

    def _acquire(self, name: str, model: OllamaModel, options: RunnerOptions, given: Mapping[str, Any]) -> Loaded:
        with self._changed:
            if found := self._take(name, model, options, given):
                return found
            if self._waiting >= self._max_queue:
                raise OllamaError(503, BUSY)
            self._waiting += 1
        try:
            with self._load_turn:
                return self._load(name, model, options, given)
        finally:
            with self._changed:
                self._waiting -= 1

    def _take(self, name: str, model: OllamaModel, options: RunnerOptions, given: Mapping[str, Any]) -> Loaded | None:
        found = self._runners.get(name)
        if found is None or found.closing or not found.runner.alive or found.model.path != model.path:
            return None
        if needs_reload(found.options, options, found.given, given):
            return None
        found.users += 1
        return found

    def _load(self, name: str, model: OllamaModel, options: RunnerOptions, given: Mapping[str, Any]) -> Loaded:
        with self._changed:
            if found := self._take(name, model, options, given):
                return found
        while victim := self._in_the_way(name):
            with self._changed:
                self._changed.wait_for(lambda v=victim: not v.users or self._closed.is_set())  # type: ignore[misc]
                others_do, victim.closing = victim.closing, True
                if others_do:
                    self._changed.wait_for(lambda v=victim: v not in self._runners.values())  # type: ignore[misc]
            if not others_do:
                self._unload(victim)
        if self._closed.is_set():
            raise OllamaError(503, "the server is ending")
        runner = self._engine.load(model.path, options)
        loaded = Loaded(name, model, runner, options, given, self._keep_alive_seconds, users=1)
        loaded.rest()
        with self._changed:
            self.loads += 1
            self._runners[name] = loaded
            self._changed.notify_all()
        return loaded

    def _in_the_way(self, name: str) -> Loaded | None:
        with self._changed:
            if len(self._runners) < self._max_loaded or name in self._runners:
                return self._runners.get(name)
            return min(self._runners.values(), key=lambda loaded: (loaded.users, loaded.expires))

    def _unload(self, loaded: Loaded) -> None:
        loaded.runner.close()
        with self._changed:
            del self._runners[loaded.name]
            self._changed.notify_all()

    def _reap(self) -> None:
        while not self._closed.is_set():
            with self._changed:
                idle = [loaded for loaded in self._runners.values() if not loaded.users and not loaded.closing]
                due = [loaded for loaded in idle if loaded.expires <= time.monotonic()]
                if not due:
                    nearest = min((loaded.expires for loaded in idle), default=math.inf) - time.monotonic()
                    self._changed.wait(None if nearest > threading.TIMEOUT_MAX else max(0.0, nearest))
                    continue
                for loaded in due:
                    loaded.closing = True
            self._closed.wait(self._unload_seconds)  # still in /api/ps, as memory that is being given back
            for loaded in due:
                self._unload(loaded)
