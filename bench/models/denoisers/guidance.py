"""Classifier guidance (Dhariwal & Nichol 2021, section 4): a noisy classifier beside a denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bench.diffusion.types import Denoiser, Level, Prediction
from bench.models.denoisers.parameterization import per_image


class GuidedDenoiser:
    """A denoiser whose predictions carry a classifier's score for the solver to add.

    Solvers use it each in their way: :mod:`bench.diffusion.samplers`. The denoiser's eps and x0 are left as they are.

    Args:
        denoiser: the model; it gets the labels too.
        classifier: called as ``classifier(x, t)`` with x [B, C, H, W] float32 and t [B], the training index from 0;
            returns logits [B, classes], differentiable in x.
        scale: strength s of the guidance; 0 asks no classifier.

    Raises:
        ValueError: the scale is not a finite number.
    """

    def __init__(self, denoiser: Denoiser, classifier: Callable[[Tensor, Tensor], Tensor], scale: float) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"the guidance scale must be a finite number, not {scale}")
        self.denoiser, self.classifier, self.scale = denoiser, classifier, scale

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Predict for x [B, C, H, W], guided to the labels ``cond``, int64 [B].

        Returns:
            The denoiser's prediction with ``guidance`` = s grad_x log p(cond | x, t) [B, C, H, W] in x's dtype,
            computed in float32 (algorithms 1 and 2 of the paper).

        Raises:
            ValueError: no labels.
        """
        if cond is None:
            raise ValueError("classifier guidance needs the labels to guide to, one per image")
        pred = self.denoiser(x, level, cond)
        if self.scale == 0:
            return pred
        return replace(pred, guidance=self.scale * self._score(x, level, cond).to(x.dtype))

    def _score(self, x: Tensor, level: Level, labels: Tensor) -> Tensor:
        with torch.enable_grad():  # walks run without
            state = x.detach().float().requires_grad_()
            logits = self.classifier(state, per_image(level.t, x))
            # Images do not see each other, so the sum's gradient is each one's own.
            chosen = logits.float().log_softmax(1).gather(1, labels[:, None]).sum()
            return torch.autograd.grad(chosen, state)[0]
