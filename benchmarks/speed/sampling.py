"""Sampling, our instruments on, against what a user would otherwise sample with: the same weights, steps and batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

from bench.models.acceleration import CompileError
from benchmarks.comparison import Comparison, Setting, compare
from benchmarks.speed.isolated import Make, contestant
from benchmarks.speed.peers import by_hand, ddim_pipeline, ddpm_pipeline, has_k_diffusion, k_sampler
from benchmarks.speed.walks import images, ours

# mode, its precision, whether compiled, the ratio to aim at
_MODES = (("compiled", "fp32", True, 1.1), ("bf16", "bf16", False, 1.5), ("bf16 compiled", "bf16", True, None))


def sampling(setting: Setting) -> Iterator[Comparison]:
    """Compare eager float32 walks: each of our solvers with the peers that do the same."""
    goal = 2.0 if setting.device.type == "cuda" else 1.0
    if not has_k_diffusion():
        print("k-diffusion is not installed, so it is left out (docs/performance.md)", file=sys.stderr)
    for subject in images(setting):
        rounds: list[tuple[str, str, Make, Make, float | None]] = [
            ("ddpm", "diffusers.DDPMPipeline", partial(ours, subject, "ddpm"), partial(ddpm_pipeline, subject), goal),
            ("ddim", "diffusers.DDIMPipeline", partial(ours, subject, "ddim"), partial(ddim_pipeline, subject), goal),
            ("ddpm", "a loop by hand", partial(ours, subject, "ddpm"), partial(by_hand, subject), None),
        ]
        for name in ("euler", "heun") if has_k_diffusion() else ():
            walk, sampler = partial(ours, subject, name, clip=False), partial(k_sampler, subject, f"sample_{name}")
            rounds.append((name, f"k_diffusion.sample_{name}", walk, sampler, None))
        for solver, peer, mine, theirs, wanted in rounds:
            yield _round("sampling", f"{solver}, {subject.name}", peer, mine, theirs, setting, wanted)


def modes(setting: Setting) -> Iterator[Comparison]:
    """Compare lower precision and compiled networks with the pipeline as it comes, and with it in the same mode."""
    for subject in images(setting):
        for mode, precision, compiles, goal in _MODES:
            mine = partial(ours, subject, "ddpm", precision=precision, compiled=compiles)
            peers: dict[str, tuple[Make, float | None]] = {"eager fp32": (partial(ddpm_pipeline, subject), goal)}
            if mode == "bf16 compiled":
                peers[mode] = (partial(ddpm_pipeline, subject, autocast=True, compiled=True), None)
            for how, (theirs, wanted) in peers.items():
                name, peer = f"ddpm {mode}, {subject.name}", f"diffusers.DDPMPipeline, {how}"
                try:
                    yield _round("modes", name, peer, mine, theirs, setting, wanted)
                except CompileError as error:
                    print(f"{name} is left out: {error}", file=sys.stderr)


def _round(
    part: str, name: str, peer: str, mine: Make, theirs: Make, setting: Setting, goal: float | None
) -> Comparison:
    with contestant(mine, setting) as our_call, contestant(theirs, setting) as their_call:
        return compare(part, name, peer, our_call, their_call, setting, images=setting.batch, goal=goal)
