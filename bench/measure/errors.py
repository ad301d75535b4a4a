"""The error of this room that a user can mend."""

from __future__ import annotations

__all__ = ["FeatureError"]


class FeatureError(ValueError):
    """Features or their statistics cannot be had; the message says what is wrong and how to mend it, in one line."""
