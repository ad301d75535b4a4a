"""The flags of ``run_bench.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.runtime.errors import OneLineParser
from bench.suite.settings import DEFAULT_DATASET


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all flags; a mistake is told in one line."""
    parser = OneLineParser(  # called run_bench.py or exposure-bias-bench, as it was started
        usage="%(prog)s [options]",  # the list of flags follows, in groups
        description="Measure exposure bias and sample quality of diffusion models over step counts.",
        epilog="Other commands, by a first word: analyse (draw a results folder again), measure (score samples of any "
        "tool), train. Each has a --help of its own.",
        allow_abbrev=False,
    )
    _add_grid(parser.add_argument_group("what to compare"))
    _add_sampling(parser.add_argument_group("how to sample"))
    _add_measuring(parser.add_argument_group("what to measure"))
    _add_running(parser.add_argument_group("running"))
    return parser


def _add_grid(grid: argparse._ArgumentGroup) -> None:
    grid.add_argument(
        "--models",
        default="adm,adm-ip",
        metavar="NAME[=PATH],...",
        help="models, with other weights if wished (default %(default)s)",
    )
    grid.add_argument("--steps", default="80,100,300,1000", metavar="N,...", help="step counts (default %(default)s)")
    grid.add_argument(
        "--seeds", default="0", metavar="LIST", help="seeds or ranges, e.g. 0,3 or 0-4 (default %(default)s)"
    )
    grid.add_argument(
        "--samples", type=int, metavar="N", help="samples a cell and seed (default 256 on digits, else 1000)"
    )
    grid.add_argument(
        "--dataset",
        default=DEFAULT_DATASET,
        metavar="NAME[=PATH]",
        help="digits, cifar10, ... (docs/data.md lists them), one of the config file's, or images of your own: a name"
        " and their folder, zip or npz (default %(default)s)",
    )
    grid.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where datasets lie, the config file's too; cifar10 and cifar10-16 go without",
    )
    grid.add_argument("--resize", type=int, metavar="N", help="resize the dataset's images to N pixels a side")
    grid.add_argument(
        "--crop", metavar="HOW", help="cut squares first: center, or guided (guided-diffusion's way) (default none)"
    )
    grid.add_argument("--resize-filter", metavar="NAME", help="box, bilinear, bicubic (the default) or lanczos")
    grid.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.toml",
        help="adds models and datasets; may be given more than once",
    )


def _add_sampling(how: argparse._ArgumentGroup) -> None:
    how.add_argument(
        "--sampler",
        help="ddpm (ancestral), ddim; for EDM models and flows heun or euler; for flows sde; for all dpmpp-2m or unipc"
        " (default ddpm, heun for EDM models and flows)",
    )
    how.add_argument(
        "--spacing",
        default="plain",
        help="plain (ends included), ddim (whole strides), or leading, linspace, trailing (default %(default)s)",
    )
    how.add_argument("--eta", type=float, default=0.0, help="DDIM's noise, 0 to 1 (default %(default)s)")
    how.add_argument(
        "--churn", type=float, default=0.0, metavar="S", help="noise of heun and euler, EDM's S_churn (default 0)"
    )
    how.add_argument("--S-min", dest="s_min", type=float, default=0.0, help="least sigma that is churned (default 0)")
    how.add_argument("--S-max", dest="s_max", type=float, help="largest sigma that is churned (default: any)")
    how.add_argument(
        "--S-noise", dest="s_noise", type=float, default=1.0, help="factor of the churn's noise (default %(default)s)"
    )
    how.add_argument(
        "--variance", help="learned, fixed-small or fixed-large (default: what the network was trained for)"
    )
    how.add_argument(
        "--clip",
        action=argparse.BooleanOptionalAction,
        help="clamp x0_hat to [-1, 1] (default on, off for EDM models and flows)",
    )
    how.add_argument(
        "--quantize", default="round", help="round, or floor as the papers' scripts do (default %(default)s)"
    )
    _add_guidance(how)
    how.add_argument("--eps-scale", type=float, metavar="B", help="override b of scaling models")
    how.add_argument("--eps-slope", type=float, metavar="K", help="override k of scaling models")
    how.add_argument(
        "--tune",
        metavar="NAME=LOW:HIGH:COUNT",
        help="try a grid of one constant of the models' remedies, or fit it (NAME=fit); writes tuned.toml for --config",
    )
    how.add_argument("--batch-size", type=int, default=128, metavar="N", help="internal batch (default %(default)s)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")


def _add_guidance(how: argparse._ArgumentGroup) -> None:
    how.add_argument(
        "--guidance",
        type=float,
        metavar="W",
        help="classifier-free guidance of class-conditional models, 1 for none (default: that of their entry)",
    )
    how.add_argument(
        "--guidance-interval",
        metavar="LOW:HIGH",
        help="guide where LOW < sigma / alpha <= HIGH alone (default: at every level)",
    )
    how.add_argument(
        "--labels", default="random", help="class labels of samples: random or balanced (default %(default)s)"
    )
    how.add_argument(
        "--classifier", type=Path, metavar="FILE.pt", help="guide class-conditional models by a classifier"
    )
    how.add_argument(
        "--classifier-scale", type=float, metavar="S", help="strength of the guidance (default: the published one)"
    )


def _add_measuring(measuring: argparse._ArgumentGroup) -> None:
    measuring.add_argument(
        "--measure",
        metavar="NAME,...",
        help="steps, normality (these two by default), chains, response or all; the last two cost more network calls",
    )
    measuring.add_argument(
        "--probes", action=argparse.BooleanOptionalAction, default=True, help="measure anything at all (default on)"
    )
    measuring.add_argument(
        "--features",
        help="digits, cifar10, cifar10-16, cifar10-resized (images of any size, no download), inception, clean-fid or"
        " none (default: the dataset's own for digits and cifar10-16, and for cifar10 without --data-dir, else"
        " inception)",
    )
    measuring.add_argument(
        "--reference",
        type=Path,
        metavar="FILE.npz",
        help="published statistics (mu, sigma, ...) to compare features with",
    )
    measuring.add_argument("--inception-weights", type=Path, metavar="FILE", help="torch-fidelity's Inception weights")


def _add_running(run_group: argparse._ArgumentGroup) -> None:
    run_group.add_argument(
        "--out", type=Path, metavar="DIR", help="results folder (default results/<dataset>-<sampler>-<hash>)"
    )
    run_group.add_argument("--list-models", action="store_true", help="list the known models and exit")
    run_group.add_argument("--dry-run", action="store_true", help="print the plan and its cost and exit")
    run_group.add_argument(
        "--precision",
        default="fp32",
        help="of network calls: fp32, tf32 (NVIDIA GPUs) or bf16 (default %(default)s); the rest stays float32",
    )
    run_group.add_argument(
        "--compile",
        default="auto",
        help="compile the networks: auto (if the run is long enough to repay it), on or off (default %(default)s)",
    )
    run_group.add_argument(
        "--shard",
        metavar="I/N",
        help="do the I-th of N parts of the work, 0 to N - 1, as in a job array; in one --out or joined by"
        " python -m bench.suite merge",
    )
    run_group.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show cells, images a second and the time left (default on, off with --quiet)",
    )
    run_group.add_argument("--quiet", action="store_true", help="no progress line, no closing lines")
