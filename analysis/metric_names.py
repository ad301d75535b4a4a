"""What scores are called: a prefix for clean-fid's resizing, a suffix for features that make no published metric.

``fid``, ``clean_fid``, ``fd_inception``, ``clean_fd_inception``, ``fd_digits``, ``fd_cifar10``; precision, recall and
the Inception score likewise. Only the first two are on the published Inception weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["coverage_name", "frechet_name", "inception_score_name"]

_DERIVED = ("_inf", "_exact", "_exact_sd")


def frechet_name(names: Iterable[str]) -> str | None:
    """Return the Frechet distance on pooled features, the plain one; None where there is none."""
    plain = (name for name in names if not name.endswith(_DERIVED))
    return next((name for name in plain if re.fullmatch(r"(clean_)?(fid|fd_\w+)", name)), None)


def coverage_name(names: Iterable[str], kind: str) -> str | None:
    """Return what ``precision`` or ``recall`` goes by, None where there is none."""
    return next((name for name in names if re.fullmatch(rf"(clean_)?{kind}(_\w+)?", name)), None)


def inception_score_name(names: Iterable[str]) -> str | None:
    """Return what the Inception score goes by, None where there is none."""
    return next((name for name in names if re.fullmatch(r"(clean_)?is(_\w+)?", name)), None)
