"""The argument parser of every command: a user's mistake is one line and exit code 2."""

from __future__ import annotations

import argparse
from typing import NoReturn

__all__ = ["OneLineParser"]


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error alone and exit with code 2."""
        self.exit(2, f"error: {message}; see --help\n")


class FeatureError(ValueError):
    """Features or their statistics cannot be had; the message says what is wrong and how to mend it, in one line."""
