"""The Inception score: how sure a classifier is of each image, and how many classes it sees (Salimans et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SPLIT", "inception_score"]

SPLIT = 5000  # images, as in guided-diffusion's evaluator


def inception_score(pooled: NDArray[np.float32], logits: Callable[[Tensor], Tensor], split: int = SPLIT) -> float:
    """Return exp(mean KL(p(y | x) || p(y))), averaged over splits of so many images in their order.

    guided-diffusion's evaluator: nothing is shuffled, the last split is shorter where the number of images is no
    multiple and counts as much as the others, and fewer images than one split are one split. It grows with the size of
    a split, so that values at N < 5000 are too small against published ones.

    Args:
        pooled: features [N, d], N at least 1.
        logits: features [B, d] to class logits [B, classes].
        split: images a split.

    Returns:
        A number from 1 to the number of classes.
    """
    return float(np.mean([_of_split(logits(part)) for part in torch.from_numpy(pooled).split(split)]))


def _of_split(logits: Tensor) -> float:
    """Return exp(mean KL) of one split, in float64 and from logarithms, so that no probability of 0 makes a NaN."""
    log_p = logits.double().log_softmax(dim=1)
    log_mean = torch.logsumexp(log_p, dim=0) - np.log(len(log_p))
    return (log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp().item()
