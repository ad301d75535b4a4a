"""Train a checkpoint of the embedded family: ``python -m bench.models.train --recipe adm``.

Indices, noise and data order are pure functions of (seed, image number), so every recipe sees the same draws and a
resumed training equals an undisturbed one bit for bit. ``torchrun -m bench.models.train`` shares each batch among
processes: the same batches and noise, and the same gradients up to the order in which float32 numbers are summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.data import load, to_unit
from bench.diffusion.noise import Noise, Purpose, uniform_words
from bench.diffusion.samplers import Draws
from bench.diffusion.types import NULL_TIME
from bench.models.acceleration import CompileError, compiler_errors
from bench.models.checkpoints.state_dicts import file_hash
from bench.models.interface import Description
from bench.models.train.batches import Batches, LossSecondMoment, Part, learning_rate
from bench.models.train.log import LOG_EVERY, DivergedError, TrainingLog, Window
from bench.models.train.objectives import (
    Network,
    Process,
    edm_loss,
    flow_loss,
    gamma_at,
    gradient_penalty,
    hybrid_loss,
    make_pair,
    rectified,
    slowed,
)
from bench.models.train.recipes import NETWORKS, Recipe
from bench.models.train.replicas import ALONE, Replicas
from bench.models.train.scheduled_sampling import Rollout, replaced_share
from bench.models.train.state import TrainingState
from bench.runtime.distributed import note
from bench.runtime.signals import Interrupted, Signals

_SAVE_EVERY = 500


class Losses(NamedTuple):
    """One iteration's losses as device scalars: squared error, bound in bits, gradient penalty.

    Each is the sum over this process's images divided by their number in the whole batch: the processes' losses add up
    to the batch's means.
    """

    mse: Tensor
    bound: Tensor
    penalty: Tensor


@dataclass(frozen=True)
class Shown:
    """This process's part of a batch.

    Attributes:
        x0: real images in [-1, 1], [B, C, H, W].
        numbers: their running numbers, int64 [B].
        noise: unit normals like x0.
        labels: classes int64 [B], the null class among them; None for a network without labels.
        part: which images of the batch these are.
    """

    x0: Tensor
    numbers: Tensor
    noise: Tensor
    labels: Tensor | None
    part: Part


class Trainer(TrainingState):
    """A training: its state, and the loss of a batch."""

    def __init__(
        self, recipe: Recipe, network: dict[str, Any], device: torch.device, replicas: Replicas = ALONE
    ) -> None:
        super().__init__(recipe, network, device, replicas)
        self.process = None if recipe.is_continuous else Process.make(recipe.schedule, recipe.T, device)
        self.noise = Noise(recipe.seed)
        self._learning: Any = self.network
        self.rollout: Rollout | None = None
        if recipe.scheduled_sampling:
            self.rollout = Rollout.make(recipe.schedule, recipe.T, recipe.rollout_steps, recipe.rollout_stride, device)

    def compile(self, images: Tensor) -> None:
        """Compile the call that learns; those without a gradient or with a second one stay as they are.

        Args:
            images: [N, C, H, W], whose shape alone matters.

        Raises:
            CompileError: there is no compiler, or it fails.
        """
        part = self.replicas.part(self.recipe.batch)
        x = torch.zeros(len(part), *images.shape[1:], device=self.device)
        labels = None if self.recipe.label_dropout is None else x.new_zeros(len(part), dtype=torch.int64)
        self._learning = torch.compile(self.network, dynamic=False)
        with _named_flag(), compiler_errors():
            self.learn(x, torch.zeros(len(part), device=self.device), labels).sum().backward()
        self.optimizer.zero_grad(set_to_none=True)

    def predict(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Call the network; [B, C, H, W] to [B, 2C, H, W], or to [B, C, H, W] where it learns no variance."""
        return self._called(self.network, x, t, labels)

    def learn(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Call the network as :meth:`predict` does, where the answer's gradient is asked for once."""
        # The fused kernel's gradient took a third of an iteration on the CPU (cifar10-16), that of plain products 3 %.
        kernel = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()
        with kernel:
            return self._called(self._learning, x, t, labels)

    def _called(self, network: Any, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            output: Tensor = network(x, t, labels).sample
        return output.float()

    def step(self, x0: Tensor, numbers: Tensor, labels: Tensor | None = None) -> Losses:
        """Take one optimiser step on real images x0 in [-1, 1] with their running numbers and, if any, classes.

        They are this replica's part of a batch of ``recipe.batch``; alone, a batch of any size.
        """
        recipe = self.recipe
        # Dropout masks, so that a resumed run repeats them; each replica has its own.
        torch.manual_seed(recipe.seed + self.iteration + (self.replicas.rank << 32))
        noise = self.noise.normal(numbers, Purpose.TRAIN_NOISE, 0, x0.shape[1:])
        part = self.replicas.part(len(x0) if self.replicas.size == 1 else recipe.batch)
        shown = Shown(x0, numbers, noise, self._with_null(labels, numbers), part)
        losses = self._continuous(shown) if self.process is None else self._ddpm(self.process, shown)
        # L_hybrid = L_simple + L_vlb, plus lambda_GP times the penalty.
        self._descend(losses.mse + losses.bound + recipe.gradient_penalty * losses.penalty)
        return losses

    def _with_null(self, labels: Tensor | None, numbers: Tensor) -> Tensor | None:
        """Return the labels with the recipe's share replaced by the null class, None for a network without labels."""
        if self.recipe.label_dropout is None or labels is None:
            return None
        null = self.network.config.num_class_embeds - 1
        words = uniform_words(self.recipe.seed, numbers, Purpose.TRAIN_LABEL, 0, 1)[:, 0, 0]
        return torch.where(words < self.recipe.label_dropout * 2**32, null, labels)

    def _continuous(self, shown: Shown) -> Losses:
        network, numbers = partial(self.learn, labels=shown.labels), shown.numbers
        if self.recipe.objective == "edm":
            level_noise = self.noise.normal(numbers, Purpose.TRAIN_INDEX, 0, (1,)).flatten()  # [B]
            loss = edm_loss(network, shown.x0, level_noise, shown.noise)
        else:
            t, label = self._uniform(numbers), None
            if self.recipe.slowed:
                label, t = slowed(t, self._uniform(numbers, 1), self.recipe.slowed)
                label = label.float()
            loss = flow_loss(network, shown.x0, t.float(), shown.noise, label)
        nothing = torch.zeros((), device=self.device)
        return Losses(loss.sum() / shown.part.total, nothing, nothing)

    def _ddpm(self, process: Process, shown: Shown) -> Losses:
        recipe, numbers, labels, part = self.recipe, shown.numbers, shown.labels, shown.part
        t, weights = self._indices(numbers)  # [B], from 0
        # Of the whole batch, and of this part, how many inputs scheduled sampling replaces.
        share = replaced_share(recipe.scheduled_sampling, self.iteration, recipe.iterations)
        replaced = round(part.total * share)
        first = part.of_first(replaced)
        t_input = t
        if recipe.slowed:  # of indices: the label is told, and the input stands at a noisier index
            label, time = slowed(self._uniform(numbers), self._uniform(numbers, 1), recipe.slowed)
            t, t_input = (recipe.T * label).long(), (recipe.T * time).long()
        y, target = self._pair(process, shown, t_input, first)
        told = self._without_some(t, numbers)
        mse, bound = hybrid_loss(process, self.learn(y, told, labels), y, target, shown.x0, t)  # [B] each
        if self.index_sampler is not None:
            self._remember(self.index_sampler, t, (mse + bound).detach(), part)
            mse, bound = weights * mse, weights * bound
        bound_loss = penalty = torch.zeros((), device=self.device)
        if recipe.gradient_penalty:
            penalised = max(1, part.total // 8)  # an unbiased estimate at a fraction of the cost
            few = slice(0, part.of_first(penalised))
            if few.stop:
                probe = self.noise.normal(numbers[few], Purpose.TRAIN_PROBE, 0, y.shape[1:])
                network = self._labelled(labels, few)
                penalty = gradient_penalty(network, y[few], t[few], probe).sum() / penalised
        # The bound's posterior is that of x_t given x0, which the network's own states are not drawn from.
        if part.total > replaced:
            bound_loss = bound[first:].sum() / (part.total - replaced)
        return Losses(mse.sum() / part.total, bound_loss, penalty)

    def _labelled(self, labels: Tensor | None, rows: slice) -> Network:
        """Return the network as a function of (x, t) for some of a batch's rows."""
        return partial(self.predict, labels=None if labels is None else labels[rows])

    def _indices(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the training indices of images by their running numbers, int64 [B], and their losses' weights [B]."""
        if self.index_sampler is None:
            return self.noise.integers(numbers, Purpose.TRAIN_INDEX, 0, self.recipe.T), torch.ones(())
        return self.index_sampler.draw(self._uniform(numbers))

    def _without_some(self, t: Tensor, numbers: Tensor) -> Tensor:
        """Return indices [B] with the recipe's share of them replaced by no time at all."""
        share = self.recipe.time_dropout
        return torch.where(self._uniform(numbers, 2) < share, int(NULL_TIME), t) if share else t

    def _uniform(self, numbers: Tensor, which: int = 0) -> Tensor:
        """Return a number in [0, 1) for each image, float64 [B]: number 0 of the draws makes indices."""
        words = uniform_words(self.recipe.seed, numbers, Purpose.TRAIN_INDEX, 0, 1)[:, which, 0]
        # float64, which MPS lacks
        return words.to(torch.float32 if words.device.type == "mps" else torch.float64) * 2.0**-32

    def _remember(self, sampler: LossSecondMoment, t: Tensor, losses: Tensor, part: Part) -> None:
        """Add the losses of the whole batch, so that all replicas have one history."""
        both = torch.zeros(2, part.total, device=self.device)  # float32 holds every index
        both[:, part.start : part.stop] = torch.stack([t.float(), losses.float()])
        self.replicas.sum(both)
        sampler.add(both[0].long(), both[1])

    def _pair(self, process: Process, shown: Shown, t: Tensor, replaced: int) -> tuple[Tensor, Tensor]:
        """Return (network input, target) [B, C, H, W] at t [B], the first ``replaced`` by scheduled sampling."""
        recipe, x0, noise, numbers, labels = self.recipe, shown.x0, shown.noise, shown.numbers, shown.labels
        xi = self.noise.normal(numbers, Purpose.TRAIN_PERTURBATION, 0, x0.shape[1:])
        gamma = gamma_at(recipe.gamma_schedule, recipe.gamma, t, recipe.T)
        y, target = make_pair(recipe.objective, process, x0, t, noise, xi, gamma)
        if self.rollout is not None and replaced:
            draws, network = Draws(self.noise, numbers[:replaced]), self._labelled(labels, slice(replaced))
            y_made, target_made = self.rollout.pair(network, x0[:replaced], t[:replaced], noise[:replaced], draws)
            y, target = torch.cat([y_made, y[replaced:]]), torch.cat([target_made, target[replaced:]])
        if recipe.dream_power is not None:
            with torch.no_grad():  # DREAM's estimate of the network's own error
                eps = self.predict(y, t, labels)[:, : y.shape[1]]
            y, target = rectified(process, eps, y, target, t, recipe.dream_power)
        return y, target


def train(
    recipe: Recipe,
    out: Path,
    device: torch.device,
    quiet: bool = False,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    replicas: Replicas = ALONE,
    signals: Signals | None = None,
    tensorboard: Path | None = None,
    data_dir: Path | None = None,
    compiled: bool = False,
    keep_every: int = 0,
    start: Path | None = None,
) -> Path:
    """Run a recipe to its end, resuming what ``out`` holds, and return the path of the averaged weights.

    Writes ``resume.pt``, ``loss.csv`` (iteration, images, mse, bound, penalty: means over 50 iterations) and
    ``<name>.safetensors`` in ``out``.

    Args:
        recipe: its ``batch`` counts the images of all replicas together.
        out: created if missing.
        device: of this replica.
        quiet: whether to show no progress bar.
        images: float32 in [-1, 1], instead of the dataset's training part.
        labels: their classes, int64 [N] from 0, which a recipe with ``label_dropout`` needs.
        replicas: the processes that train together; each calls this function with the same recipe and images.
        signals: asked between iterations.
        tensorboard: folder of the same numbers as scalars, with learning rate and images per second.
        data_dir: where the dataset's files lie, of a dataset that has some.
        compiled: whether to compile the network's calls and gradients; results differ in rounding.
        keep_every: iterations, whole windows of the log, after which the averaged weights are kept each time as
            ``<name>-<images seen>.safetensors``; 0 keeps none.
        start: weights of a finished training of this suite to begin with; the checkpoint names their hash.

    Raises:
        CheckpointError, DataError, TensorBoardError, OSError: what is in ``out`` or the dataset cannot be used.
        CompileError: there is no compiler, or it fails.
        DivergedError: a loss is not finite; ``out`` holds what was saved before.
        AgreedError: one of these in another replica, or the replicas cannot train this together.
        Interrupted: a signal came; ``out`` holds the last complete iteration.
    """
    resume, signals = out / "resume.pt", signals or Signals()
    with replicas.together():
        replicas.check(recipe.batch, device)
        recipe = recipe if start is None else replace(recipe, start=file_hash(start))
        x0, labels, data = (images, labels, {}) if images is not None else _training_images(recipe, data_dir)
        description = _description(recipe, x0.shape[1], data, labels)
        trainer = Trainer(recipe, dict(description.network), device, replicas)
        trainer.data = data.get("data_hash", "")
        if start is not None:
            trainer.begin(start, description)
        if compiled:
            trainer.compile(x0)
        if replicas.leads:
            out.mkdir(parents=True, exist_ok=True)
    if replicas.of_leader(resume.exists):
        trainer.resume(resume)
    batches = Batches(x0, recipe.batch, recipe.seed, replicas.part(recipe.batch), labels)
    with replicas.together():
        csv = out / "loss.csv"
        log = TrainingLog(csv, recipe, trainer.iteration, quiet, tensorboard) if replicas.leads else None
    with signals.hold(), log or nullcontext():
        for window in _windows(trainer, batches, signals):
            with replicas.together(), _named_flag() if compiled else nullcontext():
                if log is not None:
                    log.add(window)
            # Before saving: a training that stops between the two resumes before this iteration, and keeps it then.
            if keep_every and trainer.iteration % keep_every == 0:
                trainer.keep(out, description)
            if trainer.iteration % _SAVE_EVERY == 0:
                trainer.save(resume)
        trainer.save(resume)
    if trainer.iteration < recipe.iterations:
        raise Interrupted(replicas.largest(signals.received))
    trainer.write(path := out / f"{recipe.name}.safetensors", description)
    return path


@contextmanager
def _named_flag() -> Iterator[None]:
    """Name the flag that switches a failing compiler off, or one whose gradients are wrong on this processor."""
    try:
        yield
    except (CompileError, DivergedError) as error:
        raise type(error)(f"{error}; use --compile off") from None


def _training_images(recipe: Recipe, data_dir: Path | None) -> tuple[Tensor, Tensor | None, dict[str, str]]:
    """Return the dataset's training images in [-1, 1], their labels, and what checkpoints say of them."""
    data = load(recipe.dataset, data_dir)
    if data.note:
        note(data.note)
    about = {"data": data.training_name, "data_hash": data.content_hash()}
    return to_unit(data.part("train")), data.part_labels("train"), about


def _description(recipe: Recipe, channels: int, data: Mapping[str, str], labels: Tensor | None) -> Description:
    sizes = {"in_channels": channels, "out_channels": channels if recipe.is_continuous else 2 * channels}
    prediction = recipe.objective if recipe.is_continuous else "eps"
    if recipe.label_dropout is not None and labels is not None:
        sizes["num_classes"] = int(labels.max()) + 2  # the data's classes, and the null class
    if recipe.time_dropout:
        sizes["null_time"] = True
    network = {**NETWORKS[recipe.network], **sizes, "dropout": recipe.dropout}
    return Description(network, recipe.schedule, recipe.T, {**asdict(recipe), **data}, prediction)


def _windows(trainer: Trainer, batches: Batches, signals: Signals) -> Iterator[Window]:
    """Train to the end, or to the iteration at which a replica received a signal; yield a window at a time."""
    recipe, start, started = trainer.recipe, trainer.iteration, perf_counter()
    while trainer.iteration < recipe.iterations and not trainer.replicas.largest(signals.received):
        x0, numbers, labels = batches.at(trainer.iteration)
        labels = labels if labels is None else labels.to(trainer.device)
        losses = trainer.step(x0.to(trainer.device), numbers.to(trainer.device), labels)
        trainer.window.append(torch.stack(losses).detach())
        if trainer.iteration % LOG_EVERY == 0 or trainer.iteration == recipe.iterations:
            means = tuple(trainer.close_window())  # waits for the device
            speed = (trainer.iteration - start) * recipe.batch / (perf_counter() - started)
            rate = learning_rate(recipe, trainer.iteration - 1)
            yield Window(trainer.iteration, trainer.iteration * recipe.batch, means, rate, speed)
            start, started = trainer.iteration, perf_counter()
