"""Probes: observers that turn the steps of a walk into streaming statistics and never touch an image.

A probe is one class with four methods. ``update`` reads a :class:`Step` without waiting for the device. ``state``
copies what was gathered to the host, as arrays that a shard can store. ``merge`` joins the states of two shards, in
plan order. ``result`` turns a merged state into what is written.

Quantities of a network call (eps, x0_hat) stand at the level that the network saw, solver index i. Quantities of the
new state stand one level on, at i - 1; -1 is the clean level. In a Heun step the first call counts as the call, and the
corrected state as the state. The numbers per image of its second call have rows of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.diffusion.types import Prediction, Probe, Step
from bench.measure.instruments.moments import Moments
from bench.measure.instruments.spectra import RadialBins, haar_energy
from bench.measure.instruments.step_table import GUIDED_SCALARS, SCALARS, measured_rows

Arrays = dict[str, NDArray[np.float64]]
StepOrPrediction = TypeVar("StepOrPrediction", Step, Prediction)


def spread_indices(steps: int, count: int) -> list[int]:
    """Return at most ``count`` solver indices spread evenly over 0..steps-1, both ends included, ascending."""
    chosen = np.linspace(0, steps - 1, min(count, steps))
    return sorted({round(float(index)) for index in chosen})


class WalkProbe:
    """Everything that is measured along the walks of one arm.

    Numbers per image, at every step (``scalars``, columns :data:`SCALARS`):

    * ``eps_norm``, ``eps_used_norm``: ||eps||_2 as predicted, and after corrections and clipping.
    * ``x0_norm``: ||x0_hat||_2 as used. ``clipped``: share of its elements at or beyond [-1, 1].
    * ``energy``: mean over pixels of (x_next - alpha_next * centre)^2.
    * ``x0_mse``: mean squared error of x0_hat on walks that know x0, 0 elsewhere.

    Under classifier-free guidance also (``guided``, columns :data:`GUIDED_SCALARS`) the same of the plain prediction,
    and the norm of what guidance adds to eps.

    Moments per pixel, at chosen steps: ``state`` of x_next, ``eps`` of the raw prediction; on walks that know x0 also
    ``residual`` of x_next - alpha_next * x0, and ``error`` of x0_hat - x0. Moments of radial spectra and of Haar
    energies at the same steps: ``spectrum_state``, ``haar_state`` of x_next, ``spectrum_x0``, ``haar_x0`` of x0_hat as
    used. Where it is asked for, also ``fraction``, v of a learned variance.

    Args:
        steps: solver steps.
        indices: solver indices whose pixels are recorded; rows of the record follow their order.
        centre: the data's mean image, float [C, H, W], on the walk's device.
        paired: whether the walk knows x0.
        stages: largest number of network calls a step makes; row ``i + steps * stage`` of the scalars is a call's.
        guided: whether the walk is under classifier-free guidance.
        clip: whether the walk clips x0_hat, so that the plain one is clipped, too.
        fraction: whether to record the learned variance's fraction v, per pixel.
        bins: rings of the images' size, which several probes may share.
    """

    def __init__(
        self, steps: int, indices: Sequence[int], centre: Tensor, paired: bool, stages: int = 1, *,
        guided: bool = False, clip: bool = False, fraction: bool = False, bins: RadialBins | None = None,
    ) -> None:  # fmt: skip
        self.steps, self.centre, self.clip = steps, centre, clip
        self.rows = {index: row for row, index in enumerate(indices)}
        device, shape = centre.device, centre.shape
        self.bins = bins or RadialBins(shape[1], shape[2], device)
        widths = {"spectrum": self.bins.count, "haar": 4}
        pixels: tuple[str, ...] = ("state", "eps", "residual", "error") if paired else ("state", "eps")
        pixels += ("fraction",) if fraction else ()
        self.moments = {"scalars": Moments(steps * stages, (len(SCALARS),), device)}
        if guided:
            self.moments["guided"] = Moments(steps * stages, (len(GUIDED_SCALARS),), device)
        self.moments |= {name: Moments(len(self.rows), shape, device) for name in pixels}
        self.moments |= {
            f"{kind}_{source}": Moments(len(self.rows), (width,), device)
            for kind, width in widths.items()
            for source in ("state", "x0")
        }

    def update(self, step: Step) -> None:
        """Add the images of one step."""
        self._add_scalars(step)
        if step.prediction.plain is not None:
            self._add_guided(step, step.prediction.plain)
        row = self.rows.get(step.i)
        if row is None:
            return
        if step.stage == 0:  # of a Heun step the first call
            self.moments["eps"].add(row, step.prediction.eps)
            if "fraction" in self.moments and step.prediction.variance_fraction is not None:
                self.moments["fraction"].add(row, (step.prediction.variance_fraction + 1) / 2)
            if step.x0 is not None:
                self.moments["error"].add(row, step.x0_used - step.x0)
            self._add_bands("x0", row, step.x0_used)
        if step.completes:  # of a Heun step the corrected state
            self.moments["state"].add(row, step.x_next)
            if step.x0 is not None:
                self.moments["residual"].add(row, step.x_next - step.level_next.alpha * step.x0)
            self._add_bands("state", row, step.x_next)

    def _add_scalars(self, step: Step) -> None:
        x0_used = step.x0_used  # [B, C, H, W]
        centred = step.x_next - step.level_next.alpha * self.centre  # E x_next = alpha_next * mean for real data
        error = torch.zeros_like(x0_used[:, 0, 0, 0]) if step.x0 is None else _mean_square(x0_used - step.x0)
        columns = (  # [B] each, in the order of SCALARS
            step.prediction.eps.flatten(1).norm(dim=1),
            step.eps_used.flatten(1).norm(dim=1),
            x0_used.flatten(1).norm(dim=1),
            (x0_used.abs() >= 1).flatten(1).float().mean(1),
            _mean_square(centred),
            error,
        )
        self.moments["scalars"].add(step.i + self.steps * step.stage, torch.stack(columns, dim=1))

    def _add_guided(self, step: Step, plain: Prediction) -> None:
        x0 = plain.x0.clamp(-1.0, 1.0) if self.clip else plain.x0
        columns = (  # [B] each, in the order of GUIDED_SCALARS
            plain.eps.flatten(1).norm(dim=1),
            x0.flatten(1).norm(dim=1),
            (step.prediction.eps - plain.eps).flatten(1).norm(dim=1),
            torch.zeros_like(x0[:, 0, 0, 0]) if step.x0 is None else _mean_square(x0 - step.x0),
        )
        self.moments["guided"].add(step.i + self.steps * step.stage, torch.stack(columns, dim=1))

    def _add_bands(self, source: str, row: int, images: Tensor) -> None:
        self.moments[f"spectrum_{source}"].add(row, self.bins.density(images))
        self.moments[f"haar_{source}"].add(row, haar_energy(images))

    def state(self) -> Arrays:
        """Return ``<quantity>/count|mean|second``, rows first; the only device-to-host copy."""
        return {
            f"{name}/{key}": value for name, moments in self.moments.items() for key, value in moments.state().items()
        }

    @staticmethod
    def merge(first: Mapping[str, NDArray[np.float64]], second: Mapping[str, NDArray[np.float64]]) -> Arrays:
        """Return the state of two shards together; the order of merging is part of the result."""
        merged: Arrays = {}
        for name in dict.fromkeys(key.rsplit("/", 1)[0] for key in first if key in second):
            states = [{key: part[f"{name}/{key}"] for key in ("count", "mean", "second")} for part in (first, second)]
            merged |= {f"{name}/{key}": value for key, value in Moments.merge(states).items()}
        return merged

    result = staticmethod(measured_rows)  # a merged state as rows of steps.csv


def _mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


class ErrorProbe:
    """The errors of x0_hat of single images at chosen steps, for tests of their distribution.

    Args:
        indices: solver indices to record.
    """

    def __init__(self, indices: Collection[int]) -> None:
        self.errors: dict[int, list[Tensor]] = {index: [] for index in indices}

    def update(self, step: Step) -> None:
        """Copy x0_hat - x0 of a step that knows x0, if its index is recorded."""
        if step.i in self.errors and step.stage == 0 and step.x0 is not None:
            self.errors[step.i].append(step.x0_used - step.x0)

    def state(self) -> NDArray[np.float32] | None:
        """Return the errors, float32 [indices, images, C, H, W], indices ascending; None where no image came."""
        if not any(self.errors.values()):
            return None
        rows = [torch.cat(self.errors[index]) for index in sorted(self.errors)]
        return torch.stack(rows).float().cpu().numpy()

    @staticmethod
    def merge(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the errors of two shards together, those of the first shard first; the result is the state itself."""
        return np.concatenate([first, second], axis=1)


