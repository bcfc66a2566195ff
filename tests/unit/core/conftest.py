"""Property tests of the core: no deadline, because a busy machine is no failure, and nothing remembered on disk."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("core", deadline=None, database=None)
settings.load_profile("core")
