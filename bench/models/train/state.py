"""The state of a training between two iterations, and the file it is resumed from."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.files.pickles import load_plain
from bench.files.writing import write_atomic
from bench.models.checkpoints.native import load_network, read_description, save_network
from bench.models.checkpoints.state_dicts import all_finite
from bench.models.interface import Description
from bench.models.networks.adm import adm_unet
from bench.models.train.batches import LossSecondMoment, learning_rate
from bench.models.train.log import LOSSES
from bench.models.train.recipes import Recipe
from bench.models.train.replicas import ALONE, Replicas
from bench.runtime.errors import CheckpointError, reason


class TrainingState:
    """A network, its moving average and its optimiser at some iteration of a recipe; the same in all replicas.

    Attributes:
        data: hash of the images it is trained on, empty if unknown.
        window: the losses of the iterations since the last row of the log, float32 [3] each, by :data:`LOSSES`; those
            of all replicas add up to the losses of the batches.
        index_sampler: what draws the training indices, None where they are uniform.
    """

    def __init__(
        self, recipe: Recipe, network: dict[str, Any], device: torch.device, replicas: Replicas = ALONE
    ) -> None:
        self.recipe, self.device, self.replicas, self.iteration = recipe, device, replicas, 0
        self.data = ""
        torch.manual_seed(recipe.seed)  # initial weights: the same in every recipe of a seed
        self.network = adm_unet(network).to(device).train()
        self.average = adm_unet(network).to(device).eval().requires_grad_(False)
        self.average.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.window: list[Tensor] = []
        self.index_sampler: LossSecondMoment | None = None
        if recipe.index_sampling == "loss-second-moment":
            self.index_sampler = LossSecondMoment(recipe.T, device)

    def _descend(self, loss: Tensor) -> None:
        """Take one optimiser step; the replicas' losses add up to the one that is minimised."""
        for group in self.optimizer.param_groups:  # a function of the iteration: nothing to restore
            group["lr"] = learning_rate(self.recipe, self.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.replicas.sum_gradients(self.network.parameters())
        self.optimizer.step()  # AdamW: the same in every replica
        # The average warms up, so that a short training is not dominated by its initial weights.
        decay = min(self.recipe.ema, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            averaged, current = list(self.average.parameters()), list(self.network.parameters())
            torch._foreach_lerp_(averaged, current, 1 - decay)  # average += (1 - decay) (weights - average)
        self.iteration += 1

    def close_window(self) -> list[float]:
        """Return the window's mean losses, over the batches of all replicas, and begin another window."""
        means = self.replicas.sum(torch.stack(self.window).mean(0))  # [3]
        self.window.clear()
        return means.tolist()  # the only place where a training waits for its device

    def save(self, path: Path) -> None:
        """Write everything a resumed training needs, atomically; one replica writes for all.

        Raises:
            OSError: there is no room, or no permission; what was saved before is left.
            AgreedError: the same, where there are several replicas.
        """
        window = self.replicas.sum(torch.stack(self.window)) if self.window else torch.empty(0, len(LOSSES))
        with self.replicas.together():
            if self.replicas.leads:
                state = {
                    "recipe": asdict(self.recipe),
                    "iteration": self.iteration,
                    "data": self.data,
                    "network": self.network.state_dict(),
                    "average": self.average.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "window": window,
                }
                if self.index_sampler is not None:
                    state["index_sampler"] = self.index_sampler.state()
                _write(path, state)

    def write(self, path: Path, description: Description) -> None:
        """Write the averaged weights with their description; one replica writes for all."""
        with self.replicas.together():
            if self.replicas.leads:
                save_network(path, self.average, description)

    def keep(self, folder: Path, description: Description) -> None:
        """Write the averaged weights under the number of images trained on, ``NAME-IMAGES.safetensors``."""
        images = self.iteration * self.recipe.batch
        described = replace(description, training={**description.training, "images": images})
        self.write(folder / f"{self.recipe.name}-{images}.safetensors", described)

    def begin(self, path: Path, description: Description) -> None:
        """Start from the averaged weights of a finished training, in place of random ones.

        Raises:
            CheckpointError: no file of this suite, or of a network that predicts something else or is another.
        """
        about = read_description(path)
        if (about.schedule, about.prediction) != (description.schedule, description.prediction):
            raise CheckpointError(
                f"{path} predicts {about.prediction} on the schedule {about.schedule}, the recipe"
                f" {description.prediction} on {description.schedule}; choose another --start"
            )
        weights = load_network(path, description).state_dict()
        for network in (self.network, self.average):
            network.load_state_dict(weights)

    def resume(self, path: Path) -> None:
        """Go on from a file that :meth:`save` wrote, in however many processes; one reads it for all.

        Raises:
            CheckpointError: the file is damaged or belongs to another recipe or network.
            AgreedError: the same, where there are several replicas.
        """
        state = self.replicas.of_leader(lambda: _read(path, self.recipe))
        with self.replicas.together():
            self._restore(state, path)

    def _restore(self, state: dict[str, Any], path: Path) -> None:
        iteration = state["iteration"]
        try:
            data, window = state["data"], state["window"]
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self._load_optimizer(state["optimizer"])
            if self.index_sampler is not None:
                self.index_sampler.restore(state["index_sampler"])
        except Exception:  # torch names every key over many lines, and on damaged states raises almost any kind
            raise CheckpointError(
                f"{path} belongs to another network (are the images' channels the same?); "
                "delete it or choose another --out"
            ) from None
        if data != self.data:
            raise CheckpointError(f"{path} was written with other images; check --data-dir, or choose another --out")
        sound = all_finite(self.network) and all_finite(self.average) and _are_losses(window)
        if not (sound and 0 <= iteration <= self.recipe.iterations):
            raise CheckpointError(f"{path} is damaged: it holds what no training gives; delete it to start again")
        self.iteration = iteration
        # These are the batches' losses already, so that only one replica may add them.
        self.window = list((window if self.replicas.leads else torch.zeros_like(window)).to(self.device))

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Load the optimiser's state, which torch does not compare with the parameters."""
        # The rate is set anew at every iteration.
        expected = [{**group, "lr": 0} for group in self.optimizer.state_dict()["param_groups"]]
        self.optimizer.load_state_dict(state)
        if [{**group, "lr": 0} for group in self.optimizer.state_dict()["param_groups"]] != expected:
            raise ValueError("other settings")
        for weights, moments in self.optimizer.state.items():
            if any(moment.shape not in ((), weights.shape) for moment in moments.values()):
                raise ValueError("other shapes")


def _write(path: Path, state: dict[str, Any]) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # given a path, torch says of a full disk that a position is unexpected
            torch.save(state, file)

    try:
        write_atomic(path, write)
    except OSError as error:
        raise OSError(
            f"{path} cannot be saved ({reason(error)}); the same command goes on from the last save"
        ) from None


def _read(path: Path, recipe: Recipe) -> dict[str, Any]:
    try:
        state = load_plain(path)
        written_by, iteration = dict(state["recipe"]), int(state["iteration"])
    except Exception as error:  # on damaged bytes torch's readers raise almost any kind
        kind = type(error).__name__
        raise CheckpointError(f"{path} cannot be resumed ({kind}); delete it to start again") from None
    lasting = {"iterations": recipe.iterations} if recipe.open_ended else {}
    if written_by | lasting != asdict(recipe):
        raise CheckpointError(f"{path} was written by another recipe; delete it or choose another --out")
    return {**state, "iteration": iteration}


def _are_losses(window: Any) -> bool:
    return (
        isinstance(window, Tensor)
        and window.dtype == torch.float32
        and window.shape[1:] == (len(LOSSES),)
        and bool(window.isfinite().all())
    )
