"""``--compile``: whether a run's networks are compiled, decided once for all its processes and interruptions."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.files.writing import read_json
from bench.models.acceleration import Accelerated, CompileError
from bench.models.checkpoints.adapter import Adapted
from bench.runtime.distributed import AgreedError
from bench.suite.cost import padded_calls, repays_compiling
from bench.suite.processes.ranks import Team
from bench.suite.registry.model import Model
from bench.suite.run import Run
from bench.suite.timing import seconds_a_call

__all__ = ["settle_compiling"]

_FEWEST = 100  # network calls, of a batch each; the time of fewer is not worth measuring
_PAIRS = 3  # of compiled calls against others


def settle_compiling(run: Run, team: Team) -> bool:
    """Compile a run's networks if that was asked for, or if the run is long enough to repay it.

    Under ``auto`` an earlier decision in the run's folder stands, so that an interruption changes nothing. Every
    process of a team must ask, and gets the same answer.

    Returns:
        Whether the networks are compiled, for ``compiled`` of ``run.json``.

    Raises:
        AgreedError: ``--compile on``, and they cannot be.
    """
    asked = run.request.compile
    earlier = _recorded(run) if asked == "auto" else None
    if not team.gather(["walks"] if team.leads and _walks(run) else []):
        return bool(earlier)  # of what was done
    if not team.gather(["compile"] if team.leads and _is_wanted(run, team.size, earlier) else []):
        return False
    problems = team.gather(_compile(run))
    if asked == "auto" and earlier is None and not problems:
        problems = team.gather(["compiled code is not faster here"] if team.leads and not _gains(run) else [])
    if not problems:
        return True
    for network in run.networks.values():
        network.stop_compiled()
    if asked == "on":
        raise AgreedError(f"--compile on: {problems[0]}; use --compile off")
    if team.leads:
        print(f"note: networks are not compiled ({problems[0]})", file=sys.stderr)
    return False


def _walks(run: Run) -> bool:
    """Tell whether there is anything left to ask networks."""
    cells = not run.fits and all(run.store.is_sampled(cell) for cell in run.cells)
    return not cells or any(extra.remaining(run.out) for extra in run.extras)


def _recorded(run: Run) -> bool | None:
    """Return what was decided when this very run was started, None where it was not."""
    record = read_json(run.out / "run.json") or {}
    decided = record.get("compiled") if record.get("hash") == run.hash() else None
    return decided if isinstance(decided, bool) else None


def _is_wanted(run: Run, processes: int, earlier: bool | None) -> bool:
    if run.request.compile != "auto":
        return run.request.compile == "on"
    if earlier is not None:
        return earlier
    calls = padded_calls(run)
    if run.fits or sum(calls.values()) < _FEWEST * _batch(run):
        return False
    networks, eager = _networks(run), 0.0
    for network, model in networks:
        images = sum(calls[other.name] for other in run.models if run.networks[other.name] is network)
        eager += images / _batch(run) * _seconds(run, network, model)
    architectures = {str(sorted(model.description.network.items(), key=str)): network for network, model in networks}
    shares = 1 if run.request.share is None else run.request.share.count
    return repays_compiling(eager / (processes * shares), [_layers(network) for network in architectures.values()])


def _networks(run: Run) -> list[tuple[Accelerated, Model]]:
    """Return the distinct networks, each with a model that has it."""
    return list({id(run.networks[model.name]): (run.networks[model.name], model) for model in run.models}.values())


def _layers(network: Accelerated) -> int:
    inner: Any = network.network.network if isinstance(network.network, Adapted) else network.network
    return sum(not list(module.children()) for module in inner.modules()) if isinstance(inner, nn.Module) else 0


def _batch(run: Run) -> int:
    """Return the size of the batches that nearly all samples are drawn in."""
    return run.request.batch if run.fits else min(run.request.batch, run.request.samples)


def _example(run: Run, model: Model) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what a network is called with."""
    count, device = _batch(run), run.device
    t = torch.full((count,), 1.0 if model.description.is_edm else 1, device=device)
    labels = torch.zeros(count, dtype=torch.long, device=device) if model.description.classes else None
    return torch.zeros(count, *run.data.shape, device=device), t, labels


@torch.no_grad()
def _seconds(run: Run, network: Accelerated, model: Model) -> float:
    example = _example(run, model)
    network.to(run.device)
    return seconds_a_call(partial(network, *example), run.device)


def _compile(run: Run) -> list[str]:
    """Compile every network; return what went wrong."""
    for network, model in _networks(run):
        try:
            network.to(run.device).compile(*_example(run, model))
        except CompileError as error:
            return [str(error)]
    return []


@torch.no_grad()
def _gains(run: Run) -> bool:
    """Tell whether compiled calls of the first network are faster than others, by pairs of them."""
    network, model = _networks(run)[0]
    example, device = _example(run, model), run.device
    ways = [partial(which, *example) for which in (network, Accelerated(network.network, network.precision))]
    pairs = [[seconds_a_call(way, device) for way in ways] for _ in range(_PAIRS)]
    return sorted(fast < slow for fast, slow in pairs)[_PAIRS // 2]
