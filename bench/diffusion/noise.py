"""Counter-based Gaussian noise: every draw is a pure function of (seed, sample, purpose, step, element).

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") written in tensor arithmetic, so
that noise belongs to the sample: no batch size, shard, process, arm or probe can shift it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Purpose(IntEnum):
    """What a draw is for. Values are part of the noise's definition: never renumber."""

    START = 0
    ANCESTRAL = 1
    FORCED = 2
    FORCED_ANCESTRAL = 3
    TRAIN_NOISE = 4
    TRAIN_PERTURBATION = 5
    TRAIN_INDEX = 6
    TRAIN_ORDER = 7
    TRAIN_PROBE = 8
    RESPONSE = 9
    LABEL = 10
    TRAIN_ROLLOUT = 11
    TRAIN_LABEL = 12


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Encrypt four counter words to four random words; int64 tensors below 2**32, of shapes that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A product of two 32-bit numbers fits 64 bits; its low half is masked where it is used.
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = _mix(right, c1, k0), right, _mix(left, c3, k1), left
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def _mix(product: Tensor, word: Tensor, key: int) -> Tensor:
    """Return the high half of a product xor the low half of a word xor a key; the sign of int64 is masked away."""
    return ((product >> 32) ^ word).bitwise_xor_(key).bitwise_and_(_MASK)


def uniform_words(seed: int, samples: Tensor, purpose: Purpose, step: int, blocks: int) -> Tensor:
    """Return random 32-bit words, int64 [len(samples), 4, blocks], for a seed of up to 64 bits."""
    block = torch.arange(blocks, device=samples.device)[None]
    constants = (torch.full((1, 1), number, device=samples.device) for number in (step, int(purpose)))
    counter = (block, next(constants), samples[:, None], next(constants))
    return torch.stack(philox(counter, (seed & _MASK, (seed >> 32) & _MASK)), dim=1)


class Noise:
    """The random stream of a seed, called for whichever samples a batch holds."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def normal(self, samples: Tensor, purpose: Purpose, step: int, shape: Sequence[int]) -> Tensor:
        """Draw unit normals, float32 [len(samples), *shape].

        Args:
            samples: int64 [B], the samples' numbers within the run; decides the device too.
            purpose: which of a sample's streams.
            step: position in that stream (the solver index, or a training iteration).
            shape: shape of one sample.
        """
        size = math.prod(shape)
        words = uniform_words(self.seed, samples, purpose, step, -(-size // 4))
        dtype = torch.float32 if samples.device.type == "mps" else torch.float64
        unit = words.to(dtype).add_(0.5).mul_(2.0**-32)
        radius = unit[:, :2].log().mul_(-2.0).sqrt_()
        angle = unit[:, 2:].mul(2.0 * math.pi)
        pairs = torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)], dim=1)  # Box-Muller
        return pairs.flatten(1)[:, :size].to(torch.float32).reshape(-1, *shape)

    def integers(self, samples: Tensor, purpose: Purpose, step: int, high: int) -> Tensor:
        """Draw one integer in 0..high-1 per sample, int64 [B]; the bias of the reduction is below high / 2**32."""
        words = uniform_words(self.seed, samples, purpose, step, 1)
        return (words[:, 0, 0] * high) >> 32
