"""What the instruments cost: the suite's walk with them against the same without, and against bare network calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from bench.runtime.devices import full_float32, keep_freed_memory
from benchmarks.comparison import Comparison, Setting, compare
from benchmarks.speed.isolated import Make, contestant
from benchmarks.speed.walks import Subject, digits, images, ours

_COST = 1.03


def instruments(setting: Setting) -> Iterator[Comparison]:
    """Compare walks of every network, the embedded one included; a ratio of .97 says that instruments cost 3 %."""
    embedded = digits(setting)
    for subject in (*images(setting), embedded):
        goal = None if subject is embedded else 1 / _COST
        peers: dict[str, tuple[Make, float | None]] = {
            "no instruments": (partial(ours, subject, "ddpm", instruments=False), goal),
            "network calls alone": (partial(bare, subject), None),
        }
        with contestant(partial(ours, subject, "ddpm"), setting) as watched:
            for peer, (make, wanted) in peers.items():
                with contestant(make, setting) as theirs:
                    yield compare(
                        "instruments", f"ddpm, {subject.name}", peer, watched, theirs, setting, pairs=setting.many,
                        images=subject.batch, goal=wanted,
                    )  # fmt: skip


def bare(subject: Subject) -> Callable[[], None]:
    """Return as many calls of the network as a walk makes, and nothing else, in a process set up as the suite's."""
    full_float32()
    keep_freed_memory()
    x = torch.randn(subject.batch, *subject.shape, device=subject.device)
    t = torch.full((subject.batch,), 500, device=subject.device)

    @torch.no_grad()
    def call() -> None:
        for _ in range(subject.steps):
            subject.network(x, t)

    return call
