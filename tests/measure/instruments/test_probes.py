from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch

from bench.diffusion.types import Level, Prediction, Step
from bench.measure.instruments.probes import ErrorProbe, Selected, WalkProbe, spread_indices
from bench.measure.instruments.spectra import RadialBins
from bench.measure.instruments.step_table import GUIDED_SCALARS, SCALARS

SHAPE = (2, 4, 4)
LEVEL, LEVEL_NEXT = Level(700, 0.4, 0.9), Level(300, 0.8, 0.6)
CENTRE = torch.linspace(-0.5, 0.5, 32).reshape(SHAPE)
# Float32 reductions over 32 elements: a few eps = 1.2e-7 of the result.
SINGLE = {"rtol": 2e-6, "atol": 1e-7}


def make_step(images=6, i=1, seed=0, paired=True):
    """A step of random tensors: probes must not care whether a sampler could have made it."""
    g = torch.Generator().manual_seed(seed)
    x, x_next, eps, x0, x0_used, eps_used, real = (torch.randn(images, *SHAPE, generator=g) for _ in range(7))
    pred = Prediction(eps, x0, torch.rand(images, *SHAPE, generator=g))
    return Step(i, 0, LEVEL, LEVEL_NEXT, x, x_next, pred, x0_used, eps_used, real if paired else None)


def state_of(*steps, count=3, indices=(), paired=False, **more):
    """Return what a probe of the walk records of some steps."""
    probe = WalkProbe(count, indices, CENTRE, paired, **more)
    for step in steps:
        probe.update(step)
    return probe.state()


def norms(x):
    return x.flatten(1).double().norm(dim=1)


def expected_scalars(step):
    energy = (step.x_next - LEVEL_NEXT.alpha * CENTRE).double().square().mean((1, 2, 3))
    mse = (step.x0_used - step.x0).double().square().mean((1, 2, 3)) if step.x0 is not None else 0 * energy
    clipped = ((step.x0_used <= -1) | (step.x0_used >= 1)).double().mean((1, 2, 3))
    return {
        "eps_norm": norms(step.prediction.eps),
        "eps_used_norm": norms(step.eps_used),
        "x0_norm": norms(step.x0_used),
        "clipped": clipped,
        "energy": energy,
        "x0_mse": mse,
    }


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("name", SCALARS)
def test_scalar_probe_equals_direct_computation(name, paired):
    step = make_step(paired=paired)
    state = state_of(step)
    column, wanted = SCALARS.index(name), expected_scalars(step)[name]
    assert state["scalars/count"].tolist() == [0, 6, 0]
    np.testing.assert_allclose(state["scalars/mean"][1, column], wanted.mean(), **SINGLE)
    np.testing.assert_allclose(state["scalars/second"][1, column], wanted.square().mean(), **SINGLE)


@pytest.mark.parametrize("clip", [True, False])
def test_a_guided_walk_records_the_plain_prediction_beside_it(clip):
    """One of two steps was guided; ``Selected`` passes the plain rows on."""
    step, plain = make_step(), make_step(seed=1)
    guided = replace(step, prediction=replace(step.prediction, plain=plain.prediction, calls=2))
    probe = WalkProbe(3, [], CENTRE, paired=True, guided=True, clip=clip)
    for one in (make_step(i=2), guided):
        Selected(probe, slice(1, 4)).update(one)
    state, x0 = probe.state(), plain.prediction.x0[1:4]
    x0 = x0.clamp(-1, 1) if clip else x0
    expected = {
        "plain_eps_norm": norms(plain.prediction.eps[1:4]),
        "plain_x0_norm": norms(x0),
        "guidance_norm": norms(step.prediction.eps[1:4] - plain.prediction.eps[1:4]),
        "plain_x0_mse": (x0 - step.x0[1:4]).double().square().mean((1, 2, 3)),
    }
    assert tuple(expected) == GUIDED_SCALARS
    assert state["guided/count"].tolist() == [0, 3, 0]
    np.testing.assert_allclose(state["guided/mean"][1], [column.mean() for column in expected.values()], **SINGLE)
    assert "guided/count" not in WalkProbe(3, [], CENTRE, paired=True).state()


def test_an_element_exactly_at_the_limit_counts_as_clipped():
    step = make_step(images=1)
    step.x0_used.zero_()[0, 0, 0, :2] = torch.tensor([1.0, -1.0])
    assert state_of(step)["scalars/mean"][1, SCALARS.index("clipped")] == 2 / 32


def expected_pixels(step):
    return {
        "state": step.x_next,
        "eps": step.prediction.eps,
        "residual": step.x_next - LEVEL_NEXT.alpha * step.x0,
        "error": step.x0_used - step.x0,
    }


@pytest.mark.parametrize("name", ["state", "eps", "residual", "error"])
def test_pixel_probe_equals_direct_computation(name):
    step = make_step(i=5)
    record = state_of(step, count=6, indices=[2, 5], paired=True)
    wanted = expected_pixels(step)[name].double()
    assert record[f"{name}/count"].tolist() == [0, 6]
    np.testing.assert_allclose(record[f"{name}/mean"][1], wanted.mean(0), **SINGLE)
    np.testing.assert_allclose(record[f"{name}/second"][1], wanted.square().mean(0), **SINGLE)


