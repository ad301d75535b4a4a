"""What recording a loop costs: a loop of diffusers in ``bench.hooks.record`` against the same without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import torch

from bench.hooks import record
from bench.runtime.devices import full_float32, keep_freed_memory
from benchmarks.comparison import Comparison, Setting, compare
from benchmarks.speed.walks import Subject, images

_COST = 1.03
_SMALLER, _MORE = 4, 20  # batches than of other parts, and pairs


def hooks(setting: Setting) -> Iterator[Comparison]:
    """Compare loops at every width, without the teacher-forced arm; a ratio of .97 says that recording costs 3 %.

    On the CPU its own time is counted, in one process for both sides, so that what else runs there says little. Many
    pairs of short loops say more in the same time than a few of long ones, and more of what a loop costs once.
    """
    clock = time.process_time if setting.device.type == "cpu" else time.perf_counter
    largest = max(setting.widths)
    for subject in images(replace(setting, batch=max(1, setting.batch // _SMALLER))):
        yield compare(
            "hooks", f"ddim, {subject.name}", "not recorded", loop(subject, True), loop(subject, False), setting,
            pairs=_MORE * setting.pairs, images=subject.batch, clock=clock,
            goal=1 / _COST if subject.config["model_channels"] == largest else None,
        )  # fmt: skip


def loop(subject: Subject, recorded: bool) -> Callable[[], object]:
    """Return a DDIM loop of diffusers over a batch, recorded or not; the process is set up as the suite's."""
    from diffusers import DDIMScheduler  # slow to import: only whoever needs it pays

    full_float32()
    keep_freed_memory()
    pipe = SimpleNamespace(unet=subject.network, scheduler=DDIMScheduler())

    @torch.no_grad()
    def walk() -> None:
        pipe.scheduler.set_timesteps(subject.steps)
        x = torch.randn(subject.batch, *subject.shape, device=subject.device)
        for t in pipe.scheduler.timesteps:
            output = pipe.unet(x, t.expand(len(x)).to(x.device)).sample
            x = pipe.scheduler.step(output, t, x).prev_sample

    def watched() -> None:
        with record(pipe):
            walk()

    return watched if recorded else walk
