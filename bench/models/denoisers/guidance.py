"""Guidance: by a noisy classifier beside a denoiser, and classifier-free, by the denoiser without its condition.

Classifier guidance: Dhariwal & Nichol 2021, section 4. Classifier-free guidance: Ho & Salimans 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.types import Denoiser, Level, Prediction
from bench.models.denoisers.parameterization import per_image


@dataclass(frozen=True)
class ClassifierFree:
    """The settings of classifier-free guidance.

    Attributes:
        scale: W of ``null + W (plain - null)``: 1 is the conditional model, 0 the unconditional one (Ho & Salimans
            count w = W - 1).
        null: the label that stands for no condition, from 0.
        low: guidance acts where low < sigma / alpha <= high (Kynkaanniemi et al. 2024); elsewhere the model is plain.
        high: see ``low``.
    """

    scale: float
    null: int
    low: float = 0.0
    high: float = math.inf

    def calls(self, level: Level) -> int:
        """Return the network calls of a prediction at a level: 2 where guidance acts, else 1.

        Where images have levels of their own, guidance acts on all of them.
        """
        if self.scale == 1:
            return 1
        numbers: tuple[Any, Any] = level.alpha, level.sigma
        alpha, sigma = numbers
        if isinstance(sigma, Tensor):
            return 2
        acts: bool = self.low * alpha < sigma and (math.isinf(self.high) or sigma <= self.high * alpha)
        return 2 if acts else 1


class ClassifierFreeDenoiser:
    """A conditional denoiser under classifier-free guidance; at scale 1 it is the plain one, bit for bit.

    Eps and x0 are those of ``null + W (plain - null)``, which mean the same for every prediction a network may make:
    each is linear in its output. A learned variance is the conditional model's.

    Args:
        denoiser: the model.
        guidance: scale, null label and interval.
    """

    def __init__(self, denoiser: Denoiser, guidance: ClassifierFree) -> None:
        self.denoiser, self.guidance = denoiser, guidance

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Predict for x [B, C, H, W], guided to the labels ``cond``, int64 [B].

        Returns:
            The guided prediction, with ``plain`` and the calls it took; the plain one where guidance does not act.

        Raises:
            ValueError: no labels.
        """
        if cond is None:
            raise ValueError("classifier-free guidance needs the labels to guide to, one per image")
        plain, guidance = self.denoiser(x, level, cond), self.guidance
        if guidance.calls(level) == 1:
            return plain
        null = self.denoiser(x, level, torch.full_like(cond, guidance.null))
        eps, x0 = (a + guidance.scale * (b - a) for a, b in ((null.eps, plain.eps), (null.x0, plain.x0)))
        return replace(plain, eps=eps, x0=x0, plain=plain, calls=2)


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
