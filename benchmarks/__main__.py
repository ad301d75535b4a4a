"""All comparisons of speed and memory: ``python -m benchmarks``, or some of them by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from bench.runtime.devices import DEVICES, find_device, full_float32
from benchmarks.comparison import HEADER, Comparison, Setting, line, write_csv
from benchmarks.distances import frechet
from benchmarks.document import PUBLISHED, fill
from benchmarks.memory.peak import memory
from benchmarks.speed.hooks import hooks
from benchmarks.speed.instruments import instruments
from benchmarks.speed.network_share import share
from benchmarks.speed.pixels import pixels
from benchmarks.speed.processes import processes
from benchmarks.speed.sampling import modes, sampling
from benchmarks.speed.training import training

OUT = Path("results/benchmarks.csv")  # git ignores it
PARTS: Mapping[str, Callable[[Setting], Iterator[Comparison]]] = {
    "sampling": sampling,
    "modes": modes,
    "instruments": instruments,
    "hooks": hooks,
    "share": share,
    "training": training,
    "frechet": frechet,
    "pixels": pixels,
    "memory": memory,
    "processes": processes,
}
_ON_DEVICE = ("sampling", "modes", "instruments", "hooks", "share", "training")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--device", default="cpu", choices=DEVICES, help="of the networks (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=Setting.pairs, help="of a slow comparison (default %(default)s)")
    parser.add_argument("--batch", type=int, default=Setting.batch, help="images a call (default %(default)s)")
    parser.add_argument("--steps", type=int, default=Setting.steps, help="of a walk (default %(default)s)")
    parser.add_argument(
        "--width", type=int, action="append", metavar="N", help="model channels, more than once (default 32 and 64)"
    )
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    places = parser.add_mutually_exclusive_group()
    places.add_argument("--out", type=Path, default=OUT, help="where your numbers go (default %(default)s)")
    places.add_argument(
        "--publish", action="store_true", help="put them into results/performance.csv and docs/performance.md instead"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row as soon as it is measured, and write the CSV file at the end of each part."""
    parser = _parser()
    args = parser.parse_args(argv)
    device = find_device(args.device)
    if device is None:
        parser.error(f"there is no {args.device} on this machine")
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    if min(args.pairs, args.batch, args.steps) < 1 or 1000 % args.steps:
        parser.error(
            "--pairs, --batch and --steps must be at least 1, and 1000 a multiple of --steps: diffusers' levels"
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    full_float32()
    widths = tuple(args.width or Setting.widths)
    setting = Setting(device, args.pairs, args.batch, args.steps, widths=widths)
    parts = args.parts or [part for part in PARTS if device.type == "cpu" or part in _ON_DEVICE]
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads\n\n{HEADER}", flush=True)
    for part in parts:
        rows = []
        for row in PARTS[part](setting):
            print(line(row), flush=True)
            rows.append(row)
        write_csv(PUBLISHED if args.publish else args.out, rows)
    if args.publish:
        fill()


if __name__ == "__main__":
    main()
