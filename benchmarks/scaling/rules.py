"""Rules that read a uniform divisor off one measured gap: norm, marginal variance, spectrum, effective level.

Each walks images of its own under a few divisors and looks for the one that closes its gap. None looks at quality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from bench.data import to_unit
from bench.diffusion.schedules import alpha_bars
from bench.measure.instruments.gaussian import LinearGaussian
from bench.measure.instruments.spectra import RadialBins
from benchmarks.scaling.walks import NUDGE, Walks

_IMAGES = 96  # a divisor
_LOWEST, _HIGHEST = 0.85, 1.25  # where a gap that does not close is given up
_TRIES = 5  # divisors a rule walks


class Meter:
    """Walks, and how many network calls one rule made of them."""

    def __init__(self, walks: Walks) -> None:
        self.walks, self.calls = walks, 0
        self._asked: dict[float, int] = {}

    def asked(self, b: float, images: int) -> None:
        """Count the first images under a divisor, those that were asked for before only once."""
        more = max(images - self._asked.get(b, 0), 0)
        self._asked[b] = self._asked.get(b, 0) + more
        self.calls += more * self.walks.nfe

    def forced(self, nudge: float = 0.0) -> np.ndarray:
        """Return mean log eps norms [steps] of teacher-forced calls."""
        self.calls += _IMAGES * self.walks.setting.steps
        return np.log(self.walks.forced(_IMAGES, nudge)).mean(axis=0)

    def free(self, b: float) -> np.ndarray:
        """Return mean log eps norms [steps] of free-running first calls."""
        self.asked(b, _IMAGES)
        return np.log(self.walks.walked(b, _IMAGES).norms).mean(axis=0)

    def final(self, b: float) -> np.ndarray:
        """Return final states [images, C, H, W]."""
        self.asked(b, _IMAGES)
        return self.walks.walked(b, _IMAGES).final


def _closed(gap: Callable[[float], float]) -> float:
    """Return where a gap closes, by secants from 1 and 1.02; where they leave the range, its end."""
    points = [(b, gap(b)) for b in (1.0, 1.02)]
    for _ in range(_TRIES - len(points)):
        (b0, g0), (b1, g1) = points[-2:]
        if g1 == g0 or abs(b1 - b0) < 1e-4:
            break
        b = round(float(np.clip(b1 - g1 * (b1 - b0) / (g1 - g0), _LOWEST, _HIGHEST)), 4)
        points.append((b, gap(b)))
    return min(points, key=lambda point: abs(point[1]))[0]


def norm_gap(meter: Meter) -> float:
    """Match the free-running to the teacher-forced norm of eps, mean log ratio over the steps."""
    forced = meter.forced()
    return _closed(lambda b: float((meter.free(b) - forced).mean()))


def effective_level(meter: Meter) -> float:
    """Match the level that the network's response reads off the norms, the same shift at all steps."""
    forced = meter.forced()
    response = (meter.forced(NUDGE) - meter.forced(-NUDGE)) / (2 * NUDGE)
    return _closed(lambda b: float((meter.free(b) - forced) @ response / (response @ response)))


def _variance(images: np.ndarray) -> float:
    return float(images.reshape(len(images), -1).astype(np.float64).var(axis=0, ddof=1).mean())


def variance_gap(meter: Meter) -> float:
    """Match the samples' marginal variance to the data's."""
    wanted = _variance(to_unit(meter.walks.yardstick.train).numpy())
    return _closed(lambda b: float(np.log(_variance(meter.final(b)) / wanted)))


def variance_over_floor(meter: Meter) -> float:
    """Match it to what an exact sampler of Gaussian data ends with on the same levels and variance mode."""
    pixels = to_unit(meter.walks.yardstick.train).flatten(1).double().numpy()
    about, path = meter.walks.about, meter.walks.path
    learned = None if about.is_edm else np.asarray(alpha_bars(about.schedule, about.T))
    gaussian = LinearGaussian(pixels.mean(axis=0), np.cov(pixels, rowvar=False), learned)
    *_, last = gaussian.walk(gaussian.prior(path[0]), path, meter.walks.solver)
    wanted = float(last.variance.mean())
    return _closed(lambda b: float(np.log(_variance(meter.final(b)) / wanted)))


def spectrum_gap(meter: Meter) -> float:
    """Find the least squared log ratio of the samples' radial spectrum to the data's, rings without the constant."""
    images = to_unit(meter.walks.yardstick.train)
    rings = RadialBins(*images.shape[2:])
    wanted = rings.density(images).mean(0).log()[1:]

    def gap(b: float) -> float:
        density = rings.density(torch.from_numpy(meter.final(round(b, 4)))).mean(0).log()[1:]
        return float((density - wanted).square().mean())

    found = minimize_scalar(gap, bounds=(_LOWEST, _HIGHEST), method="bounded", options={"maxiter": _TRIES + 2})
    return round(float(found.x), 4)


CANDIDATES: Mapping[str, Callable[[Meter], float]] = {
    "norm": norm_gap,
    "variance": variance_gap,
    "variance-floor": variance_over_floor,
    "spectrum": spectrum_gap,
    "effective-level": effective_level,
}
