"""Noise scaling: the noise that a sampler draws, a little stronger (EDM's S_noise above 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from bench.diffusion.corrections.base import Correction


class NoiseScaling(Correction):
    """Multiply the noise of every random step, and of churn, by s (S_noise of Karras et al. 2022, algorithm 2).

    The paper has 1.003 against what it takes for a loss of detail in steps with churn; samplers of k-diffusion have
    the same factor, ``s_noise``, on their ancestral noise. s > 1 leaves more variance. Steps without noise keep theirs,
    and a walk without any is refused by the suite.

    Args:
        s: the factor, above 0; 1 is the plain sampler, bit for bit.

    Raises:
        ValueError: s is not a finite number above 0.
    """

    neutral: ClassVar[Mapping[str, Any]] = {"s": 1.0}
    scales_noise = True

    def __init__(self, s: float = 1.003) -> None:
        if not 0 < s < math.inf:
            raise ValueError(f"the noise's factor must be a finite number above 0, not {s}; 1 switches it off")
        self.s = s

    def noise(self, z: Tensor) -> Tensor:
        """Return the scaled noise."""
        return z if self.s == 1 else self.s * z
