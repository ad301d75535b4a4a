import itertools

import pytest
import torch
from small_walks import network, run, start

from bench.diffusion.corrections import FinalStd, VarianceNormalisation, X0StdMatching, x0_std
from bench.diffusion.schedules import edm_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, Euler, Heun
from bench.diffusion.types import CLEAN, Call, Level, Prediction

COSINE, EDM = levels("cosine", 1000, 20), edm_levels(18)
PATHS = [(Ancestral(), COSINE), (Ancestral("fixed-large"), COSINE), (DDIM(), COSINE), (Euler(), EDM), (Heun(), EDM)]

ZERO = torch.zeros(1, 1, 2, 2)


def variances(x):
    return x.double().flatten(1).var(1)


@pytest.mark.parametrize(("solver", "path"), PATHS)
@pytest.mark.parametrize("data_variance", [0.0, 0.25])
def test_every_completed_step_has_the_variance_of_its_level(solver, path, data_variance):
    """But for the data. 32 numbers in float32 (VP), their variance in float64: 1e-6 relative."""
    made = VarianceNormalisation(path, data_variance=data_variance, cutoff=0)
    steps, plain = (run(network, path, start(path), solver, hooks, clip=True) for hooks in (made, None))
    for step in steps[:-1]:
        if step.completes:
            wanted = step.level_next.alpha**2 * data_variance + step.level_next.sigma**2
            assert variances(step.x_next).tolist() == pytest.approx([wanted] * 3, rel=1e-6)
    assert steps[-1].x_next.dtype == (solver.dtype or torch.float32)
    if solver == Heun():  # its first call makes no state of the walk
        assert torch.equal(steps[0].x_next, plain[0].x_next)
    x = start(path)
    call = Call(0, path[-2], CLEAN, True)
    assert made.after(x, network(x, path[-2]), call) is x


def test_the_cutoff_is_the_last_level_normalised():
    """Levels 999, 946, 894, ...: with the cutoff at 894 the states there and above are normalised, the next is not."""
    made = VarianceNormalisation(COSINE, data_variance=0.25, cutoff=894)
    x = start(COSINE)
    after = [made.after(x, None, Call(0, a, b, True)) for a, b in itertools.pairwise(COSINE[:4])]
    assert [y is x for y in after] == [False, False, True]


def test_edms_least_noisy_level_is_not_lost_to_rounding():
    """Its t, computed from sigma, is 0 to a few 1e-13 only, on either side."""
    path = (EDM[0], Level(-3e-13, 1.0, 0.002), CLEAN)
    x = start(path)
    made = VarianceNormalisation(path, data_variance=0.25, cutoff=0)
    assert made.after(x, None, Call(0, path[0], path[1], True)) is not x


REFERENCE = [(t, 0.3 + t / 2000) for t in (0, 250, 500, 999)]


@pytest.mark.parametrize(("solver", "path"), PATHS)
def test_every_x0_has_the_references_spread_and_its_own_mean(solver, path):
    """Interpolated in t; and x is alpha x0 + sigma eps again.

    Float32 (VP) rounds to 6e-8, of the mean too, which is kept and large where alpha is small: a few times that of the
    largest x0_hat, 1e-6, against spreads of .3 at the least.
    """
    steps = run(network, path, start(path), solver, X0StdMatching(REFERENCE))
    for step in steps:
        used, raw = step.x0_used, step.prediction.x0
        got = x0_std(Prediction(step.eps_used, used))
        assert got.shape == (3,)
        assert got.tolist() == pytest.approx([0.3 + min(max(step.level.t, 0), 999) / 2000] * 3, abs=1e-6 * size(used))
        means = used.mean((1, 2, 3)) - raw.mean((1, 2, 3))
        assert means.abs().max() < 1e-6 * size(raw)  # whose own rounding its mean inherits
        again = step.level.alpha * used + step.level.sigma * step.eps_used
        assert (again - step.x).abs().max() < 1e-6 * max(size(step.x), size(used) * step.level.alpha)
    assert steps[-1].x_next.dtype == (solver.dtype or torch.float32)


def size(x):
    return max(1.0, x.abs().max().item())


@pytest.mark.parametrize(("solver", "path"), PATHS)
def test_final_std_changes_the_images_alone(solver, path):
    """32 float32 numbers near 1: spread and mean to 1e-6."""
    steps, plain = (run(network, path, start(path), solver, made, clip=True) for made in (FinalStd(0.4), None))
    for ours, theirs in zip(steps[:-1], plain[:-1], strict=True):
        assert torch.equal(ours.x_next, theirs.x_next)
    got, was = steps[-1].x_next, plain[-1].x_next
    assert variances(got).sqrt().tolist() == pytest.approx([0.4] * 3, rel=1e-6)
    torch.testing.assert_close(got.mean((1, 2, 3)), was.mean((1, 2, 3)), rtol=0, atol=1e-6)


def test_an_x0_of_one_value_stays_one_and_the_order_of_a_reference_does_not_matter():
    level, x = COSINE[5], start(COSINE)
    x0, _ = X0StdMatching(REFERENCE).prediction(Prediction(ZERO, ZERO + 0.3), ZERO, Call(0, level, CLEAN, True))
    torch.testing.assert_close(x0, ZERO + 0.3, rtol=0, atol=1e-7)
    call = Call(0, level, COSINE[6], True)
    a, b = (X0StdMatching(r).prediction(network(x, level), x, call)[0] for r in (REFERENCE, REFERENCE[::-1]))
    assert torch.equal(a, b)
