"""Paths as people write them into config files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

_KEYS = ("weights", "adapter", "alphas_cumprod", "latents", "embeddings", "vae", "path")


def with_home(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a model or a dataset with the home folder for a ``~`` at the start of its paths."""
    paths = {key: os.path.expanduser(str(entry[key])) for key in _KEYS if key in entry}
    return {**entry, **paths}
