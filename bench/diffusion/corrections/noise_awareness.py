"""Noise awareness guidance (NAG; Zhong et al., ICLR 2026, arXiv 2510.12497): away from what a blind network says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from bench.diffusion.corrections.base import Correction, is_blind
from bench.diffusion.types import NULL_TIME, Level, Network, Prediction


class NoiseAwareness(Correction):
    """Ask twice, with the time and without, and go on from (w + 1) s(x, t) - w s(x).

    The network must have been trained with some of its times dropped. The two answers about one state are mixed as eps
    and x0_hat, which is the mixture of scores -eps / sigma at the state's level. With s(x) the score of the mixture of
    all levels' laws, the added w (s(x, t) - s(x)) is the gradient of w log p(t | x) (Bayes; see
    ``examples/noise_awareness.py`` for what it does to an exact denoiser). A learned variance is that of the call with
    the time.

    Read in others' notes on the paper and in its reviews; the method's section and the code could not be. That the
    network's outputs are mixed, rather than scores of the level that the blind network guesses, is our reading.

    Args:
        w: strength; 0 is the plain sampler, bit for bit, with one call.

    Raises:
        ValueError: w is not a finite number of at least 0.
    """

    neutral: ClassVar[Mapping[str, Any]] = {"w": 0.0}

    def __init__(self, w: float = 1.0) -> None:
        if not 0 <= w < math.inf:
            raise ValueError(f"w must be a finite number of at least 0, not {w}; 0 switches it off")
        self.w = w

    def ask(self, network: Network, x: Tensor, level: Level) -> Prediction:
        """Ask with the time and without; ``plain`` is the former, or what that one calls so.

        The first level of a flow, without any signal, is asked about once.
        """
        told = network(x, level)
        if self.w == 0 or is_blind(level):  # off: not even a rounding error
            return told
        blind = network(x, replace(level, t=NULL_TIME))
        eps, x0 = (a + self.w * (a - b) for a, b in ((told.eps, blind.eps), (told.x0, blind.x0)))
        calls = told.calls + blind.calls
        return replace(told, eps=eps, x0=x0, x0_cov=None, plain=told.plain or told, calls=calls)
