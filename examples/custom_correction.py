"""A correction of one's own, checked and compared on shared noise; see docs/hooks.md and docs/remedies.md.

python -m bench.check examples/custom_correction.py:Widened
python examples/custom_correction.py results/correction && python -m analysis results/correction
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bench.data import load
from bench.diffusion.corrections import Correction
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM
from bench.diffusion.types import Call, Prediction
from bench.hooks import record
from bench.models.checkpoints.formats import denoiser_of, open_network
from bench.suite.registry.registry import load_registry


class Widened(Correction):
    """Scale x0_hat by a factor; eps follows, so that x = alpha x0 + sigma eps still holds."""

    neutral: ClassVar = {"factor": 1.0}
    typical: ClassVar = {"factor": 1.01}

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def prediction(self, pred: Prediction, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Return the (x0, eps) that the update uses."""
        x0 = self.factor * pred.x0
        return x0, (x - call.level.alpha * x0) / call.level.sigma


def main(out: Path, steps: int = 10, images: int = 64) -> None:
    """Record both walks of the embedded model and print the variance of their samples over the data's."""
    model = load_registry([], "digits").model("adm")
    denoiser = denoiser_of(open_network(model.weights, model.description), model.description, torch.device("cpu"))
    path, draws = levels("cosine", 1000, f"leading{steps}"), Draws(Noise(0), torch.arange(images))
    for name, correction in (("plain", None), ("widened", Widened(1.01))):
        with record(real=load("digits").part("train"), out=out, name=name) as log:
            for step in walk(denoiser, path, prior(path[0], draws, (1, 8, 8)), DDIM(), draws, correction=correction):
                told = {"x": step.x, "prediction": step.prediction.eps, "x_next": step.x_next}
                log.step(t=step.level.t, alpha=step.level.alpha, sigma=step.level.sigma, **told)
        ratio = log.table().query("arm == 'free' and quantity == 'variance_ratio'")["value"].iloc[-1]
        print(f"{name}: {ratio:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
