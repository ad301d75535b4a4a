"""Variance matching: controls that set the spread of a state, of x0_hat or of the final image, one image at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.diffusion.corrections.base import ByLevel, Correction
from bench.diffusion.posterior import root
from bench.diffusion.types import Call, Level, Prediction

_ALL = (1, 2, 3)
_LEAST = 1e-12  # an image of one value stays one: nothing divided by this is nothing
_ROUNDING = 1e-6  # of EDM's t, computed from sigma


def x0_std(pred: Prediction) -> Tensor:
    """Return the spread of each image's x0_hat: over channels and pixels, about its own mean, with n - 1; [B]."""
    return pred.x0.std(_ALL)


def _gain(x: Tensor, std: Any) -> Tensor:
    """Return the factor that gives images [B, C, H, W] a spread; [B, 1, 1, 1]."""
    return std / x.std(_ALL, keepdim=True).clamp(min=_LEAST)


class VarianceNormalisation(Correction):
    """Scale the state that each step makes to the variance of real noised data.

    Per image, x_next is multiplied so that the variance of its pixels is alpha^2 data_variance + sigma^2 of the level
    it was taken to: what x = alpha x0 + sigma noise has on average. data_variance = 0 is ``normalize_variance`` of
    TS-DPM (``pnm_solver.py``), x sqrt((1 - alpha_bar) / var(x)). As there, the variance is about the image's mean, over
    channels and pixels, with n - 1 (``torch.var``), while the whole image is multiplied, mean and all. That code also
    scales the start of the walk, and has no cutoff: with data_variance = 0 the last states then are nearly grey. The
    image itself is never scaled.

    Args:
        levels: the walk's levels, noisiest first, ending in the clean one.
        data_variance: variance of the pixels *within* an image about that image's mean, averaged over real images in
            [-1, 1]; that of all pixels of all images also holds the spread of the means.
        cutoff: the least t, from 0, that is normalised; one above all levels is off.

    Raises:
        ValueError: data_variance or cutoff is not finite or below 0.
    """

    moves = True
    typical: ClassVar[Mapping[str, Any]] = {"cutoff": 0.0}

    def __init__(self, levels: Sequence[Level], data_variance: float, cutoff: float) -> None:
        if not (0 <= data_variance < math.inf and 0 <= cutoff < math.inf):
            raise ValueError(
                "variance normalisation needs a data variance and a cutoff that are finite and at least 0,"
                f" not {data_variance} and {cutoff}"
            )
        normalised = [level.t for level in levels if not level.is_clean and level.t >= cutoff - _ROUNDING]
        self._least, self._data_variance = min(normalised, default=math.inf), data_variance

    def after(self, x_next: Tensor, pred: Prediction, call: Call) -> Tensor:
        """Return the state of a whole step, scaled."""
        level = call.level_next
        if not call.completes or level.is_clean:
            return x_next
        # The variance of alpha x0 + sigma noise, on average over images.
        scaled = x_next * _gain(x_next, root(level.alpha**2 * self._data_variance + level.sigma**2))
        normalised: Any = level.t >= self._least
        if isinstance(normalised, Tensor):
            return torch.where(normalised, scaled, x_next)
        return scaled if normalised else x_next


class X0StdMatching(Correction):
    """Scale x0_hat to the spread it has on real noised data at the same level.

    Inspired by MCDO (Yao et al., ICLR 2025: few-step DDIM whose x0_hat is scaled to a pixel variance that was measured
    at each t in a walk of full length, on about 20 samples). Its exact formula was not found, so this is no
    reimplementation. Per image, x0_hat is scaled about its own mean; the paper takes that mean for 0, which scales the
    whole image and differs where images are bright or dark. eps is made anew from the state and the new x0_hat,
    (x - alpha x0_hat) / sigma, so that both say the same. Every call is matched, both of a Heun step.

    Args:
        reference: pairs of t (from 0) and the spread there, in any order: :func:`x0_std` of real noised images, as the
            root of its mean square. Between two t it is interpolated, beyond them constant.
        clip: whether the walk clamps x0_hat. It is then clamped before it is matched too, as the reference's is: near
            pure noise an eps network's is a thousand times too wide. What matching widens is clamped once more by the
            walk, so that the spread used falls short of the reference.

    Raises:
        ValueError: no pairs, one t twice, or a spread that is not finite or below 0.
    """

    def __init__(self, reference: Sequence[tuple[float, float]], clip: bool = False) -> None:
        t, std = [pair[0] for pair in sorted(reference)], [pair[1] for pair in sorted(reference)]
        if not t or len(set(t)) < len(t) or not all(map(math.isfinite, t)) or not all(0 <= s < math.inf for s in std):
            raise ValueError("the reference of x0-std must be pairs of a t and a std of at least 0, each t once")
        self._std, self._clip = ByLevel(t, std), clip

    def prediction(self, pred: Prediction, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Return the scaled x0_hat, and the eps that goes with it."""
        plain = pred.x0.clamp(-1.0, 1.0) if self._clip else pred.x0
        mean = plain.mean(_ALL, keepdim=True)
        x0 = mean + (plain - mean) * _gain(plain, self._std(call.level.t))
        return x0, (x - call.level.alpha * x0) / call.level.sigma  # x = alpha x0 + sigma eps


class FinalStd(Correction):
    """Scale the final images alone, each about its own mean: what any remedy could gain by contrast.

    The control that MCDO's reviewers asked for, plain samples adjusted to the moments of real images. It never touches
    the walk, so what it gains says nothing of exposure bias.

    Args:
        std: the spread of an image's pixels about its mean (with n - 1), of real images in [-1, 1].

    Raises:
        ValueError: std is not finite or below 0.
    """

    def __init__(self, std: float) -> None:
        if not 0 <= std < math.inf:
            raise ValueError(f"the final std must be finite and at least 0, not {std}")
        self._std = std

    def after(self, x_next: Tensor, pred: Prediction, call: Call) -> Tensor:
        """Return the walk's last state scaled, any other as it is."""
        if not call.level_next.is_clean:
            return x_next
        mean = x_next.mean(_ALL, keepdim=True)  # of each image, which stays
        return mean + (x_next - mean) * _gain(x_next, self._std)
