"""MPS has no float64: stand-ins for its tensors refuse it, and what runs on a device must do without."""

import re
from pathlib import Path

import pytest
import torch
from cases import at_first
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import bench
from bench.diffusion.corrections import (
    DifferentialCorrection,
    EpsilonScaling,
    InputPerturbation,
    NoiseScaling,
    SigmaLying,
    TemporalRescaling,
    X0StdMatching,
)
from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.samplers import Draws, paired, prior, teacher_forced, walk
from bench.diffusion.schedules import edm_levels, flow_levels, levels
from bench.diffusion.solvers import (
    DDIM,
    Ancestral,
    Churn,
    DPMSolverPP2M,
    Euler,
    FlowSDE,
    Heun,
    PosteriorMean,
    UniPC,
)  # fmt: skip
from bench.diffusion.types import Prediction
from bench.measure.instruments.chains import image_errors
from bench.measure.instruments.moments import Moments
from bench.measure.instruments.probes import ErrorProbe, FiniteWatch, WalkProbe
from bench.measure.instruments.response import response_norms
from bench.models.checkpoints.formats import denoiser_of, describe, open_network
from bench.models.denoisers.calibration import slope_at

MPS = torch.device("mps")
SHAPE = (1, 8, 8)


class Mps(torch.Tensor):
    """A tensor that says it is on MPS, computes on the CPU, and fails where an operation gives float64."""

    @staticmethod
    def __new__(cls, inner):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=MPS
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return on_device(func, args, kwargs or {})


