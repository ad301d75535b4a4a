"""The command line of training: ``python -m bench.models.train --recipe adm``."""

from __future__ import annotations

from bench.runtime.signals import Interrupted, Signals, end_at_once, say_interrupted

if __name__ == "__main__":
    end_at_once()  # the imports below take seconds

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.files.errors import one_line
from bench.memory import keep_freed_memory
from bench.models.train.recipes import RECIPES
from bench.models.train.replicas import MISTAKES, ReplicaError, Replicas, joined
from bench.models.train.trainer import train
from bench.models.train_arguments import parse_arguments
from bench.runtime.tensorboard import require_tensorboard

_CHANGEABLE = (
    "iterations", "gamma", "gamma_schedule", "gradient_penalty", "weight_decay", "dream_power", "scheduled_sampling",
    "rollout_stride", "seed",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        with Signals() as signals, joined() as replicas:
            return _command(argv, replicas, signals)
    except Interrupted as interrupted:
        say_interrupted()
        return interrupted.code
    except ReplicaError as error:
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
            data_dir=args.data_dir, compiled=args.compile == "on", keep_every=args.keep_every,
        )  # fmt: skip
    except MISTAKES as error:
        if replicas.leads:
            print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    if replicas.leads:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
