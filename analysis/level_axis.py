"""What a noise level is called in figures: the training index t, or EDM's sigma on EDM's own scale.

Records name a level of an EDM walk by a ``t`` of its own, from 0 at sigma .002 to 999 at sigma 80 and linear in
sigma^(1/7) (Karras et al. 2022, eq. 5). It is a place on an axis and no training index, so figures print sigma.
"""

from __future__ import annotations

from matplotlib.axes import Axes

__all__ = ["is_edm", "level_name", "level_symbol", "noisy_left", "sigma_at"]

_EDM_SAMPLERS = ("euler", "heun")
_RHO = 7.0
_LOW, _HIGH = 0.002 ** (1 / _RHO), 80.0 ** (1 / _RHO)
_LAST = 999.0
_TICKS = (50.0, 5.0, 0.5, 0.02)  # about evenly spaced on that scale, clear of the ends where panels meet


def is_edm(sampler: str) -> bool:
    """Tell whether a sampler walks on EDM levels."""
    return sampler in _EDM_SAMPLERS


def sigma_at(t: float) -> float:
    """Return the noise level at a place ``t`` on EDM's scale, 0 (sigma .002) to 999 (sigma 80)."""
    return float((_LOW + t / _LAST * (_HIGH - _LOW)) ** _RHO)


def level_symbol(sampler: str) -> str:
    """Return the letter of a horizontal axis of levels."""
    return r"$\sigma$" if is_edm(sampler) else "t"


def level_name(t: float, sampler: str) -> str:
    """Return a level as titles give it, e.g. ``t = 646`` or ``sigma = 7.9``."""
    return rf"$\sigma$ = {sigma_at(t):.2g}" if is_edm(sampler) else f"t = {t:.0f}"


def noisy_left(axis: Axes, sampler: str = "") -> None:
    """Let the noise fall from left to right, as sampling does; an axis of EDM levels gets sigma at its ticks.

    Args:
        axis: its horizontal axis is ``t`` of the records; panels that share it follow.
        sampler: of the walk; none where t is a training index.
    """
    if not axis.xaxis_inverted():
        axis.invert_xaxis()
    if is_edm(sampler):
        places = [_LAST * (sigma ** (1 / _RHO) - _LOW) / (_HIGH - _LOW) for sigma in _TICKS]
        axis.set_xticks(places, [f"{sigma:g}" for sigma in _TICKS])
