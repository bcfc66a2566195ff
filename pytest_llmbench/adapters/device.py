"""The device this process measures on: leased before a server's first cell, kept until the server is let go."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack

from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.runtime.devices import CPUS, DevicePool, Lease

logger = logging.getLogger(__name__)


class HeldDevice:
    """At most one lease of the pool.

    It is kept between the cells of a server: whoever else measures here would find the server in memory.
    """

    def __init__(self, pool: DevicePool) -> None:
        self._pool = pool
        self._lease: Lease | None = None
        self._uses_gpu = False
        self._environment = ExitStack()

    @property
    def name(self) -> str | None:
        """``cpu``, or the GPU's name; None while nothing is leased."""
        return self._lease.name if self._lease is not None else None

    def is_chosen_by_lease(self, spec: ServerSpec) -> bool:
        """Whether the server has to be started on the device that is leased, and not before."""
        return _uses_gpu(spec) and bool(self._pool.gpus)

    def take(self, spec: ServerSpec, told: Callable[[str], None]) -> None:
        """Lease a device for a server, unless one of that kind is held; waits until one is free.

        Raises:
            CellError: ``device_busy``, or locks can not be kept.
        """
        uses_gpu = _uses_gpu(spec)
        if self._lease is not None and self._uses_gpu == uses_gpu:
            return
        self.release()
        self._lease, self._uses_gpu = self._pool.lease(uses_gpu, told), uses_gpu
        logger.info("measuring on %s", self._lease.name)
        # On the CPUs for want of a GPU that we know: there may be one that only the server knows, and finds.
        shown = {} if uses_gpu and self._lease.name == CPUS else self._lease.environment
        for name, value in shown.items():
            self._environment.callback(_set, name, os.environ.get(name))
            _set(name, value)

    def take_cpus(self, told: Callable[[str], None]) -> None:
        """Lease the CPUs in place of what is held, for a server that turned out to compute there.

        Raises:
            CellError: ``device_busy``, or locks can not be kept.
        """
        self.release()
        self._lease = self._pool.lease(uses_gpu=False, told=told)

    def release(self) -> None:
        """Give it back, when nothing of ours runs on it any more. Safe to call again."""
        self._environment.close()
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()


def _uses_gpu(spec: ServerSpec) -> bool:
    """Whether a server may use a GPU; one that is not told how many layers to put there decides for itself."""
    return spec.gpu_layers != 0


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
