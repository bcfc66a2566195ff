"""A worker's line to the controller of its run, beside the one xdist has: told and asked in ASCII.

execnet can not send every string a model can produce, so each message is one JSON text. Everything that a worker
sends arrives in the order in which it was sent, also with respect to xdist's own messages.
"""

from __future__ import annotations

import json
import logging
from typing import Any

logger = logging.getLogger(__name__)
CHANNEL = "llmbench_channel"
_ANSWER_SECONDS = 30.0


class Controller:
    """The worker's end. Nothing here raises: without a controller, a worker ends soon, by xdist's doing.

    Args:
        channel: execnet's.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._questions = 0

    def tell(self, kind: str, **values: Any) -> bool:
        """Send; whether that was possible."""
        try:
            self._channel.send(json.dumps({"kind": kind, **values}))
        except OSError as exc:
            logger.warning("the controller can not be told: %r", exc)
            return False
        return True

    def ask(self, kind: str, **values: Any) -> Any:
        """Send, and wait for the answer; None where none comes."""
        self._questions += 1
        if not self.tell(kind, number=self._questions, **values):
            return None
        try:
            while (answer := json.loads(self._channel.receive(_ANSWER_SECONDS)))["number"] != self._questions:
                pass  # the late answer to an earlier question
        except (
            OSError,
            EOFError,
            ValueError,
            self._channel.RemoteError,
        ) as exc:  # execnet's TimeoutError is an OSError
            logger.warning("the controller does not answer: %r", exc)
            return None
        return answer["answer"]
