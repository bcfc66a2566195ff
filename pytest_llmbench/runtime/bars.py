"""Progress bars for a person at a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

_SHOW_AFTER_SECONDS = 0.5


class Bars:
    """rich's progress bars, shown only once something takes long enough to wonder.

    Args:
        console: where to; None: standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._bars: RichProgress | None = None
        self._tasks: dict[str, Any] = {}
        self._started: dict[str, float] = {}

    def step(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """Show how far ``what`` is."""
        started = self._started.setdefault(what, time.monotonic())
        if time.monotonic() - started < _SHOW_AFTER_SECONDS:
            return
        if self._bars is None:
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
            )
            self._bars = Progress(*columns, console=self._console, transient=True)
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total_bytes)
        going_on = done_bytes != total_bytes
        self._bars.update(self._tasks[what], completed=done_bytes, total=total_bytes, visible=going_on)

    def close(self) -> None:
        """Take the bars off the screen."""
        if self._bars is not None:
            self._bars.stop()
