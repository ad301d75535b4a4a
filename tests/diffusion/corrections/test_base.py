"""What every correction owes beside the rules of bench.check, alone and with others; a new class goes into CASES."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import pairwise, product
from typing import Any

import pytest
import torch

from bench.diffusion import corrections
from bench.diffusion.corrections import (
    Correction,
    DifferentialCorrection,
    EpsilonScaling,
    FinalStd,
    FirstCallScaling,
    InOrder,
    InputPerturbation,
    NoiseAwareness,
    NoiseScaling,
    PiecewiseCorrection,
    PixelCorrection,
    ReverseStdCorrection,
    ShiftedTarget,
    SigmaLying,
    TemporalRescaling,
    TimeShift,
    VarianceNormalisation,
    VelocityScaling,
    X0Scaling,
    X0StdMatching,
)
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, teacher_forced, walk
from bench.diffusion.schedules import edm_levels, flow_grid, flow_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, DPMSolverPP2M, Euler, FlowSDE, Heun, UniPC
from bench.diffusion.types import CLEAN, Call, Level, Prediction, batched

STEPS, SHAPE = 5, (1, 4, 4)
FRAMES = {
    "vp": (levels("cosine", 1000, STEPS), levels("cosine", 1000, 1000)[:-1]),
    "edm": (edm_levels(STEPS), edm_levels(1000)[:-1]),
    "flow": (flow_levels("flow", STEPS), flow_grid()),
}
SOLVERS = {
    "ddpm learned": Ancestral("learned"),
    "ddpm fixed-small": Ancestral("fixed-small"),
    "ddpm fixed-large": Ancestral("fixed-large"),
    "ddim 0": DDIM(),
    "ddim .5": DDIM(0.5),
    "euler": Euler(),
    "heun": Heun(),
    "dpmpp-2m": DPMSolverPP2M(),
    "unipc": UniPC(),
    "sde": FlowSDE(),
}


class Kept(Draws):
    """Random numbers that are made once for all the walks here; nothing may write to them."""

    def normal(self, purpose, step, shape):
        return drawn(self.noise, tuple(self.samples.tolist()), purpose, step, tuple(shape))


@cache
def drawn(noise, samples, purpose, step, shape):
    return Draws(noise, torch.tensor(samples)).normal(purpose, step, shape)


DRAWS, OTHERS = Kept(Noise(0), torch.arange(3)), Kept(Noise(1), torch.arange(3, 6))
Make = Callable[[Any, Any], Correction]  # from (levels, grid)


QUIET = ("ddim 0", "euler", "heun", "dpmpp-2m", "unipc")  # solvers that draw no noise


@dataclass(frozen=True)
class Case:
    """A correction at work, and what it is not for.

    ``refuses`` names solvers or frames, each with what the reason says; ``idle`` solvers that take nothing of what it
    changes, unless clipping carries it over. Multistep solvers refuse what moves states.
    """

    active: Make
    refuses: Mapping[str, str] = field(default_factory=dict)
    idle: tuple[str, ...] = ()


CASES: Mapping[type[Correction], Case] = {
    EpsilonScaling: Case(lambda path, _: EpsilonScaling(path, 1.02, 1e-3)),
    X0Scaling: Case(lambda path, _: X0Scaling(path, 1.02, 1e-3), idle=("euler", "heun")),  # but for those of a flow
    VelocityScaling: Case(
        lambda path, _: VelocityScaling(path, 1.02, 1e-3),
        refuses={"vp": "velocity scaling is for the levels of EDM and of flows"},
    ),
    FirstCallScaling: Case(lambda path, _: FirstCallScaling(path, 1.02, 1e-3)),
    InputPerturbation: Case(lambda _, grid: InputPerturbation(grid, 0.3)),
    TimeShift: Case(lambda path, grid: TimeShift(path, grid, window=150, cutoff=300)),
    ShiftedTarget: Case(
        lambda path, grid: ShiftedTarget(path, grid, window=150, cutoff=300), refuses={"heun": "no corrected steps"}
    ),
    VarianceNormalisation: Case(lambda path, _: VarianceNormalisation(path, data_variance=0.25, cutoff=250)),
    X0StdMatching: Case(lambda *_: X0StdMatching([(0, 0.5), (999, 0.3)])),
    FinalStd: Case(lambda *_: FinalStd(0.5)),
    DifferentialCorrection: Case(lambda path, _: DifferentialCorrection(path, 0.05, 0.1)),
    ReverseStdCorrection: Case(
        lambda path, _: ReverseStdCorrection(path, 0.05, 0.1),
        refuses={"edm": "variance-preserving levels", "flow": "variance-preserving levels"},
    ),
    PiecewiseCorrection: Case(lambda path, _: PiecewiseCorrection(path, 0.05, 0.1, threshold=400)),
    PixelCorrection: Case(lambda path, _: PixelCorrection(path, 0.05)),
    NoiseAwareness: Case(lambda *_: NoiseAwareness(0.5)),
    NoiseScaling: Case(lambda *_: NoiseScaling(1.1), idle=QUIET),
    SigmaLying: Case(lambda _, grid: SigmaLying(grid, 0.1)),
    TemporalRescaling: Case(lambda *_: TemporalRescaling(0.9)),
}


def test_every_correction_has_a_case():
    exported = {getattr(corrections, name) for name in corrections.__all__}
    classes = {thing for thing in exported if isinstance(thing, type) and issubclass(thing, Correction)}
    assert classes - {Correction, InOrder} == set(CASES)


def network(x, level, cond=None):
    """Tame at any noise, for levels of floats or of one an image; what it says depends on all it is told."""
    size = (level.alpha**2 + level.sigma**2) ** 0.5
    x0 = 1.5 * torch.tanh(0.9 * x / size + 0.002 * level.t)
    return Prediction((x - level.alpha * x0) / level.sigma, x0, torch.cos(x / size))


def solver_of(frame, name):
    """Return a solver in its form for a frame."""
    solver = SOLVERS[name]
    return replace(solver, straight=frame == "flow") if isinstance(solver, Euler) else solver


def exists(frame, name):
    """Tell whether a frame has a solver: a flow has no learned variance, and others no flow's SDE."""
    return not (name == "sde" and frame != "flow") and not (name == "ddpm learned" and frame == "flow")


