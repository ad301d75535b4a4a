"""Parts of captions that depend on how a folder was sampled."""

from __future__ import annotations

from analysis.records.load import Results

__all__ = ["clips", "other_causes", "used_x0"]


def clips(results: Results) -> bool:
    """Tell whether x0_hat was clamped to [-1, 1]; cells of one folder agree in it."""
    return bool(results.cells[0].cell.get("clip"))


def used_x0(results: Results) -> str:
    """Return what was done to the x0_hat whose errors are shown."""
    return "x0_hat as the sampler uses it, scaled " + ("and clipped" if clips(results) else "but not clipped")


def other_causes(results: Results) -> str:
    """Return what besides few steps moves the variance off that of an exact denoiser of Gaussian data."""
    causes = ["the network"]
    causes += ["clipping"] if clips(results) else []
    causes += ["the classifier's guidance"] if any("classifier" in record.cell for record in results.cells) else []
    return ", ".join(causes) + " and data that are not Gaussian"
