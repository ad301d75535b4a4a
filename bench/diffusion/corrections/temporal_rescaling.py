"""Temporal score rescaling (Xu et al. 2025, arXiv 2510.01184): the score of data that spread more, or less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from bench.diffusion.corrections.base import Correction, with_noise
from bench.diffusion.types import Call, Level, Prediction

_MOST = 1e6


class TemporalRescaling(Correction):
    """Multiply eps by r = (snr s^2 + 1) / (snr s^2 / k + 1), snr = alpha^2 / sigma^2, and re-form x0_hat from it.

    Exact for x0 ~ N(mean, s^2 I): the result is the exact denoiser of N(mean, s^2 / k I), at every level. For other
    data it is a local temperature: k < 1 widens, k > 1 sharpens. r is 1 where noise hides the data and k where it is
    gone, so that k < 1 is an epsilon scaling with b = 1 / k > 1 at the least noise and none at the most, the other way
    round from the linear one of ADM-ES. The defaults are those of ComfyUI's ``TemporalScoreRescaling``, for images.

    An x0_hat that an earlier correction made apart from eps (:class:`X0Scaling`) is replaced.

    Args:
        k: inverse temperature; 1 is the plain sampler, bit for bit.
        s: spread of the data around which k acts, the paper's sigma; the larger, the earlier k is felt.

    Raises:
        ValueError: k or s is not between 1e-6 and 1e6.
    """

    neutral: ClassVar[Mapping[str, Any]] = {"k": 1.0}

    def __init__(self, k: float = 0.95, s: float = 1.0) -> None:
        for name, value in {"k": k, "s": s}.items():
            if not 1 / _MOST <= value <= _MOST:
                raise ValueError(
                    f"{name} must lie between {1 / _MOST:g} and {_MOST:g}, not {value}; k = 1 switches it off"
                )
        self.k, self.s = k, s

    def factor(self, level: Level) -> float:
        """Return r at a level: a float, or [B, 1, 1, 1] where levels are one an image."""
        signal, noise = (level.alpha * self.s) ** 2, level.sigma**2
        # (snr s^2 + 1) / (snr s^2 / k + 1), both sides times sigma^2
        return (signal + noise) / (signal / self.k + noise)

    def prediction(self, pred: Prediction, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Return x0_hat of the rescaled eps, and the rescaled eps."""
        if self.k == 1:  # off: not even a rounding error
            return pred.x0, pred.eps
        return with_noise(pred, x, call.level, self.factor(call.level) * pred.eps)