class Selected:
    """A probe that gets only some rows of each batch: the real part of a padded one, or one part of the data.

    Args:
        probe: the observer.
        rows: the rows of the batch that it gets.
    """

    def __init__(self, probe: Probe, rows: slice) -> None:
        self.probe, self.rows = probe, rows

    def update(self, step: Step) -> None:
        """Pass the selected rows on, as views without a copy."""
        self.probe.update(self._of_rows(step))

    def _of_rows(self, record: StepOrPrediction) -> StepOrPrediction:
        """Return the record with the selected rows of its tensors, and of those of a prediction in it."""
        chosen: dict[str, Any] = {}
        for field in fields(record):
            value = getattr(record, field.name)
            if isinstance(value, Prediction):
                chosen[field.name] = self._of_rows(value)
            elif isinstance(value, Tensor) and (field.name, value.ndim) != ("x0_cov", 2):  # which serves all images
                chosen[field.name] = value[self.rows]
        return replace(record, **chosen)


class FiniteWatch:
    """Notes one number a network call on the device, to tell later which output was first not finite."""

    def __init__(self) -> None:
        self._calls: list[tuple[int, float]] = []
        self._sums: list[Tensor] = []

    def update(self, step: Step, values: Tensor) -> None:
        """Note the sum of values of a step, [B, ...] on the device.

        A sum is NaN or infinite where any of its terms is. A sum of finite float32 is infinite only where their mean
        exceeds 1e30, which no working network predicts.
        """
        self._calls.append((step.i, step.level.t))
        self._sums.append(values.sum())

    def first(self) -> tuple[int, float] | None:
        """Return (solver index, t) of the first call that was not finite, None where all were, and start anew.

        This is the only device-to-host copy.
        """
        finite = torch.stack(self._sums).isfinite().tolist() if self._sums else []
        calls = (call for call, is_finite in zip(self._calls, finite, strict=True) if not is_finite)
        first = next(calls, None)
        self._calls, self._sums = [], []
        return first
