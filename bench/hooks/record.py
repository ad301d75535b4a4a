"""``record``: a diffusers pipeline, a k-diffusion sampler or a loop of one's own, measured where it runs."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bench.diffusion.solvers import DDIM, Solver
from bench.diffusion.types import CLEAN, Level, Step
from bench.hooks.capture import Capture
from bench.hooks.custom_loop import CustomLoop, Network
from bench.hooks.frames import HookError
from bench.hooks.loops import Loop, Tape, force
from bench.hooks.real_data import RealData
from bench.hooks.results import LoopCell, plain_settings, write_cell, write_exact
from bench.measure.instruments.gaussian import LARGEST
from bench.measure.instruments.step_table import PixelStatistics
from bench.runtime.errors import reason
from bench.suite.cells.records import Records
from bench.suite.plan import Instruments, recorded_indices
from bench.suite.run import refuse_file
from bench.suite.settings import ConfigError, check_name

_NAME = re.compile("(Discrete)?Scheduler$")
_DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


@contextmanager
def record(
    pipe: Any = None,
    *,
    real: Any = None,
    out: str | Path | None = None,
    forced: int = 256,
    seed: int = 0,
    name: str | None = None,
    network: Network | None = None,
    exact: bool = True,
    samples: bool = False,
) -> Iterator[Log]:
    """Record the sampling loops that run in the block; nothing of their results changes, bit for bit.

    Args:
        pipe: a diffusers pipeline with a ``scheduler`` and a ``unet`` or ``transformer``; None for a loop of one's own,
            which calls :meth:`Log.step`, or gives :attr:`Log.callback` to a k-diffusion sampler.
        real: images [N, C, H, W], uint8 or floats as the network takes them; for latent or conditional networks a tuple
            of latents, a mapping from names of the network's arguments to tensors of N rows, and, where the loop is
            guided, another mapping for no condition. Without ``real`` the free arm alone is recorded.
        out: a results folder, which ``python -m analysis`` draws. Several loops may share it. With ``real`` it gets
            the samples' features and distances: of an embedded classifier for their size and channels, else moments.
        forced: how many real images the network is asked about, after the loop.
        seed: names the noise of the loop; loops of one folder and seed are paired where they began with the same.
        name: what tables call the loop; by default the scheduler's name.
        network: of a loop of one's own, for the teacher-forced arm: takes a state [B, C, H, W] and its :class:`Level`.
        exact: whether a results folder gets exact denoisers of the real data, minutes of work for 32x32x3 on a CPU.
        samples: whether it gets the images too; memory grows with their number then.

    Yields:
        The log; its table is complete after the block.

    Raises:
        HookError: before the block for what cannot be recorded, after it for loops that were not whole. An error of the
            user's loop is handed on, and nothing is written.
    """
    log = Log(real, out, forced, seed, name, network, exact, samples)
    if pipe is None:
        yield log
        log.finish_own()
        return
    capture = Capture(pipe, log.begin, log.take)
    with capture.installed():
        yield log
    log.finish_pipeline(capture)


class Log:
    """What was recorded.

    Attributes:
        notes: one line for each thing that was left out, and why.
        guidance: mean weight w of u + w (c - u), None without guidance.
        samples: images that the loops made.
    """

    def __init__(
        self,
        real: Any,
        out: str | Path | None,
        forced: int,
        seed: int,
        name: str | None,
        network: Network | None,
        exact: bool,
        samples: bool,
    ) -> None:
        if name is not None:
            check_name(name, "name=")
        if type(forced) is not int or forced < 2 or type(seed) is not int or seed < 0:
            raise HookError(
                f"forced must be a number of at least 2 and seed of at least 0, not {forced!r} and {seed!r}"
            )
        self.out = None if out is None else Path(out)
        if self.out is not None:
            with _named_out():
                refuse_file(self.out)
        self.real = None if real is None else RealData.of(real, self.out is not None)
        self._samples = None if self.real is None else self.real.samples(samples)
        self.seed, self.name, self.network, self.exact = seed, name, network, exact
        self.forced = 0 if self.real is None else min(forced, len(self.real.images))
        self.notes: list[str] = []
        if self.real is not None and self.real.note:
            self._note(self.real.note)
        self.guidance: float | None = None
        self.samples = 0
        self._started = time.perf_counter()
        self._tapes: dict[str, Tape] = {}
        self._batch = 1
        self._own = CustomLoop(self._open, self.take, self.real is not None)
        self._table: pd.DataFrame | None = None

    def table(self) -> pd.DataFrame:
        """Return the per-step table, with the columns of ``steps.csv``.

        Its arms are ``free`` and, with real data, ``forced-train``.

        Raises:
            HookError: the block has not ended, or it ended in an error.
        """
        if self._table is None:
            raise HookError("the table is there after the block, where it ended without an error")
        return self._table.copy()

    def begin(self, loop: Loop, x: Tensor) -> None:
        """Set up the free arm of a pipeline, at the first state x [B, C, H, W]."""
        steps = sum(call.completes for call in loop.frame.calls)
        self._open(x, loop.frame.stages, recorded_indices(steps)[0])

    def take(self, step: Step, scale: float | None, ends: bool) -> None:
        """Take a step of the free arm.

        Args:
            step: of one network call.
            scale: of the noise that the step's walk begins with, None after its first call.
            ends: whether it is the last call of its walk.
        """
        self._tapes["free"].update(step)
        if self._samples is not None and scale is not None:
            self._samples.begin(step.x / scale)
        if self._samples is not None and ends:
            self._samples.end(step.x_next)

    def _open(self, x: Tensor, stages: int = 1, chosen: list[int] | None = None) -> None:
        self._batch = len(x)
        if self.real is not None and self.real.images.shape[1:] != x.shape[1:]:
            raise HookError(
                f"the loop's states are {tuple(x.shape[1:])} and real images {tuple(self.real.images.shape[1:])}; give"
                " real= as the network takes it"
            )
        if min(x.shape[2:]) < 2:
            raise HookError(f"states of {tuple(x.shape[2:])} pixels are too small; at least 2x2 are needed")
        centre = torch.zeros_like(x[0], dtype=torch.float32)
        centre = centre if self.real is None else self.real.images.mean(0).to(x.device)
        self._tapes["free"] = Tape(centre, False, stages, chosen)
        if self.real is not None:
            self._tapes["forced-train"] = Tape(centre, True, stages, chosen)

    def step(
        self, *, t: float, alpha: float, sigma: float, x: Tensor, prediction: Tensor, x_next: Tensor, kind: str = "eps"
    ) -> None:
        """Record a step of a loop of one's own; the next step tells its next level, the last one ends in clean data.

        A level noisier than the one before begins another walk, of further images.

        Args:
            t: what the network was asked at, for the table.
            alpha: factor of the data in x = alpha x0 + sigma eps.
            sigma: factor of the noise, above 0.
            x: the state [B, C, H, W] before the step.
            prediction: the network's output, [B, C, H, W].
            x_next: the state after the step, another tensor than x.
            kind: what the output is: ``eps``, ``v``, ``x0`` or ``flow``.

        Raises:
            HookError: shapes that differ, an impossible level or kind, or walks of different levels.
        """
        try:
            level = Level(float(t), float(alpha), float(sigma))
        except (TypeError, ValueError):
            raise HookError("t, alpha and sigma must be numbers, the same for all images of a batch") from None
        self._own.add(level, x, prediction, x_next, kind)

    def callback(self, info: Mapping[str, Any]) -> None:
        """Record a step of a k-diffusion sampler, whose ``callback`` this is.

        It is called with ``x``, ``sigma_hat`` or ``sigma``, and ``denoised``. The state after a step is the ``x`` of
        the next call; the last step goes to clean data, that is to ``denoised``, as in all samplers there whose sigmas
        end in 0. Of a sampler with two network calls a step the first is seen.

        Raises:
            HookError: as for :meth:`step`.
        """
        self._own.callback(info)

    def finish_pipeline(self, capture: Capture) -> None:
        """Ask the network about real data, make the table, and write it where it shall go; called at the block's end.

        Raises:
            HookError: no whole loop was recorded, or values are not finite.
        """
        loop = capture.check()
        self.samples = capture.samples
        self.guidance = float(torch.stack(capture.weights).mean()) if capture.weights else None
        frame = loop.frame
        firsts = [call.level for call in frame.calls if call.stage == 0]
        asked = {(i, call.stage): call.level for i, call in zip(frame.indices, frame.calls, strict=True)}
        scheduler = type(capture.scheduler).__name__
        settings = {
            "network": type(capture.network).__name__, "scheduler": scheduler, "offset": loop.offset,
            "scheduler_settings": plain_settings(capture.scheduler.config),
            "arguments": plain_settings(loop.arguments),
            **({} if self.guidance is None else {"guidance": round(self.guidance, 3)}),
        }  # fmt: skip
        cell = self._cell(
            _NAME.sub("", scheduler), (*firsts, frame.calls[-1].level_next), asked, _DTYPES[capture.dtype], settings
        )

        def ask(real: RealData, tape: Tape, x0: Tensor, numbers: Tensor, rows: slice) -> None:
            force(loop, tape, x0, capture.ask(real, rows, self.guidance), numbers, self.seed, capture.dtype)

        self._force(ask)
        self._complete(cell, loop)

    def finish_own(self) -> None:
        """Do what :meth:`finish_pipeline` does, for a loop of one's own.

        Raises:
            HookError: no whole loop was recorded, or values are not finite.
        """
        own = self._own
        if own.refused:
            return  # its error was told
        own.end()
        if not own.levels:
            raise HookError(
                "nothing was recorded: give record a pipeline, call log.step(...) in your loop, or give a k-diffusion"
                " sampler callback=log.callback"
            )
        self.samples = own.samples
        solver, reason = own.update() if self.real else (None, "")
        if reason:
            self._note(f"no floors, and teacher-forced steps are DDIM's: {reason}")
        elif solver and self.out and self.exact and self.real and self.real.reference.law is None:
            self._note(f"no floors: the covariance of more than {LARGEST} values an image is not decomposed")

        def ask(real: RealData, tape: Tape, x0: Tensor, numbers: Tensor, rows: slice) -> None:
            if self.network is None:
                raise HookError("no network= was given to ask about real data")
            own.force(self.network, tape, x0, numbers, self.seed, solver or DDIM())

        self._force(ask)
        self._tapes["free"].count_down()
        asked = {(len(own.levels) - 1 - number, 0): level for number, level in enumerate(own.levels)}
        settings = {"levels": [[level.t, level.alpha, level.sigma] for level in own.levels], "prediction": own.kind}
        update = {"update": None if solver is None else type(solver).__name__}
        self._complete(self._cell("own", (*own.levels, CLEAN), asked, "fp32", {**settings, **update}), solver)

    @torch.no_grad()
    def _force(self, ask: Callable[[RealData, Tape, Tensor, Tensor, slice], None]) -> None:
        """Show real images to a network in batches of the loop's size; where that cannot be, say why."""
        if self.real is None:
            self._note("without real= the free arm alone is recorded: no teacher-forced arm, no floors")
            return
        device = self._tapes["free"].centre.device
        try:
            for first in range(0, self.forced, self._batch):
                rows = slice(first, min(first + self._batch, self.forced))
                numbers = 2 * torch.arange(rows.start, rows.stop, device=device)  # as the suite's training images draw
                ask(self.real, self._tapes["forced-train"], self.real.images[rows].to(device), numbers, rows)
        except HookError as error:
            self._tapes.pop("forced-train")
            self._note(f"no teacher-forced arm: {error}")

    def _note(self, line: str) -> None:
        self.notes.append(line)
        if sys.stderr.isatty():
            print(line, file=sys.stderr)

    def _cell(
        self, name: str, path: tuple[Level, ...], asked: Mapping[tuple[int, int], Level], precision: str, settings: Any
    ) -> LoopCell:
        data = "" if self.real is None else self.real.reference.data.content_hash()
        settings = {**settings, "forced": self.forced}
        return LoopCell(self.name or name, self.seed, self.samples, path, asked, data, precision, settings)

    def _complete(self, cell: LoopCell, walked: Loop | Solver | None) -> None:
        """Merge the arms into the table, and write a results folder if there is one.

        Args:
            cell: the loop.
            walked: what exact denoisers walk in, a pipeline's loop or the solver of one's own; None for nothing.
        """
        indices = recorded_indices(cell.steps)[0] if isinstance(walked, Loop) else list(range(cell.steps))
        data = _Unknown() if self.real is None else self.real.reference
        records = Records(cell, Instruments(tuple(indices), (), self.forced, 0, 0, 0, 0), data)
        for arm, tape in self._tapes.items():
            state = tape.state(indices, cell.steps)
            if not all(np.isfinite(state[f"scalars/{part}"]).all() for part in ("mean", "second")):
                raise HookError(f"values of the {arm} arm are not finite; check the network and its precision")
            records.add({f"{arm}/{name}": array for name, array in state.items()})
        self._table = records.table().dropna(subset="value", ignore_index=True)
        if self.out is None:
            return
        facts = {"seconds": round(time.perf_counter() - self._started, 3), "notes": self.notes}
        named = (self.out / "cells" / cell.name / "metrics.json").exists()
        if named:
            self._note(f"this loop takes the place of another called {cell.name}; name= keeps both")
        with _named_out("give this loop a name= of its own, " if named else ""):
            write_cell(self.out, cell, records, self._table, self._samples, facts)
            if walked is not None and self.real is not None and self.exact:
                write_exact(self.out, cell, walked, self.real, indices, self._tapes["free"].centre.device)


@contextmanager
def _named_out(hint: str = "") -> Iterator[None]:
    """Turn what the store refuses, or the disk, into one line that calls the folder as :func:`record` does."""
    try:
        yield
    except ConfigError as error:
        raise HookError(str(error).replace("choose another --out", f"{hint}choose another out=")) from None
    except OSError as error:
        raise HookError(f"cannot write {error.filename}: {reason(error)}; choose another out=") from None


class _Unknown:
    """The statistics of data that nobody gave: not a number, and so are the rows that need them."""

    statistics = PixelStatistics(np.array([math.nan]), np.array([math.nan]))
    spectrum = haar = np.array([math.nan])
