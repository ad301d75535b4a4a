"""Probes: observers of a walk that turn its steps into streaming statistics, never touching an image.

Quantities of the network call (eps, x0_hat) live at the level the network saw, solver index i. Quantities of the new
state live one level on, at index i - 1; -1 is the clean level. Of a step with a correction (Heun) the call is the first
one, whose input is what the walk itself made, and the state is the corrected one; the correcting call's numbers per
image are kept beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.diffusion.types import Prediction, Probe, Step
from bench.measure.instruments.moments import Moments
from bench.measure.instruments.spectra import RadialBins, haar_energy

Arrays = dict[str, NDArray[np.float64]]

# What ScalarProbe measures, one number an image and step.
SCALARS = ("eps_norm", "eps_used_norm", "x0_norm", "clipped", "energy", "x0_mse")


def spread_indices(steps: int, count: int) -> list[int]:
    """Return at most ``count`` solver indices spread evenly over 0..steps-1, both ends included, ascending."""
    chosen = np.linspace(0, steps - 1, min(count, steps))
    return sorted({round(float(index)) for index in chosen})


class ScalarProbe:
    """Numbers per image at every step, whose mean and spread over images are kept.

    ``eps_norm`` and ``eps_used_norm``: ||eps||_2 before and after corrections and clipping. ``x0_norm``: ||x0_hat||_2
    as used. ``clipped``: share of x0_hat's elements at or beyond [-1, 1]. ``energy``: mean over pixels of
    (x_next - alpha_next * centre)^2, whose mean over images is the marginal variance up to the mean's error.
    ``x0_mse``: mean squared error of x0_hat, on walks that know x0 (0 elsewhere).

    Args:
        steps: solver steps.
        centre: the data's mean image [C, H, W].
        stages: most network calls a step makes; row ``i + steps * stage`` is a call's.
    """

    def __init__(self, steps: int, centre: Tensor, stages: int = 1) -> None:
        self.steps, self.centre = steps, centre
        self.moments = Moments(steps * stages, (len(SCALARS),), centre.device)

    def update(self, step: Step) -> None:
        """Add one step."""
        x0_used = step.x0_used
        centred = step.x_next - step.level_next.alpha * self.centre
        error = torch.zeros_like(x0_used[:, 0, 0, 0]) if step.x0 is None else _mean_square(x0_used - step.x0)
        columns = (
            step.prediction.eps.flatten(1).norm(dim=1),
            step.eps_used.flatten(1).norm(dim=1),
            x0_used.flatten(1).norm(dim=1),
            (x0_used.abs() >= 1).flatten(1).float().mean(1),
            _mean_square(centred),
            error,
        )
        self.moments.add(step.i + self.steps * step.stage, torch.stack(columns, dim=1))

    def state(self) -> Arrays:
        """Return the mergeable record: count, mean and second, [steps * stages, len(SCALARS)]."""
        return {f"scalars/{name}": value for name, value in self.moments.state().items()}


def _mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


class PixelProbe:
    """Per-pixel moments and radial spectra at chosen solver indices.

    ``state``: x_next. ``eps``: the raw prediction. ``residual``: x_next - alpha_next x0, and ``error``:
    x0_hat - x0, on walks that know x0. Spectra and Haar energies of x_next and of x0_hat as used.

    Args:
        indices: solver indices to record; rows of the record follow their order.
        shape: (C, H, W).
        paired: whether the walk knows x0.
        device: where the walk runs.
    """

    def __init__(
        self, indices: Sequence[int], shape: Sequence[int], paired: bool, device: torch.device | str = "cpu"
    ) -> None:
        self.rows = {index: row for row, index in enumerate(indices)}
        names = ("state", "eps", "residual", "error") if paired else ("state", "eps")
        self.pixels = {name: Moments(len(self.rows), shape, device) for name in names}
        self.bins = RadialBins(shape[1], shape[2], device)
        bands = {"spectrum": self.bins.count, "haar": 4}
        self.bands = {
            f"{kind}_{of}": Moments(len(self.rows), (count,), device)
            for kind, count in bands.items()
            for of in ("state", "x0")
        }

    def update(self, step: Step) -> None:
        """Add one step, if its index is recorded."""
        row = self.rows.get(step.i)
        if row is None:
            return
        if step.stage == 0:
            self._call(row, step)
        if step.completes:
            self._reached(row, step)

    def _call(self, row: int, step: Step) -> None:
        self.pixels["eps"].add(row, step.prediction.eps)
        if step.x0 is not None:
            self.pixels["error"].add(row, step.x0_used - step.x0)
        self._bands("x0", row, step.x0_used)

    def _reached(self, row: int, step: Step) -> None:
        self.pixels["state"].add(row, step.x_next)
        if step.x0 is not None:
            self.pixels["residual"].add(row, step.x_next - step.level_next.alpha * step.x0)
        self._bands("state", row, step.x_next)

    def _bands(self, of: str, row: int, images: Tensor) -> None:
        self.bands[f"spectrum_{of}"].add(row, self.bins.density(images))
        self.bands[f"haar_{of}"].add(row, haar_energy(images))

    def state(self) -> Arrays:
        """Return the mergeable record: ``<quantity>/count|mean|second``, rows first, and the indices ``i``."""
        record: Arrays = {}
        for name, moments in (self.pixels | self.bands).items():
            record |= {f"{name}/{key}": value for key, value in moments.state().items()}
        return record


class ErrorProbe:
    """The x0_hat errors of single images at chosen indices, for tests of their distribution.

    Args:
        indices: solver indices to keep.
    """

    def __init__(self, indices: Collection[int]) -> None:
        self.kept: dict[int, list[Tensor]] = {index: [] for index in indices}

    def update(self, step: Step) -> None:
        """Keep x0_hat - x0 of a teacher-forced step, if its index is recorded."""
        if step.i in self.kept and step.stage == 0 and step.x0 is not None:
            self.kept[step.i].append(step.x0_used - step.x0)

    @property
    def seen(self) -> bool:
        """Tell whether any image was seen."""
        return any(self.kept.values())

    def result(self) -> NDArray[np.float32]:
        """Return the errors, float32 [indices, images, C, H, W], indices ascending."""
        rows = [torch.cat(self.kept[index]) for index in sorted(self.kept)]
        return torch.stack(rows).float().cpu().numpy()


class Selected:
    """A probe that sees only some rows of each batch: the real part of a padded one, or one part of the data.

    Args:
        probe: the observer.
        rows: which rows of the batch it sees.
    """

    def __init__(self, probe: Probe, rows: slice) -> None:
        self.probe, self.rows = probe, rows

    def update(self, step: Step) -> None:
        """Pass the selected rows on; views, not copies."""
        rows, pred = self.rows, step.prediction
        fraction = None if pred.variance_fraction is None else pred.variance_fraction[rows]
        guidance = None if pred.guidance is None else pred.guidance[rows]
        cov = pred.x0_cov[rows] if pred.x0_cov is not None and pred.x0_cov.ndim == 3 else pred.x0_cov
        self.probe.update(
            replace(
                step,
                x=step.x[rows],
                x_next=step.x_next[rows],
                prediction=Prediction(pred.eps[rows], pred.x0[rows], fraction, cov, guidance),
                x0_used=step.x0_used[rows],
                eps_used=step.eps_used[rows],
                x0=None if step.x0 is None else step.x0[rows],
            )
        )


class FiniteWatch:
    """Remembers one number a network call on the device; asking is the only device-to-host copy."""

    def __init__(self) -> None:
        self._where: list[tuple[int, float]] = []
        self._sums: list[Tensor] = []

    def update(self, step: Step, values: Tensor) -> None:
        """Look at values of a step, [B, ...] on the device.

        A sum is NaN or infinite where any of its terms is; of finite float32 it is so only where their mean is beyond
        1e30, which no working network says.
        """
        self._where.append((step.i, step.level.t))
        self._sums.append(values.sum())

    def first(self) -> tuple[int, float] | None:
        """Return (solver index, t) of the first call that was not finite, None where all were, and forget them."""
        finite = torch.stack(self._sums).isfinite().tolist() if self._sums else []
        found = next((where for where, is_finite in zip(self._where, finite, strict=True) if not is_finite), None)
        self._where, self._sums = [], []
        return found
