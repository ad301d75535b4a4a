"""Ratios of speed and memory, each measured in one run: ``python benchmarks/throughput.py``.

Interleaved pairs, A B A B ..., and the median of their ratios, so that a machine whose speed drifts does no harm.
Networks have random weights; only their shape matters here.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Ancestral, Draws, prior, walk
from bench.diffusion.schedules import levels
from bench.diffusion.types import Probe
from bench.measure.probes import PixelProbe, ScalarProbe
from bench.models.denoisers import EpsDenoiser
from bench.models.networks import adm_unet
from bench.models.recipes import DIGITS_NETWORK

__all__ = ["main"]

_STEPS = 10
_LARGE: dict[str, Any] = {
    **DIGITS_NETWORK,
    "image_size": 32,
    "in_channels": 3,
    "out_channels": 6,
    "model_channels": 64,
    "channel_mult": (1, 2, 2, 2),
    "attention_resolutions": (2, 4),
}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _ratio(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> tuple[float, float, float]:
    """Return (median, lowest, highest) of theirs / ours: how many times as fast ours is."""
    ours()
    theirs()
    ratios = []
    for _ in range(pairs):
        mine = _seconds(ours)
        ratios.append(_seconds(theirs) / mine)
    return statistics.median(ratios), min(ratios), max(ratios)


def _instrumented(network: Any, batch: int, shape: Sequence[int], variance: str) -> None:
    """Walk with every probe looking on."""
    path = levels("cosine", 1000, _STEPS)
    draws = Draws(Noise(0), torch.arange(batch))
    probes: list[Probe] = [ScalarProbe(_STEPS, torch.zeros(*shape)), PixelProbe(range(_STEPS), shape, paired=False)]
    for step in walk(EpsDenoiser(network), path, prior(path[0], draws, shape), Ancestral(variance), draws):
        for probe in probes:
            probe.update(step)


@torch.no_grad()
def _bare(network: Any, batch: int, shape: Sequence[int]) -> None:
    """Call the network alone, as often as the walk does."""
    x, t = torch.randn(batch, *shape), torch.full((batch,), 500)
    for _ in range(_STEPS):
        network(x, t)


def _pipeline(network: Any) -> Any:
    """Build the library's sampler around the same network, without its own bar and PIL conversion."""
    import diffusers

    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="fixed_small")
    pipeline: Any = diffusers.DDPMPipeline(unet=network, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _against_bare(name: str, config: Mapping[str, Any], shape: Sequence[int], batch: int, pairs: int) -> None:
    network = adm_unet(config).eval()
    median, low, high = _ratio(
        lambda: _instrumented(network, batch, shape, "learned"), lambda: _bare(network, batch, shape), pairs
    )
    print(f"instrumented walk / bare network calls, {name}: {median:.3f} ({low:.3f}..{high:.3f})", flush=True)


def _against_pipeline(shape: Sequence[int], batch: int, pairs: int) -> None:
    network = adm_unet({**_LARGE, "out_channels": 3}).eval()
    pipeline = _pipeline(network)
    median, low, high = _ratio(
        lambda: _instrumented(network, batch, shape, "fixed-small"),
        lambda: pipeline(batch_size=batch, num_inference_steps=_STEPS, output_type="np"),
        pairs,
    )
    name = "32x32x3, width 64"
    print(f"instrumented walk / diffusers.DDPMPipeline, {name}: {median:.3f} ({low:.3f}..{high:.3f})", flush=True)


def _memory(samples: int) -> float:
    """Return the peak memory of an instrumented run of so many samples, MiB, in a process of its own."""
    code = (
        "import sys; from bench.suite.cli import run;"
        f"flags = ['--models', 'adm', '--steps', '3', '--samples', '{samples}', '--quiet', '--out', sys.argv[1]];"
        "sys.exit(run(flags)[0])"
    )
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code, f"{folder}/run"], check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=7, help="interleaved pairs a ratio (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="batch at 32x32 (default %(default)s)")
    args = parser.parse_args(argv)
    _against_bare("digits network, 8x8", DIGITS_NETWORK, (1, 8, 8), 128, args.pairs)
    _against_bare("32x32x3, width 64", _LARGE, (3, 32, 32), args.batch, args.pairs)
    _against_pipeline((3, 32, 32), args.batch, args.pairs)
    small, large = _memory(500), _memory(5000)
    beyond = large - small - 4500 * 8 * 8 * 3 / 2**20
    print(f"peak memory, 500 to 5000 samples: {small:.0f} to {large:.0f} MiB; beyond the images {beyond:.1f} MiB")


if __name__ == "__main__":
    main()
