"""Hooks: measure the exposure bias of any sampling loop, where it runs; see docs/hooks.md."""

from bench.hooks.frames import HookError
from bench.hooks.record import Log, record

__all__ = ["HookError", "Log", "record"]
