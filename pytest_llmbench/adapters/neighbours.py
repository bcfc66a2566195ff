"""Plugins that shuffle, rerun or time out tests: what they may do to a cell.

The order of cells is part of the measurement (P30), a verdict is not asked for until it is a better one (P29), and
downloads and loads have deadlines of their own. Only documented interfaces of those plugins are used: markers, options
and hooks.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any

import pytest

from pytest_llmbench.adapters.collection import arrange, cell_of, places_of, restore
from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.core.records import Reason
from pytest_llmbench.errors import RequestError

# Of pytest-rerunfailures: searched in "<class>: <message>", before 16 "<module>.<class>: …"; what matches is not rerun.
_ANYTHING_BUT_A_FAILED_REQUEST = rf"\A(?!(?:{re.escape(RequestError.__module__)}\.)?{RequestError.__name__}: )"

_TIMED_OUT_KEY = pytest.StashKey[float]()
_ATTEMPTS_KEY = pytest.StashKey[int]()
_PROPERTIES_KEY = pytest.StashKey[int]()


class Neighbours:
    """A plugin of its own: registered after all others, its wrappers are the outermost and have the last word."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self._places: dict[pytest.Item, int] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, None, None]:
        """Before anybody shuffles: arrange. After everybody did: the same order again, of the cells that are left."""
        arrange(items, self._suite)
        self._places = places_of(items)
        yield
        self.restore_order(items)

    def restore_order(self, items: list[pytest.Item]) -> None:
        """Bring the cells that are left back into our order, before stepwise drops what stands before a failed one."""
        restore(items, self._places)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Before timeouts are set and reruns are counted, say what both mean for a cell."""
        if cell_of(item) is not None:
            _time_only_the_function(item)
            _rerun_only_requests(item)
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Count attempts; what an earlier one left in the item would stand in JUnit twice."""
        if cell_of(item) is None:
            return
        attempts = item.stash[_ATTEMPTS_KEY] = item.stash.get(_ATTEMPTS_KEY, 0) + 1
        if attempts == 1:
            item.stash[_PROPERTIES_KEY] = len(item.user_properties)
        del item.user_properties[item.stash[_PROPERTIES_KEY] :]

    @pytest.hookimpl(wrapper=True, optionalhook=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> Generator[None, object, object]:
        """Note when the time is up, so that the record can tell it from a test that calls ``pytest.fail``."""
        outcome = yield
        in_main_thread = threading.current_thread() is threading.main_thread()
        if cell_of(item) is not None and settings.method == "signal" and in_main_thread:
            _note_the_alarm(item, float(settings.timeout))
        return outcome

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """A server whose answer was not waited for may still be at it, so nothing else is measured on it."""
        if _TIMED_OUT_KEY in item.stash:
            self._suite.pool.release()


def timed_out(item: pytest.Item) -> Reason | None:
    """The reason of a cell that pytest-timeout ended, None for any other."""
    seconds = item.stash.get(_TIMED_OUT_KEY, None)
    if seconds is None:
        return None
    message = (
        f"the test took longer than {seconds:g} s, which pytest-timeout allows; give it more (--timeout, the marker or "
        "the ini key), or ask for less: settings.<profile>, measurement.max_samples"
    )
    return Reason(code="timeout", message=message, evidence={"timeout_seconds": seconds})


def attempt_note(item: pytest.Item) -> str | None:
    """A remark for the record of a cell that was rerun, None for the first attempt."""
    attempts = item.stash.get(_ATTEMPTS_KEY, 1)
    if attempts == 1:
        return None
    return f"attempt {attempts}: a request of each attempt before failed, see superseded.jsonl"


def _time_only_the_function(item: pytest.Item) -> None:
    """Fetching and loading a model have deadlines of their own: pytest-timeout is a backstop for the test function.

    A marker that names ``func_only`` is left alone.
    """
    if not item.config.pluginmanager.hasplugin("timeout"):
        return
    own = item.get_closest_marker("timeout")
    if own is None:
        item.add_marker(pytest.mark.timeout(func_only=True))
    elif "func_only" not in own.kwargs:
        item.add_marker(pytest.mark.timeout(*own.args, **own.kwargs, func_only=True), append=False)


def _rerun_only_requests(item: pytest.Item) -> None:
    """Have pytest-rerunfailures rerun a cell for a failed request alone, as often as it was told to.

    Its marker replaces its options, so those are copied. A ``condition`` is not: it is compared with the phase a
    failure is reported of, and ours of the infrastructure are reported as setup, so the plugin would lose the report.
    """
    config = item.config
    if not config.pluginmanager.hasplugin("rerunfailures"):
        return
    own = item.get_closest_marker("flaky")
    if own is not None:
        arguments, options = own.args, dict(own.kwargs)
        if options.pop("condition", None) is not None:
            arguments, options = (), {"reruns": 0}
    else:
        reruns = _number(_said(config, "reruns"))
        if reruns is None and config.getoption("force_reruns", None) is None:
            return
        appends = config.getoption("reruns_mode", None) == "append"  # then the option is added to the marker's count
        arguments, options = (), {"reruns": 0 if appends or reruns is None else int(reruns)}
        for name in ("reruns_delay", "reruns_delay_backoff_factor"):
            if (value := _number(_said(config, name))) is not None:
                options[name] = value
    excepted = options.pop("rerun_except", None) or _said(config, "rerun_except") or []
    if isinstance(excepted, str | type):
        excepted = [excepted]
    options["rerun_except"] = [*excepted, _ANYTHING_BUT_A_FAILED_REQUEST]
    item.add_marker(pytest.mark.flaky(*arguments, **options), append=False)


def _said(config: pytest.Config, name: str) -> Any:
    """An option's value, else that of the ini key of the same name; None where neither was given, or there is none."""
    if (value := config.getoption(name, None)) is not None:
        return value
    try:
        return config.getini(name) or None
    except ValueError:  # an older release
        return None


def _number(said: Any) -> float | None:
    """What the plugin makes of an ini key's text: nothing, where it is no number."""
    try:
        return float(said)
    except (TypeError, ValueError):
        return None


def _note_the_alarm(item: pytest.Item, seconds: float) -> None:
    told = signal.getsignal(signal.SIGALRM)
    if not callable(told):
        return

    def tell(signum: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True
        try:
            told(signum, frame)
        except pytest.fail.Exception:  # it may also let a test go on that is being debugged
            item.stash[_TIMED_OUT_KEY] = seconds
            raise

    signal.signal(signal.SIGALRM, tell)