@pytest.mark.parametrize(("name", "of"), [("spectrum_state", "x_next"), ("spectrum_x0", "x0_used")])
def test_pixel_probe_keeps_spectra(name, of):
    step = make_step()
    state = state_of(step, indices=[1], paired=True)
    wanted = RadialBins(4, 4).density(getattr(step, of)).double()
    np.testing.assert_allclose(state[f"{name}/mean"][0], wanted.mean(0), **SINGLE)


def test_pixels_of_other_indices_are_not_recorded():
    state = state_of(make_step(i=1, paired=False), indices=[0, 2])
    assert not any(value.any() for name, value in state.items() if not name.startswith("scalars/"))


def test_pixel_probe_of_a_walk_from_noise_has_no_errors():
    names = {key.split("/")[0] for key in state_of(make_step(paired=False), indices=[1])}
    assert names == {"scalars", "state", "eps", "spectrum_state", "spectrum_x0", "haar_state", "haar_x0"}


def test_states_merge_to_one_pass():
    """Of three shards, pairwise in order: each merge rounds a mean of numbers near 1 a few times."""
    whole, states = WalkProbe(2, [1], CENTRE, paired=True), []
    for seed in range(3):
        probe = WalkProbe(2, [1], CENTRE, paired=True)
        for observer in (probe, whole):
            observer.update(make_step(images=2 + seed, seed=seed))
        states.append(probe.state())
    for name, value in reduce(WalkProbe.merge, states).items():
        np.testing.assert_allclose(value, whole.state()[name], rtol=1e-13, atol=1e-13, err_msg=name)


def test_error_probe_keeps_single_images():
    steps = [make_step(i=i, seed=seed) for seed in range(2) for i in (3, 2, 1)]
    states = []
    for shard in (steps[:3], steps[3:]):
        probe = ErrorProbe([3, 1])
        assert probe.state() is None
        for step in shard:
            probe.update(step)
        states.append(probe.state())
    errors = ErrorProbe.merge(*states)
    assert errors.dtype == np.float32
    for row, i in zip(errors, (1, 3), strict=True):  # ascending, whatever the order of the indices
        wanted = torch.cat([step.x0_used - step.x0 for step in steps if step.i == i])
        np.testing.assert_array_equal(row, wanted)


def test_error_probe_needs_real_images():
    probe = ErrorProbe([1])
    probe.update(make_step(paired=False))
    assert probe.state() is None


class Recorder:
    def update(self, step):
        self.step = step


@pytest.mark.parametrize("paired", [True, False])
def test_selected_passes_rows_on_as_views(paired):
    step, seen = make_step(paired=paired), Recorder()
    Selected(seen, slice(2, 5)).update(step)
    part = seen.step
    assert (part.i, part.level, part.level_next) == (step.i, step.level, step.level_next)
    pairs = [(getattr(part, name), getattr(step, name)) for name in ("x", "x_next", "x0_used", "eps_used")]
    pairs += [(getattr(part.prediction, n), getattr(step.prediction, n)) for n in ("eps", "x0", "variance_fraction")]
    pairs += [(part.x0, step.x0)] if paired else []
    for chosen, whole in pairs:
        assert torch.equal(chosen, whole[2:5])
        assert chosen.data_ptr() == whole[2].data_ptr()
    assert paired or part.x0 is None


@pytest.mark.parametrize("batched", [True, False])
def test_selected_knows_shared_from_batched_covariances(batched):
    cov = torch.arange(6.0)[:, None, None] * torch.eye(32) if batched else torch.eye(32)
    plain, seen = make_step(), Recorder()
    pred = Prediction(plain.prediction.eps, plain.prediction.x0, None, cov)
    step = Step(1, 0, LEVEL, LEVEL_NEXT, plain.x, plain.x_next, pred, plain.x0_used, plain.eps_used, plain.x0)
    Selected(seen, slice(0, 2)).update(step)
    assert torch.equal(seen.step.prediction.x0_cov, cov[:2] if batched else cov)
    assert seen.step.prediction.variance_fraction is None


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [(5, 100, [0, 1, 2, 3, 4]), (1, 100, [0]), (11, 3, [0, 5, 10]), (1000, 2, [0, 999]), (4, 4, [0, 1, 2, 3])],
)
def test_spread_indices(steps, count, expected):
    assert spread_indices(steps, count) == expected


@pytest.mark.parametrize(("steps", "count"), [(1000, 100), (300, 100), (101, 100), (250, 20)])
def test_spread_indices_are_distinct_and_hold_both_ends(steps, count):
    chosen = spread_indices(steps, count)
    assert (len(set(chosen)), chosen[0], chosen[-1]) == (count, 0, steps - 1)
    gaps = np.diff(chosen)
    assert gaps.max() - gaps.min() <= 1