def steps_of(frame, solver, correction, clip=True, draws=DRAWS, dtype=torch.float32):
    path, _ = FRAMES[frame]
    x = prior(path[0], draws, SHAPE).to(dtype)
    return walk(network, path, x, solver_of(frame, solver), draws, clip=clip, correction=correction)


def states(*args, **kwargs):
    return [step.x_next for step in steps_of(*args, **kwargs)]


def bitwise(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def reason(kind, frame, solver):
    said = CASES[kind].refuses.get(frame) or CASES[kind].refuses.get(solver)
    if said is None and SOLVERS[solver].multistep and at_work(kind, frame).moves:
        return "leave the time shift out|leave out remedies that move them"
    return said


def everywhere(*solvers):
    """Run a test for all corrections in both frames with some solvers, but where a correction refuses."""
    found = [(k, f, s) for k, f, s in product(CASES, FRAMES, solvers) if exists(f, s) and not reason(k, f, s)]
    names = [f"{kind.__name__}-{frame}-{solver}" for kind, frame, solver in found]
    return pytest.mark.parametrize(("kind", "frame", "solver"), found, ids=names)


@cache
def at_work(kind, frame):
    return CASES[kind].active(*FRAMES[frame])


@pytest.mark.parametrize("correction", [Correction(), InOrder([]), InOrder([Correction()])])
def test_none_is_the_plain_sampler_bit_for_bit(correction):
    assert bitwise(states("vp", "ddpm learned", None), states("vp", "ddpm learned", correction))


@everywhere(*SOLVERS)
def test_it_works_with_every_sampler(kind, frame, solver):
    correction = at_work(kind, frame)
    made, plain = (states(frame, solver, hooks, clip=False) for hooks in (correction, None))
    for walked in (made, states(frame, solver, correction)):
        assert all(state.isfinite().all() for state in walked)
        assert [state.dtype for state in walked] == [state.dtype for state in plain]
    is_idle = solver in CASES[kind].idle and not (kind is X0Scaling and frame == "flow")
    assert bitwise(made, plain) is is_idle


REFUSED = [(k, f, s) for k, f, s in product(CASES, FRAMES, SOLVERS) if exists(f, s) and reason(k, f, s)]


@pytest.mark.parametrize(("kind", "frame", "solver"), REFUSED)
def test_or_says_why_not(kind, frame, solver):
    with pytest.raises(ValueError, match=reason(kind, frame, solver)) as caught:
        states(frame, solver, at_work(kind, frame))
    assert "\n" not in str(caught.value)


@everywhere("ddim 0", "heun")
def test_it_works_on_real_noised_states_too(kind, frame, solver):
    path, _ = FRAMES[frame]
    x0 = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    steps = list(teacher_forced(network, path, x0, solver_of(frame, solver), DRAWS, correction=at_work(kind, frame)))
    assert sum(step.completes for step in steps) == STEPS
    assert all(step.x_next.isfinite().all() for step in steps)


@everywhere("ddpm learned", "heun")
def test_one_object_serves_interleaved_walks(kind, frame, solver):
    """Nothing is carried from call to call: two batches step by step in turn are the two walks."""
    correction = at_work(kind, frame)
    apart = [states(frame, solver, correction, draws=draws) for draws in (DRAWS, OTHERS)]
    turns = zip(*(steps_of(frame, solver, correction, draws=draws) for draws in (DRAWS, OTHERS)), strict=True)
    for i, (one, other) in enumerate(turns):
        assert torch.equal(one.x_next, apart[0][i])
        assert torch.equal(other.x_next, apart[1][i])


@everywhere("ddim 0")
def test_no_hook_asks_for_a_number_from_the_device(kind, frame, solver):
    """The meta device has shapes and no numbers: ``.item()``, ``if tensor`` and copies to the host raise on it."""
    correction, (path, _) = at_work(kind, frame), FRAMES[frame]
    for before, after in pairwise(path):
        x, call = correction.before(torch.empty(2, *SHAPE, device="meta"), Call(0, before, after, True))
        pred = correction.ask(network, x, call.level)
        x0, eps = correction.prediction(pred, x, call)
        x_next = correction.after(x0, replace(pred, x0=x0, eps=eps), call)
        assert {tensor.device.type for tensor in (x, x0, eps, x_next)} == {"meta"}


@everywhere("ddim 0")
def test_levels_of_one_an_image_are_host_levels_image_by_image(kind, frame, solver):
    """As a time shift leaves them. Float64; t and the logarithms of sigma / alpha lose a few roundings: 1e-9."""
    correction, (path, grid) = at_work(kind, frame), FRAMES[frame]
    chosen = [(grid[at], grid[at + 60]) for at in (150, 500, 900)]
    x = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def outcome(x, level, after):
        pred = correction.ask(network, x, level)
        x0, eps = correction.prediction(pred, x, Call(0, level, after, True))
        moved = correction.after(x + 1, replace(pred, x0=x0, eps=eps), Call(0, path[1], after, True))
        return torch.stack([x0, eps, moved], 1)

    columns = torch.tensor([[(c.t, c.alpha, c.sigma) for c in pair] for pair in chosen], dtype=torch.float64)
    together = outcome(x, *(batched(*column.T.reshape(3, 3, 1, 1, 1)) for column in columns.unbind(1)))
    alone = torch.cat([outcome(x[k : k + 1], *pair) for k, pair in enumerate(chosen)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


NAN, INF, VP = math.nan, math.inf, FRAMES["vp"]
IMPOSSIBLE = [
    (partial(InputPerturbation, VP[1]), [(-0.1,), (1e200,), (INF,), (NAN,)], "gamma must lie between 0 and"),
    (TemporalRescaling, [(0, 1), (-1, 1), (NAN, 1), (0.9, 0), (0.9, INF)], "must lie between"),
    *(
        (partial(kind, *VP), [(-1, 0), (NAN, 0), (INF, 0), (2, -1), (2, NAN)], "finite numbers of at least 0")
        for kind in (TimeShift, ShiftedTarget)
    ),
    (partial(VarianceNormalisation, VP[0]), [(-1, 0), (NAN, 0), (INF, 0), (1, -1), (1, NAN)], "finite and at least 0"),
    (lambda *r: X0StdMatching([*r]),
     [(), ((1, 0.5), (1, 0.6)), ((1, -0.5),), ((1, NAN),), ((NAN, 0.5),)], "pairs of a t and a std"),
    (FinalStd, [(-1,), (NAN,), (INF,)], "final std must be finite"),
    (partial(EpsilonScaling, VP[0]),
     [(0, 0), (-1, 0), (1, -0.3), (-0.1, 1), (INF, 0), (NAN, 0)], "must stay positive and finite"),
    (partial(SigmaLying, VP[1]), [(1,), (-1,), (NAN,)], "d must lie between -1 and 1"),
    (NoiseAwareness, [(-0.1,), (NAN,), (INF,)], r"at least 0.*0 switches it off"),
    (NoiseScaling, [(0,), (-1,), (NAN,), (INF,)], "finite number above 0"),
    (partial(PiecewiseCorrection, VP[0], 0.1, 0.2), [(NAN,), (INF,)], "threshold must be finite"),
    *(
        (partial(kind, VP[0]), [(INF,), (NAN,), *([(0.1, NAN)] if kind is DifferentialCorrection else [])],
         "must be finite")
        for kind in (DifferentialCorrection, ReverseStdCorrection, PixelCorrection)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "constants", "message"), IMPOSSIBLE)
def test_impossible_constants_are_refused(make, constants, message):
    for values in constants:
        with pytest.raises(ValueError, match=message):
            make(*values)


@pytest.mark.parametrize(
    ("frame", "solver"), [("vp", "ddpm learned"), ("vp", "ddim .5"), ("edm", "heun"), ("flow", "sde")]
)
def test_any_two_go_together(frame, solver):
    for first, second in product([kind for kind in CASES if not reason(kind, frame, solver)], repeat=2):
        if {first, second} <= {TimeShift, ShiftedTarget}:  # one time shift a walk: refused
            continue
        row = InOrder([at_work(first, frame), at_work(second, frame)])
        assert all(state.isfinite().all() for state in states(frame, solver, row)), (first, second)


def test_rows_of_rows_are_one_row():
    a, b, c = (at_work(kind, "vp") for kind in (TimeShift, InputPerturbation, DifferentialCorrection))
    row = states("vp", "ddim .5", InOrder([a, b, c]))
    assert bitwise(row, states("vp", "ddim .5", InOrder([InOrder([a, b]), c])))
    assert bitwise(row, states("vp", "ddim .5", InOrder([a, InOrder([b, c])])))


def test_predictions_are_changed_in_the_stated_order():
    # eps = .5 at (alpha, sigma) = (.6, .8) and x = 1. A divisor of 2 in x0 alone, one of 4 in both:
    # first x0, then both: x0 and eps are made anew from .5 / 4 = .125: x0 = (1 - .8 * .125) / .6 = 1.5.
    # First both, then x0 of what is .125 now: .0625, x0 = (1 - .8 * .0625) / .6 = 1.583333, eps = .125.
    level = Level(1, 0.6, 0.8)
    path, x = (level, CLEAN), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    in_x0, both = X0Scaling(path, 2.0), EpsilonScaling(path, 4.0)
    given = Prediction(0.5 * x, (x - 0.8 * 0.5 * x) / 0.6), x, Call(0, level, CLEAN, True)
    for row, x0 in (([in_x0, both], 1.5), ([both, in_x0], 1.583333)):
        got = InOrder(row).prediction(*given)
        assert (got[0].item(), got[1].item()) == (pytest.approx(x0, abs=1e-6), 0.125)


def test_states_are_changed_in_the_stated_order():
    # x_next = (3, 1), x0 = (0, 0), reached level (.8, .6), variance wanted .64 * 1 + .36 = 1.
    # First x += .5 (x - x0) = (4.5, 1.5), of std 3 / sqrt(2): scaled to (2.121320, .707107).
    # First scaled by 1 / sqrt(2) to (2.121320, .707107), then one and a half times that: (3.181981, 1.060660).
    path = (Level(2, 0.6, 0.8), Level(1, 0.8, 0.6), CLEAN)
    x = torch.tensor([3.0, 1.0], dtype=torch.float64).view(1, 1, 1, 2)
    away, scaled = PixelCorrection(path, 0.5), VarianceNormalisation(path, data_variance=1.0, cutoff=0)
    given = x, Prediction(x, 0 * x), Call(0, path[0], path[1], True)
    for row, wanted in (([away, scaled], [2.121320, 0.707107]), ([scaled, away], [3.181981, 1.060660])):
        assert InOrder(row).after(*given).flatten().tolist() == pytest.approx(wanted, abs=1e-6)


class Double(Correction):
    """Doubles the state, moves the level to t = 7, and shows the network twice what it is given."""

    def before(self, x, call):
        return 2 * x, replace(call, level=Level(7, 0.6, 0.8))

    def ask(self, network, x, level):
        return network(2 * x, level)


class AddLevel(Correction):
    """Adds the level's t to the state, and one to what the network is shown."""

    def before(self, x, call):
        return x + call.level.t, call

    def ask(self, network, x, level):
        return network(x + 1, level)


def test_states_and_levels_are_moved_in_the_stated_order():
    # From x = 3 at t = 5: doubled and moved, then t added: 6 + 7. First 3 + 5, then doubled: 16.
    x, call = torch.tensor(3.0), Call(0, Level(5, 0.8, 0.6), CLEAN, True)
    assert InOrder([Double(), AddLevel()]).before(x, call)[0].item() == 13
    assert InOrder([AddLevel(), Double()]).before(x, call)[0].item() == 16


def test_the_last_one_asks_next_to_the_network():
    # The first is asked first and asks through the second: 2 x, then + 1. The other way round: x + 1, then doubled.
    seen = []

    def recording(x, level):
        seen.append(x.item())
        return Prediction(x, x)

    x, level = torch.tensor(3.0), Level(5, 0.8, 0.6)
    for row in ([Double(), AddLevel()], [AddLevel(), Double()], [Double(), InOrder([AddLevel(), Double()])]):
        InOrder(row).ask(recording, x, level)
    assert seen == [7, 8, 14]