class Device(TorchFunctionMode):
    """Makes on the stand-in what is asked for on MPS, which torch may not have here."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_asked = any(map(is_mps, tree_leaves((args, kwargs))))
        if func in EARLY and not is_asked and any(isinstance(value, Mps) for value in args):
            out = func(*tree_map(inner, args), **kwargs)
            places = [value for value in args[1:] if isinstance(value, torch.device | torch.Tensor)]
            moves_away = func is torch.Tensor.to and places and not isinstance(places[0], Mps)
            return out if moves_away else there(func, out)
        if not is_asked:
            return func(*args, **kwargs)
        args, kwargs = tree_map(lambda value: torch.device("cpu") if is_mps(value) else value, (args, kwargs))
        return there(func, func(*args, **kwargs))


# These ask for the device before they dispatch.
EARLY = (
    torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.tolist, torch.Tensor.to, torch.Tensor.contiguous,
    nn.functional.scaled_dot_product_attention,
)  # fmt: skip


def inner(value):
    return value.inner if isinstance(value, Mps) else value


def is_mps(value):
    return isinstance(value, torch.device) and value.type == "mps"


def there(func, out):
    """Return what an operation gave as tensors of the device, which must not be float64."""
    wide = [value for value in tree_leaves(out) if isinstance(value, torch.Tensor) and value.dtype == torch.float64]
    assert not wide, f"float64 on MPS: {func}"
    return tree_map(lambda value: Mps(value) if type(value) in (torch.Tensor, nn.Parameter) else value, out)


def on_device(func, args, kwargs):
    """Run an operation on the CPU; what it gives is on the device unless it was moved away from there."""
    device = kwargs.get("device")
    is_there = any(isinstance(value, Mps) for value in tree_leaves((args, kwargs)))
    if device is not None:
        is_there = torch.device(device).type == "mps"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif func.overloadpacket is torch.ops.aten.copy_:
        is_there = isinstance(args[0], Mps)
    plain, named = tree_map(inner, (args, kwargs))
    out = func(*plain, **named)
    if not is_there:
        return out
    return there(func, out)


def test_the_stand_in_flags_float64():
    x = Mps(torch.ones(2))
    assert (x + 1).device.type == "mps"
    with pytest.raises(AssertionError, match="float64 on MPS"):
        x.double()
    assert x.cpu().double().dtype == torch.float64
    with Device():
        assert torch.zeros(2, device=x.device).device.type == "mps"
        with pytest.raises(AssertionError, match="float64 on MPS"):
            torch.zeros(2, device=x.device, dtype=torch.float64)
        with pytest.raises(AssertionError, match="float64 on MPS"):
            torch.ones(2, dtype=torch.float64).to(x.device)


def gaussian(x, level, cond=None):
    """The exact denoiser of unit normals, with a learned variance."""
    total = level.alpha**2 + level.sigma**2
    return Prediction(level.sigma * x / total, level.alpha * x / total, variance_fraction=x.clamp(-1, 1))


VP, EDM, FLOW = levels("cosine", 1000, "6"), edm_levels(6), flow_levels("flow", 6)
GRID = levels("cosine", 1000, 1000)[:-1]
WALKS = {
    "ddpm": (VP, Ancestral("learned"), None), "edm-heun": (EDM, Heun(Churn(10.0, 6)), None),
    "flow-sde": (FLOW, FlowSDE(), None), "edm-unipc": (EDM, UniPC(), None), "vp-dpmpp": (VP, DPMSolverPP2M(), None),
    "scaled": (VP, DDIM(0.0), EpsilonScaling(VP, 1.01)), "ddpm-fixed": (VP, Ancestral("fixed-small"), None),
    "ddpm-mean": (VP, PosteriorMean(), None), "ddim": (VP, DDIM(0.5), None), "edm-euler": (EDM, Euler(), None),
    "flow-heun": (FLOW, Heun(straight=True), None), "perturbed": (VP, DDIM(0.0), InputPerturbation(GRID, 0.1)),
    "lied": (VP, DDIM(0.0), SigmaLying(GRID)), "tsr": (VP, DDIM(0.0), TemporalRescaling()),
    "noise": (VP, DDIM(1.0), NoiseScaling()), "x0-std": (VP, DDIM(0.0), X0StdMatching([(0.0, 1.0), (999.0, 0.1)])),
    "dcw": (VP, DDIM(0.0), DifferentialCorrection(VP, 0.1)),
}  # fmt: skip


@pytest.mark.parametrize("name", at_first(WALKS, 6))
def test_walks_and_their_instruments_do_without(name):
    path, solver, correction = WALKS[name]
    with Device():
        draws = Draws(Noise(0), torch.arange(4, device=MPS))
        x0 = draws.normal(Purpose.START, 1, SHAPE).clamp(-1, 1)
        centre = torch.zeros(SHAPE, device=MPS)
        steps = len(path) - 1
        for pairs in (False, True):
            probe = WalkProbe(steps, range(steps), centre, pairs, solver.stages, fraction=True)
            errors, watch = ErrorProbe(range(steps)), FiniteWatch()
            start = paired(path[0], draws, x0) if pairs else prior(path[0], draws, SHAPE)
            shown = [walk(gaussian, path, start, solver, draws, correction=correction, x0=x0 if pairs else None)]
            shown += [teacher_forced(gaussian, path, x0, solver, draws, correction=correction)] if pairs else []
            for step in (step for steps_of_walk in shown for step in steps_of_walk):
                assert step.x_next.device.type == "mps"
                probe.update(step)
                watch.update(step, step.x_next)
                if pairs:
                    errors.update(step)
            assert watch.first() is None
            assert probe.state()["scalars/mean"].dtype == "float64"  # sums are on the CPU


@pytest.mark.ci
def test_the_network_and_what_is_asked_of_it_do_without():
    weights = Path(bench.__file__).parent / "models" / "weights" / "digits" / "adm.safetensors"
    description = describe(weights)
    with Device():
        denoiser = denoiser_of(open_network(weights, description), description, MPS)
        x0 = Draws(Noise(0), torch.arange(2, device=MPS)).normal(Purpose.START, 0, SHAPE)
        slope = slope_at(denoiser, x0, VP[2])
        moments = Moments(1, (), MPS)
        response_norms(denoiser, [(VP[1], VP[2])], x0, x0, moments, 2, lambda count: None)
    assert (slope.images, moments.state()["count"].tolist()) == (2, [2])


def test_errors_of_images_do_without():
    x = Mps(torch.ones(3, 1, 2, 2))
    assert image_errors(x, x * 0.5).tolist() == [[0.5, 0.25]] * 3


def test_nothing_is_widened_before_it_leaves_its_device():
    """``.cpu().double()``, never the other order."""
    for path in Path(bench.__file__).parent.rglob("*.py"):
        assert not re.search(r"\.double\(\)[\w.()]*\.cpu\(\)|float64\)[\w.()]*\.cpu\(\)", path.read_text()), path
