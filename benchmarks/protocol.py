"""The cost of the papers' protocol, counted and not measured: ``python -m benchmarks.protocol``.

Network calls are the planner's own, as ``--dry-run`` prints them; floating-point operations of a call are torch's count
of matrix products and convolutions, two for a multiplication and an addition, on a network without memory. Hours are
calls x operations / rate, and the rate is an assumption: give that of your machine with ``--rate``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.models.checkpoints.guided_diffusion import PRESETS
from bench.models.interface import Description
from bench.models.networks.adm import adm_unet, without_weights
from bench.models.train.recipes import DIGITS_NETWORK
from bench.suite.plan import Cell
from bench.suite.registry.model import Model
from bench.suite.settings import SamplerConfig

RATE = 50e12
SAMPLES = 50_000
STEPS = (80, 100, 300, 1000)
MODELS = 6  # adm, adm-ip, ddpm-y, each with epsilon scaling and without
GPUS = (1, 8, 64)
# Dataset, the preset of its network, its training and held-out images.
DATASETS: Mapping[str, tuple[str, tuple[int, int]]] = {
    "CIFAR-10": ("cifar10", (50_000, 10_000)),
    "ImageNet 32x32": ("imagenet32", (1_281_167, 0)),
    "LSUN tower 64x64": ("lsun-tower64", (50_000, 0)),
    "CelebA 64x64": ("celeba64", (50_000, 0)),
    "ImageNet 64x64": ("imagenet64", (1_281_167, 0)),
    "FFHQ 128x128": ("ffhq128", (70_000, 0)),
}
# By name, guided-diffusion's arguments of networks, small to large.
NETWORKS: Mapping[str, Mapping[str, Any]] = {"digits 8x8 (embedded)": DIGITS_NETWORK} | {
    f"{name} (published ADM)": PRESETS[name].network for name in ("cifar10", "imagenet64", "ffhq128")
}


def _build(config: Mapping[str, Any]) -> Any:
    return without_weights(lambda: adm_unet(config)).eval()


def flops(config: Mapping[str, Any], batch: int = 1) -> int:
    """Return the floating-point operations of one call of an ADM network for a batch."""
    network = _build(config)
    size, channels = config["image_size"], config["in_channels"]
    with torch.device("meta"):
        x, t = torch.empty(batch, channels, size, size), torch.empty(batch)
        labels = torch.empty(batch, dtype=torch.int64) if config.get("num_classes") else None
    # Attention as plain matrix products: which fused kernels the counter knows differs between versions of torch.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, t, labels)
    return int(counter.get_total_flops())


def calls(preset: str, parts: tuple[int, int], steps: int, samples: int = SAMPLES) -> tuple[int, int]:
    """Return one cell's network calls for (the samples, the instruments), as the suite plans them."""
    description = PRESETS[preset].description()
    model = Model("adm", Path(), Description(dict(description.network), description.schedule, description.T))
    return Cell(model, SamplerConfig(), steps, 0, samples, ("steps", "normality"), "", parts, "").cost()


def network_table() -> Iterator[str]:
    """Yield a table of the networks."""
    yield "| network | weights | FLOPs a call, one image |\n|---|---|---|"
    for name, config in NETWORKS.items():
        weights = sum(weight.numel() for weight in _build(config).parameters())
        yield f"| {name} | {weights / 1e6:.2f} M | {flops(config) / 1e9:.4g} G |"


def growth() -> Iterator[str]:
    """Yield a table of a CIFAR-10 cell's calls by samples and steps."""
    counts = (20, *STEPS)
    yield "| samples | " + " | ".join(f"{steps} steps" for steps in counts) + " |"
    yield "|---" * (1 + len(counts)) + "|"
    for samples in (500, 5_000, SAMPLES):
        costs = [calls(*DATASETS["CIFAR-10"], steps, samples) for steps in counts]
        yield f"| {samples:,} | " + " | ".join(f"{sum(c) / 1e6:.4g} M ({c[1] / sum(c):.0%})" for c in costs) + " |"


def protocol(rate: float) -> Iterator[str]:
    """Yield a table of the whole protocol by dataset: calls, operations, and days on so many GPUs of a rate."""
    days = " | ".join(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)
    yield f"| dataset | calls for samples | for instruments | FLOPs | days on {days} |"
    yield "|---" * (4 + len(GPUS)) + "|"
    for dataset, (preset, parts) in DATASETS.items():
        costs = [calls(preset, parts, steps) for steps in STEPS]
        samples, instruments = (MODELS * sum(part) for part in zip(*costs, strict=True))
        work = (samples + instruments) * flops(PRESETS[preset].network)
        spent = " | ".join(f"{work / rate / gpus / 86400:.3g}" for gpus in GPUS)
        yield f"| {dataset} | {samples / 1e6:.1f} M | {instruments / 1e6:.1f} M | {work:.3g} | {spent} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.protocol", description=main.__doc__)
    parser.add_argument(
        "--rate", type=float, default=RATE, help="sustained FLOP/s of one GPU, an assumption (default %(default)g)"
    )
    rate = parser.parse_args(argv).rate
    if not rate > 0:
        parser.error("--rate must be positive")
    for table in (network_table(), growth(), protocol(rate)):
        print("\n".join(table), end="\n\n")


if __name__ == "__main__":
    main()
