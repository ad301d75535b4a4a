"""The command line of training: ``python -m bench.models.train --recipe adm``."""

from __future__ import annotations

from bench.runtime.distributed import AgreedError, PeerError
from bench.runtime.errors import OneLineParser, UserError, one_line, reason
from bench.runtime.signals import Interrupted, Signals, end_at_once, exit_with, say_interrupted

if __name__ == "__main__":
    end_at_once()  # the imports below take seconds

import argparse
import difflib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from bench.data import EMBEDDED_DATASETS
from bench.models.train.log import LOG_EVERY
from bench.models.train.objectives import GAMMA_SCHEDULES
from bench.models.train.recipes import RECIPES
from bench.models.train.replicas import Replicas, joined
from bench.models.train.trainer import train
from bench.runtime.devices import keep_freed_memory
from bench.runtime.tensorboard import require_tensorboard

_CHANGEABLE = (
    "iterations", "gamma", "gamma_schedule", "gradient_penalty", "weight_decay", "dream_power", "scheduled_sampling",
    "rollout_stride", "slowed", "seed",
)  # fmt: skip
_OF_INDICES = ["gamma", "gamma_schedule", "gradient_penalty", "dream_power", "scheduled_sampling"]


def _recipe(text: str) -> str:
    if text not in RECIPES:
        close = difflib.get_close_matches(text, RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(RECIPES))}"
        raise argparse.ArgumentTypeError(f"unknown recipe {text!r}; {hint}")
    return text


def _whole(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """Return a reader of whole numbers from ``least`` to ``most``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, not {text!r}")
        return value

    return read


def _windows(text: str) -> int:
    """Read a number of whole windows of the log, between which nothing is written."""
    value = _whole(LOG_EVERY)(text)
    if value % LOG_EVERY:
        raise argparse.ArgumentTypeError(f"must be a multiple of {LOG_EVERY}, not {text!r}")
    return value


def _strength(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, not {text!r}")
    return value


def _share(text: str) -> float:
    value = _strength(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, not {text!r}")
    return value


def _device(text: str) -> torch.device:
    # Each process of torchrun has a GPU of its own.
    name = f"cuda:{os.environ['LOCAL_RANK']}" if text == "cuda" and dist.is_torchelastic_launched() else text
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device may be well named and absent, or hold no numbers
    except Exception as error:  # torch's backends raise RuntimeError, AssertionError, NotImplementedError ...
        why = reason(error).split(". ")[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here ({why}); try cpu or cuda") from None
    return device


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the command line; a value that cannot be used ends the program with one line and code 2."""
    parser = OneLineParser(
        prog="python -m bench.models.train",
        usage="%(prog)s --recipe RECIPE [options]",
        description="Train a checkpoint of the embedded family.",
    )
    names = ", ".join(sorted(RECIPES))
    parser.add_argument("--recipe", required=True, type=_recipe, help=f"which checkpoint to train: {names}")
    parser.add_argument("--out", type=Path, help="folder of weights and log (default: training/<network>/<recipe>)")
    parser.add_argument("--iterations", type=_whole(1, 10**9), help="optimiser steps (default: the recipe's)")
    parser.add_argument("--gamma", type=_strength, help="input perturbation strength")
    parser.add_argument("--gamma-schedule", choices=GAMMA_SCHEDULES, help="how gamma depends on the index")
    parser.add_argument("--gradient-penalty", type=_strength, help="lambda of the gradient penalty")
    parser.add_argument("--weight-decay", type=_strength, help="lambda of the decoupled weight decay")
    parser.add_argument("--dream-power", type=_strength, help="DREAM's exponent")
    parser.add_argument(
        "--scheduled-sampling", type=_share, help="largest share of inputs that the network makes itself"
    )
    parser.add_argument("--rollout-stride", type=_whole(1, 999), help="indices a step of scheduled sampling spans")
    parser.add_argument("--slowed", type=_share, metavar="GAMMA", help="how far MixFlow reaches past t")
    parser.add_argument("--seed", type=_whole(0), help="seed of weights, order and noise")
    parser.add_argument(
        "--device", type=_device, default="cpu", help="torch device (default cpu); under torchrun cuda is a GPU each"
    )
    parser.add_argument("--threads", type=_whole(1, 4096), help="CPU threads a process (default: all; torchrun's: one)")
    parser.add_argument("--data-dir", type=Path, help="folder of the dataset's files, or the file; digits need none")
    parser.add_argument("--compile", choices=("on", "off"), default="off", help="compile the network (takes minutes)")
    parser.add_argument("--start", type=Path, metavar="FILE", help="finished weights to begin with, not random ones")
    parser.add_argument("--keep-every", type=_windows, default=0, metavar="N", help="keep weights of every N steps")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="folder of TensorBoard scalars")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.data_dir is not None and RECIPES[args.recipe].dataset in EMBEDDED_DATASETS:
        parser.error(f"--data-dir has no effect on the recipe {args.recipe}, whose digits are embedded")
    for flag in _idle(args):
        if getattr(args, flag) is not None:
            parser.error(f"--{flag.replace('_', '-')} has no effect on the recipe {args.recipe}")
    return args


def _idle(args: argparse.Namespace) -> list[str]:
    """Return the flags that mean nothing to the recipe as the others change it."""
    recipe = RECIPES[args.recipe]
    if recipe.is_continuous:
        return [*_OF_INDICES, "rollout_stride", *(["slowed"] if recipe.objective == "edm" else [])]
    idle = ["gamma", "gamma_schedule"] if recipe.objective == "ddpm" else []  # it perturbs no input
    share = recipe.scheduled_sampling if args.scheduled_sampling is None else args.scheduled_sampling
    return idle if share else [*idle, "rollout_stride"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        with Signals() as signals, joined() as replicas:
            return _command(argv, replicas, signals)
    except Interrupted as interrupted:
        say_interrupted()
        return interrupted.code
    except (AgreedError, PeerError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def _command(argv: Sequence[str] | None, replicas: Replicas, signals: Signals) -> int:
    args = replicas.parsed(lambda: parse_arguments(argv))
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    changed = {name: getattr(args, name) for name in _CHANGEABLE if getattr(args, name) is not None}
    recipe = replace(RECIPES[args.recipe], **changed)
    out = args.out or Path("training") / recipe.network / recipe.name
    try:
        if args.tensorboard is not None:
            with replicas.together():
                require_tensorboard()  # before anything is written
        path = train(
            recipe, out, args.device, args.quiet, replicas=replicas, signals=signals, tensorboard=args.tensorboard,
            data_dir=args.data_dir, compiled=args.compile == "on", keep_every=args.keep_every, start=args.start,
        )  # fmt: skip
    except BrokenPipeError:
        raise
    except (UserError, OSError) as error:
        if replicas.leads:
            print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    if replicas.leads:
        print(path)
    return 0


if __name__ == "__main__":
    exit_with(main)
