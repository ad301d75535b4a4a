"""Train a checkpoint of the embedded family: ``python -m bench.models.train --recipe adm``.

Indices, noise and data order are pure functions of (seed, image number), so every recipe sees the same draws and a
resumed training equals an undisturbed one bit for bit.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.data import DataError, load, to_unit
from bench.diffusion.noise import Noise, Purpose, uniform_words
from bench.diffusion.samplers import Draws
from bench.files.errors import one_line
from bench.files.tensors import load_plain
from bench.models.checkpoints import Description, save_network
from bench.models.guided_files import all_finite
from bench.models.networks import CheckpointError, adm_unet
from bench.models.objectives import Process, edm_loss, gamma_at, gradient_penalty, hybrid_loss, make_pair, rectified
from bench.models.recipes import DIGITS_NETWORK, RECIPES, Recipe
from bench.models.scheduled_sampling import Rollout, replaced_share
from bench.models.train_arguments import parse_arguments

__all__ = ["Batches", "Trainer", "learning_rate", "main", "train"]

_CHANGEABLE = (
    "iterations", "gamma", "gamma_schedule", "gradient_penalty", "weight_decay", "dream_power", "scheduled_sampling",
    "rollout_stride", "seed",
)  # fmt: skip
_LOG_EVERY = 50
_SAVE_EVERY = 500


class Batches:
    """Endless shuffled batches: epoch e is a permutation drawn from (seed, e) alone."""

    def __init__(self, images: Tensor, batch: int, seed: int) -> None:
        self.images, self.batch, self.seed = images, batch, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def at(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Return (images float32 [batch, C, H, W], their running numbers int64 [batch]) of an iteration."""
        numbers = torch.arange(iteration * self.batch, (iteration + 1) * self.batch)
        chosen = [self._lookup(int(number)) for number in numbers]
        return self.images[chosen], numbers

    def _lookup(self, number: int) -> int:
        epoch, position = divmod(number, len(self.images))
        if epoch != self._epoch:
            members = torch.arange(len(self.images))
            words = uniform_words(self.seed, members, Purpose.TRAIN_ORDER, epoch, 1)
            self._epoch, self._order = epoch, words[:, 0, 0].argsort(stable=True)
        return int(self._order[position])


def learning_rate(recipe: Recipe, iteration: int) -> float:
    """Return the rate of an iteration: linear warm-up, then linear decay to a hundredth."""
    rising = min(1.0, (iteration + 1) / recipe.warmup)
    falling = 1.0 - 0.99 * iteration / recipe.iterations
    return recipe.learning_rate * rising * falling


@dataclass
class Losses:
    """One iteration's losses as device scalars: squared error, bound in bits, gradient penalty."""

    mse: Tensor
    bound: Tensor
    penalty: Tensor


