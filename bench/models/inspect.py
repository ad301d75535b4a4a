"""What a checkpoint is taken for, and whether it behaves so: ``python -m bench.models.inspect FILE``.

Real images with noise are shown to the network under its description and under others that it could have; the slopes
of :mod:`bench.models.denoisers.calibration` say which of them fit, the denoising error which of these fits best.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.data import load, load_path, to_unit
from bench.files.paths import with_home
from bench.models.checkpoints.adapter import adapter_file, describe_adapter
from bench.models.checkpoints.formats import denoiser_of, describe, located, open_network, with_table
from bench.models.checkpoints.guided_diffusion import PRESETS, describe_entry, fitting_presets
from bench.models.denoisers.calibration import LEVELS, MOST_IMAGES, Slope, slope_levels, slopes, worst
from bench.models.denoisers.parameterization import CONVERSIONS, check_process
from bench.models.denoisers.preconditioning import EdmDenoiser
from bench.models.interface import Description
from bench.models.networks.arguments import complete
from bench.runtime.errors import CheckpointError, OneLineParser, UserError, quoted, reason
from bench.runtime.signals import exit_with

_BETTER = 0.9  # of the error: what another description must reach to be recommended over one that fits
_ROUNDS = 3  # of changes on top of each other


@dataclass(frozen=True)
class Candidate:
    """A description that a network could have.

    Attributes:
        name: what differs from the file's or entry's description.
        description: of the network.
        in_unit: whether its images are in [0, 1] rather than [-1, 1].
    """

    name: str
    description: Description
    in_unit: bool = False


@dataclass(frozen=True)
class Trial:
    """The slopes of a network under a candidate description."""

    candidate: Candidate
    slopes: Sequence[Slope] = field(repr=False)

    @property
    def fits(self) -> bool:
        """Tell whether no slope is off, nor so uncertain that it could be."""
        return not self.is_off and not any(slope.is_vague for slope in self.slopes)

    @property
    def is_off(self) -> bool:
        """Tell whether a slope is off."""
        return worst(self.slopes) is not None

    @property
    def loss(self) -> float:
        """Return the mean squared error of eps_hat over the levels."""
        return sum(slope.loss for slope in self.slopes) / len(self.slopes)

    @property
    def rank(self) -> tuple[bool, float]:
        """Return what orders trials, the best first."""
        return not self.fits, self.loss if self.loss == self.loss else float("inf")


def candidates(description: Description) -> Iterator[Candidate]:
    """Yield the descriptions that differ from one in a single thing that a file does not tell."""
    yield Candidate("images in [0, 1]", description, in_unit=True)
    if not description.is_edm:
        yield from (one for one in _processes(description) if _is_possible(one.description))


def _is_possible(description: Description) -> bool:
    try:
        check_process(description.schedule, description.T, description.prediction)
    except ValueError:  # a table has one T, and short trainings do not suit every schedule
        return False
    return True


def _processes(description: Description) -> Iterator[Candidate]:
    """Yield the descriptions with another training process, and of plain files with other attention."""
    if description.is_flow:
        for prediction in {"flow", "x0"} - {description.prediction}:
            yield Candidate(f"prediction {prediction}", replace(description, prediction=prediction))
        for T in {1, 1000} - {description.T}:
            yield Candidate(f"T = {T}", replace(description, T=T))
        return
    yield Candidate("a flow", replace(description, schedule="flow", prediction="flow"))
    for prediction in CONVERSIONS:
        if prediction not in ("flow", description.prediction):
            yield Candidate(f"prediction {prediction}", replace(description, prediction=prediction))
    for schedule in ("cosine", "linear", "scaled_linear(0.00085,0.012)"):
        if schedule != description.schedule:
            yield Candidate(f"schedule {schedule}", replace(description, schedule=schedule))
    for T in (500, 1000, 2000, 4000):
        plain = {name: value for name, value in description.network.items() if name != "rescale_timesteps"}
        if T != description.T or description.time_factor != 1:
            yield Candidate(f"T = {T}", replace(description, T=T, network=plain))
        if T != 1000 and (T != description.T or description.time_factor == 1):
            rescaled = {**plain, "rescale_timesteps": True}
            yield Candidate(f"T = {T}, rescale_timesteps", replace(description, T=T, network=rescaled))
    if description.format == "guided":
        yield from _attention(description)


def _attention(description: Description) -> Iterator[Candidate]:
    """Yield other orders and counts of attention heads, which shapes do not show."""
    network = dict(description.network)
    new = not network.get("use_new_attention_order", False)
    other = replace(description, network={**network, "use_new_attention_order": new})
    yield Candidate(f"{'new' if new else 'legacy'} attention order", other)
    counts = [{"num_head_channels": width} for width in (32, 64)]
    counts += [{"num_heads": count, "num_head_channels": -1} for count in (1, 2, 4, 8)]
    current = complete(network)
    for heads in counts:
        changed = {**network, **heads}
        try:
            same = all(complete(changed)[name] == current[name] for name in ("num_heads", "num_head_channels"))
        except CheckpointError:  # the width does not divide into so many
            continue
        if not same:
            name, value = next(iter(heads.items()))
            yield Candidate(f"{name} = {value}", replace(description, network=changed))


class Inspector:
    """A checkpoint, images, and the networks made of the one to be shown the others.

    Args:
        weights: the file or folder.
        images: real ones in [-1, 1], float32 [N, C, H, W].
        labels: their classes, int64 [N].
        count: images a level, to begin with.
    """

    def __init__(self, weights: Path, images: Tensor, labels: Tensor, count: int = MOST_IMAGES) -> None:
        self.weights, self.images, self.labels, self.count = weights, images, labels, count
        self._network: tuple[Any, Any] = (None, None)  # the last one, and what it was made of

    def trial(self, candidate: Candidate) -> Trial:
        """Show the images to the network as a candidate describes it."""
        about = candidate.description
        arguments = {name: value for name, value in about.network.items() if name != "rescale_timesteps"}
        if self._network[1] != arguments:
            self._network = open_network(self.weights, about), arguments
        denoiser = denoiser_of(self._network[0], about, self.images.device)
        preconditioning = denoiser.preconditioning if isinstance(denoiser, EdmDenoiser) else None
        images = (self.images + 1) / 2 if candidate.in_unit else self.images
        levels = slope_levels(about.schedule, about.T, preconditioning)
        labels = self.labels if about.classes else None
        return Trial(candidate, slopes(denoiser, images, levels, labels, LEVELS * self.count))

    def search(self, description: Description) -> tuple[list[Trial], Trial]:
        """Return the trials of a description and of those beside it, and the best trial found from there."""
        given = self.trial(Candidate("as described", description))
        trials = [given, *map(self.trial, candidates(description))]
        best = _better(trials)
        last = trials
        for _ in range(_ROUNDS - 1):  # two things may be wrong at once
            # A flow's levels forgive more: a network that is none may just fit there.
            is_settled = best.fits and best.candidate.description.is_flow == description.is_flow
            if is_settled or best.candidate.in_unit:
                break
            # A flow with one thing wrong may look better than the frame as described with one of two put right.
            frame = _better([one for one in last if one.candidate.description.is_flow == description.is_flow])
            starts = {one.candidate.name: one.candidate for one in (best, frame) if not one.candidate.in_unit}
            last = [
                self.trial(replace(c, name=f"{first.name}, {c.name}"))
                for first in starts.values()
                for c in candidates(first.description)
            ]
            best = _better([best, *last])
        return trials, best


def _better(trials: Sequence[Trial]) -> Trial:
    """Return the best trial: the first one where it fits and none is better by a tenth."""
    first, best = trials[0], min(trials, key=lambda trial: trial.rank)
    return first if first.fits and best.loss > _BETTER * first.loss else best


def describe_file(weights: Path, entry: Mapping[str, Any] | None, folder: Path) -> tuple[Path, Description]:
    """Return where a checkpoint is and its description: its own, an entry's, or a preset's that its shapes fit.

    Raises:
        CheckpointError: it cannot be read, or nothing describes it.
    """
    if entry is not None and "adapter" in entry:
        return adapter_file(str(entry["adapter"]), folder), describe_adapter(with_table(entry, folder), folder)
    weights = located(weights)
    description = describe(weights)
    if description is not None:
        return weights, description
    if entry is not None:
        return weights, describe_entry(with_table(entry, folder))
    if not (fitting := fitting_presets(weights)):
        raise CheckpointError(f"{weights} does not describe itself, and no preset fits it; give its entry by --config")
    print(f"{weights} fits preset {' or '.join(fitting)}")
    return weights, PRESETS[fitting[0]].description()


def _entry(config: Path, name: str) -> tuple[Path, Mapping[str, Any]]:
    """Return the weights and the entry of a config file that a name or a path of weights means."""
    try:
        models = {name: with_home(entry) for name, entry in tomllib.loads(config.read_text())["models"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{config} cannot be read as a config file of models ({reason(error)})") from None
    for key, entry in models.items():
        weights = Path(str(entry.get("weights", "")))
        if name == key or ("weights" in entry and Path(name).resolve() == (config.parent / weights).resolve()):
            if not {"weights", "adapter"} & entry.keys():
                raise CheckpointError(f"model {quoted(key)} of {config} has no 'weights' of its own; name their file")
            return located(weights, config.parent), entry
    raise CheckpointError(f"{config} has no model {quoted(name)}, nor one of these weights; known: {', '.join(models)}")


def report(trials: Sequence[Trial], best: Trial) -> Iterator[str]:
    """Yield the lines of a table of trials and the recommendation."""
    yield f"{'description':40s} {'slopes, little noise to much':>44s}   error"
    for trial in trials:
        values = " ".join(f"{slope.value:5.2f}" for slope in trial.slopes)
        yield f"{trial.candidate.name:40s} {values:>44s}  {trial.loss:6.3f}  {_verdict(trial)}"
    name = best.candidate.name
    if not best.fits:
        yield f"no description fits; nearest is: {name} (error {best.loss:.3f})"
    elif best is trials[0]:
        yield "the description fits"
    else:
        yield f"recommended: {name} (error {best.loss:.3f})"
        yield from _advice(best.candidate)


def _verdict(trial: Trial) -> str:
    if trial.is_off:
        return "does not fit"
    return "fits" if trial.fits else "cannot be told"


def _advice(candidate: Candidate) -> Iterator[str]:
    """Yield what to write into the config file."""
    about = candidate.description
    if candidate.in_unit:
        yield "  the network takes images in [0, 1]: write an adapter that maps them (docs/adapters.md)"
    elif about.format != "guided":
        yield f"  the {about.format} file says otherwise; correct it where it comes from"
    else:
        # What JSON writes of numbers, lists and switches is TOML too.
        network = ", ".join(f"{key} = {json.dumps(value)}" for key, value in about.network.items() if value is not None)
        yield f'  schedule = "{about.schedule}"'
        yield f"  T = {about.T}"
        yield f'  prediction = "{about.prediction}"'
        yield f"  network = {{ {network} }}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, 1 where another description is recommended."""
    parser = OneLineParser(prog="python -m bench.models.inspect", description="Does a description fit its network?")
    parser.add_argument("file", help="weights, or the name of a model in --config")
    parser.add_argument("--config", type=Path, help="TOML file with the entry of the weights")
    parser.add_argument("--dataset", default="digits", help="real images that the network was trained on, or NAME=PATH")
    parser.add_argument("--data-dir", type=Path, help="folder of the dataset's files, or the file")
    counts = range(2, MOST_IMAGES + 1)
    parser.add_argument("--images", type=int, default=32, choices=counts, metavar="N", help="a level, more if need be")
    args = parser.parse_args(argv)
    try:
        weights, entry = (Path(args.file), None) if args.config is None else _entry(args.config, args.file)
        weights, description = describe_file(weights, entry, Path() if args.config is None else args.config.parent)
        name, _, path = args.dataset.partition("=")
        data = load_path(name, Path(path).expanduser()) if path else load(name, args.data_dir)
        if data.shape[0] != description.channels:
            raise CheckpointError(
                f"{weights} takes {description.channels} channels, {args.dataset} has {data.shape[0]}; see --dataset"
            )
        rows = torch.randperm(data.count("train"), generator=torch.Generator().manual_seed(0))[:MOST_IMAGES]
        images = to_unit(data.pick("train", rows))
        print(
            f"{weights}: format {description.format}, prediction {description.prediction}, schedule"
            f" {description.schedule}, T = {description.T}"
        )
        trials, best = Inspector(weights, images, data.pick_labels("train", rows), args.images).search(description)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(report(trials, best)))
    return 0 if best is trials[0] else 1


if __name__ == "__main__":
    exit_with(main)
