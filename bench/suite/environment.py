"""What the numbers were computed with: recorded in every run, never part of a cache key."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["environment"]

_PACKAGES = (
    "torch", "numpy", "scipy", "pandas", "diffusers", "safetensors", "torch-fidelity", "clean-fid", "scikit-learn",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return package versions, the Python version and the commit of the code, None where it is not in git."""
    packages = {name: _version(name) for name in _PACKAGES}
    return {"packages": packages, "python": platform.python_version(), "commit": _commit()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the code, recorded but never part of a cache key."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