class Trainer:
    """A network, its moving average and its optimiser at some iteration of a recipe."""

    def __init__(self, recipe: Recipe, network: dict[str, Any], device: torch.device) -> None:
        self.recipe, self.device, self.iteration = recipe, device, 0
        torch.manual_seed(recipe.seed)  # initial weights: the same in every recipe of a seed
        self.network = adm_unet(network).to(device).train()
        self.average = adm_unet(network).to(device).eval().requires_grad_(False)
        self.average.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.process = None if recipe.objective == "edm" else Process.make(recipe.schedule, recipe.T, device)
        self.noise = Noise(recipe.seed)
        self.rollout: Rollout | None = None
        if recipe.scheduled_sampling:
            self.rollout = Rollout.make(recipe.schedule, recipe.T, recipe.rollout_steps, recipe.rollout_stride, device)

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        """Call the network; [B, C, H, W] to [B, 2C, H, W], or to [B, C, H, W] where it learns no variance."""
        output: Tensor = self.network(x, t).sample
        return output

    def step(self, x0: Tensor, numbers: Tensor) -> Losses:
        """Take one optimiser step on real images x0 in [-1, 1] with their running numbers."""
        recipe, shape = self.recipe, x0.shape[1:]
        torch.manual_seed(recipe.seed + self.iteration)  # dropout masks, so that a resumed run repeats them
        noise = self.noise.normal(numbers, Purpose.TRAIN_NOISE, 0, shape)
        losses = self._edm(x0, numbers, noise) if self.process is None else self._ddpm(self.process, x0, numbers, noise)
        self._descend(losses.mse + losses.bound + recipe.gradient_penalty * losses.penalty)
        return losses

    def _edm(self, x0: Tensor, numbers: Tensor, noise: Tensor) -> Losses:
        level_noise = self.noise.normal(numbers, Purpose.TRAIN_INDEX, 0, (1,)).flatten()
        nothing = torch.zeros((), device=self.device)
        return Losses(edm_loss(self.predict, x0, level_noise, noise).mean(), nothing, nothing)

    def _ddpm(self, process: Process, x0: Tensor, numbers: Tensor, noise: Tensor) -> Losses:
        recipe, shape = self.recipe, x0.shape[1:]
        t = self.noise.integers(numbers, Purpose.TRAIN_INDEX, 0, recipe.T)
        replaced = self._replaced(len(x0))
        y, target = self._pair(process, x0, t, numbers, noise, replaced)
        mse, bound = hybrid_loss(process, self.predict(y, t), y, target, x0, t)
        nothing = penalty = torch.zeros((), device=self.device)
        if recipe.gradient_penalty:
            part = slice(0, max(1, len(x0) // 8))
            probe = self.noise.normal(numbers[part], Purpose.TRAIN_PROBE, 0, shape)
            penalty = gradient_penalty(self.predict, y[part], t[part], probe).mean()
        # The bound's posterior is that of x_t given x0, which the network's own states are not drawn from.
        return Losses(mse.mean(), bound[replaced:].mean() if replaced < len(x0) else nothing, penalty)

    def _replaced(self, batch: int) -> int:
        recipe = self.recipe
        return round(batch * replaced_share(recipe.scheduled_sampling, self.iteration, recipe.iterations))

    def _pair(
        self, process: Process, x0: Tensor, t: Tensor, numbers: Tensor, noise: Tensor, replaced: int
    ) -> tuple[Tensor, Tensor]:
        recipe, shape = self.recipe, x0.shape[1:]
        xi = self.noise.normal(numbers, Purpose.TRAIN_PERTURBATION, 0, shape)
        gamma = gamma_at(recipe.gamma_schedule, recipe.gamma, t, recipe.T)
        y, target = make_pair(recipe.objective, process, x0, t, noise, xi, gamma)
        if self.rollout is not None and replaced:
            draws = Draws(self.noise, numbers[:replaced])
            own = self.rollout.pair(self.predict, x0[:replaced], t[:replaced], noise[:replaced], draws)
            y, target = (torch.cat([made, plain[replaced:]]) for made, plain in zip(own, (y, target), strict=True))
        if recipe.dream_power is not None:
            with torch.no_grad():
                eps = self.predict(y, t)[:, : y.shape[1]]
            y, target = rectified(process, eps, y, target, t, recipe.dream_power)
        return y, target

    def _descend(self, loss: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        # The average warms up, so that a short training is not dominated by its initial weights.
        decay = min(self.recipe.ema, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            averaged, current = list(self.average.parameters()), list(self.network.parameters())
            torch._foreach_lerp_(averaged, current, 1 - decay)
        self.iteration += 1

    def save(self, path: Path) -> None:
        """Write everything a resumed training needs, atomically."""
        state = {
            "recipe": asdict(self.recipe),
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = path.with_name(path.name + ".partial")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a file that :meth:`save` wrote.

        Raises:
            CheckpointError: the file is damaged or belongs to another recipe or network.
        """
        try:
            state = load_plain(path, self.device)
            written_by, iteration = state["recipe"], int(state["iteration"])
        except Exception as error:  # on damaged bytes torch's readers raise almost any kind
            kind = type(error).__name__
            raise CheckpointError(f"{path} cannot be resumed ({kind}); delete it to start again") from None
        if written_by != asdict(self.recipe):
            raise CheckpointError(f"{path} was written by another recipe; delete it or choose another --out")
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self._load_optimizer(state["optimizer"])
        except (
            Exception
        ):  # torch names every key and shape over many lines, and on damaged states raises almost any kind
            raise CheckpointError(
                f"{path} belongs to another network (are the images' channels the same?); "
                "delete it or choose another --out"
            ) from None
        if not (all_finite(self.network) and all_finite(self.average) and 0 <= iteration <= self.recipe.iterations):
            raise CheckpointError(f"{path} is damaged: it holds what no training gives; delete it to start again")
        self.iteration = iteration

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Load the optimiser's state, which torch does not compare with the parameters."""
        expected = [{**group, "lr": 0} for group in self.optimizer.state_dict()["param_groups"]]
        self.optimizer.load_state_dict(state)
        if [{**group, "lr": 0} for group in self.optimizer.state_dict()["param_groups"]] != expected:
            raise ValueError("other settings")
        for weights, moments in self.optimizer.state.items():
            if any(moment.shape not in ((), weights.shape) for moment in moments.values()):
                raise ValueError("other shapes")


def train(recipe: Recipe, out: Path, device: torch.device, quiet: bool = False, images: Tensor | None = None) -> Path:
    """Run a recipe to its end, resuming what ``out`` holds, and return the path of the averaged weights.

    Writes ``resume.pt``, ``loss.csv`` (iteration, images, mse, bound, penalty: means over 50 iterations) and
    ``<name>.safetensors`` in ``out``. ``images`` (float32 in [-1, 1]) replaces the dataset's training part.
    """
    out.mkdir(parents=True, exist_ok=True)
    x0 = to_unit(load(recipe.dataset).part("train")) if images is None else images
    outputs = (1 if recipe.objective == "edm" else 2) * x0.shape[1]
    network = dict(DIGITS_NETWORK) | {"in_channels": x0.shape[1], "out_channels": outputs}
    trainer = Trainer(recipe, network, device)
    resume = out / "resume.pt"
    if resume.exists():
        trainer.resume(resume)
    _rewind(out / "loss.csv", trainer.iteration)
    batches = Batches(x0, recipe.batch, recipe.seed)
    with tqdm(total=recipe.iterations, initial=trainer.iteration, desc=recipe.name, disable=quiet) as bar:
        for rows in _windows(trainer, batches, recipe.iterations):
            _log(out / "loss.csv", rows)
            bar.update(trainer.iteration - bar.n)
            bar.set_postfix(mse=f"{rows[-1][2]:.4f}")
            if trainer.iteration % _SAVE_EVERY == 0:
                trainer.save(resume)
    trainer.save(resume)
    path = out / f"{recipe.name}.safetensors"
    prediction = "edm" if recipe.objective == "edm" else "eps"
    description = Description(network, recipe.schedule, recipe.T, asdict(recipe), prediction)
    save_network(path, trainer.average, description)
    return path


def _windows(trainer: Trainer, batches: Batches, iterations: int) -> Iterator[list[list[float]]]:
    """Train on, and yield mean losses once a window: the only host synchronisation of the loop."""
    while trainer.iteration < iterations:
        window: list[Losses] = []
        while trainer.iteration < iterations:
            x0, numbers = batches.at(trainer.iteration)
            window.append(trainer.step(x0.to(trainer.device), numbers.to(trainer.device)))
            if trainer.iteration % _LOG_EVERY == 0:
                break
        means = torch.stack([torch.stack([w.mse, w.bound, w.penalty]).detach() for w in window]).mean(0)
        yield [[trainer.iteration, trainer.iteration * batches.batch, *means.tolist()]]


def _rewind(path: Path, iteration: int) -> None:
    """Drop the rows after an iteration: an interrupted training logs more often than it saves."""
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        try:
            kept = [line for line in lines[1:] if int(line.split(b",")[0]) <= iteration]
        except ValueError:
            raise CheckpointError(f"{path} is no log of a training; delete it or choose another --out") from None
        path.write_bytes(b"".join(lines[:1] + kept))


def _log(path: Path, rows: list[list[float]]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["iteration", "images", "mse", "bound", "penalty"])
        writer.writerows(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    changed = {name: getattr(args, name) for name in _CHANGEABLE if getattr(args, name) is not None}
    recipe = replace(RECIPES[args.recipe], **changed)
    out = args.out or Path("training") / recipe.dataset / recipe.name
    try:
        print(train(recipe, out, args.device, args.quiet))
    except (CheckpointError, DataError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
