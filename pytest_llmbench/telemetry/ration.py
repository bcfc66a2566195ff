"""Work that is repeated, kept below a share of one core."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Ration:
    """After costly work the next is due later.

    Args:
        share: of one core, that the work may take in the long run; it may be changed.
        at_least_seconds: between the end of one piece of work and the next, however cheap it is.

    Attributes:
        latest_seconds, total_seconds: on a core, of the latest piece of work and of all.
    """

    def __init__(self, share: float, at_least_seconds: float = 0.0) -> None:
        self.share = share
        self._at_least_seconds = at_least_seconds
        self._next = 0.0
        self.latest_seconds = self.total_seconds = 0.0

    def due(self) -> bool:
        """Whether it may be done now."""
        return self.seconds_left() <= 0

    def seconds_left(self) -> float:
        """How long it may not be done yet."""
        return max(0.0, self._next - time.monotonic())

    @contextmanager
    def spent(self) -> Iterator[None]:
        """Around the work, in the thread that does it: its time on a core is what counts."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.latest_seconds = time.thread_time() - began
            self.total_seconds += self.latest_seconds
            self._next = time.monotonic() + max(self._at_least_seconds, self.latest_seconds / self.share)
